"""What a user may say about objectives; no module here imports torch."""

from typing import Annotated

from pydantic import Field

from distillery.objectives.configs.adversarial import Adversarial
from distillery.objectives.configs.feature import Attention, Crd, Feature, Hints, ReviewKd, Vid
from distillery.objectives.configs.graph import Irg
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

__all__ = ["FITS", "NAMES", "OVER_BATCH", "CrossEntropy", "Kd", "ObjectiveConfig", "label_loss", "needs_features"]

NAMES = (
    *("kd", "dkd", "dist", "mse_teacher", "cross_entropy", "mse", "multilabel_kd", "multilabel_cross_entropy"),
    *("hints", "attention", "vid", "reviewkd", "crd"),
    *("rkd", "sp", "cc", "pkt", "fsp", "irg", "adversarial"),
)
# Their value is one number for a batch, not one for each row, so a batch cannot be cut.
OVER_BATCH = ("dist", "crd", "rkd", "sp", "cc", "pkt", "irg")
# What a target must be for the objectives that read what it is; all others fit every kind.
FITS: dict[str, tuple[Kind, ...]] = {
    "kd": ("classes",),
    "dkd": ("classes",),
    "dist": ("classes",),
    "cross_entropy": ("classes",),
    "adversarial": ("classes",),
    "mse": ("number",),
    "multilabel_kd": ("labels",),
    "multilabel_cross_entropy": ("labels",),
}


def label_loss(kind: Kind) -> ObjectiveConfig:
    """How a target of some kind is learned from labels alone."""
    if kind == "classes":
        return CrossEntropy(name="cross_entropy")
    return Mse(name="mse") if kind == "number" else MultilabelCrossEntropy(name="multilabel_cross_entropy")


def needs_features(config: ObjectiveConfig) -> bool:
    """Whether it compares layers, and so needs a teacher that is run or whose features were stored."""
    return isinstance(config, Feature) or (isinstance(config, Adversarial) and config.signal == "features")
