"""What a user may say about objectives; no module here imports torch."""

from typing import Annotated, get_args

from pydantic import Field

from distillery.objectives.configs.adversarial import Adversarial
from distillery.objectives.configs.feature import Attention, Crd, Feature, Hints, ReviewKd, Vid
from distillery.objectives.configs.graph import Irg
from distillery.objectives.configs.objective import Objective
from distillery.objectives.configs.relation import Cc, Fsp, Pkt, Rkd, Sp
from distillery.objectives.configs.response import (
    CrossEntropy,
    Dist,
    Dkd,
    Kd,
    Mse,
    MseTeacher,
    MultilabelCrossEntropy,
    MultilabelKd,
)
from distillery.schema import Kind

Response = Kd | Dkd | Dist | MseTeacher | CrossEntropy | Mse | MultilabelCrossEntropy | MultilabelKd
Features = Hints | Attention | Vid | ReviewKd | Crd
Relations = Rkd | Sp | Cc | Pkt | Fsp | Irg
ObjectiveConfig = Annotated[Response | Features | Relations | Adversarial, Field(discriminator="name")]

__all__ = [
    "FITS",
    "KINDS",
    "NAMES",
    "OVER_BATCH",
    "CrossEntropy",
    "Kd",
    "ObjectiveConfig",
    "label_loss",
    "needs_features",
]

KINDS: dict[str, type[Objective]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(ObjectiveConfig)[0])
}
NAMES = tuple(KINDS)
OVER_BATCH = tuple(name for name, kind in KINDS.items() if kind.over_batch)
FITS: dict[str, tuple[Kind, ...]] = {name: kind.fits for name, kind in KINDS.items()}


def label_loss(kind: Kind) -> ObjectiveConfig:
    """How a target of some kind is learned from labels alone."""
    if kind == "classes":
        return CrossEntropy(name="cross_entropy")
    return Mse(name="mse") if kind == "number" else MultilabelCrossEntropy(name="multilabel_cross_entropy")


def needs_features(config: ObjectiveConfig) -> bool:
    """Whether it compares layers, and so needs a teacher that is run or whose features were stored."""
    return isinstance(config, Feature) or (isinstance(config, Adversarial) and config.signal == "features")
