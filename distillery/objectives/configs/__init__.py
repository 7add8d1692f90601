"""What a user may say about objectives; no module here imports torch."""

from typing import Annotated

from pydantic import Field

from distillery.objectives.configs.adversarial import Adversarial
from distillery.objectives.configs.feature import Attention, Crd, Feature, Hints, ReviewKd, Vid
from distillery.objectives.configs.graph import Irg
from distillery.objectives.configs.relation import Cc, Fsp, Pkt, Rkd, Sp
from distillery.objectives.configs.response import CrossEntropy, Dist, Dkd, Kd, MseTeacher

Response = Kd | Dkd | Dist | MseTeacher | CrossEntropy
Features = Hints | Attention | Vid | ReviewKd | Crd
Relations = Rkd | Sp | Cc | Pkt | Fsp | Irg
ObjectiveConfig = Annotated[Response | Features | Relations | Adversarial, Field(discriminator="name")]

__all__ = ["NAMES", "OVER_BATCH", "CrossEntropy", "Kd", "ObjectiveConfig", "needs_features"]

NAMES = (
    *("kd", "dkd", "dist", "mse_teacher", "cross_entropy"),
    *("hints", "attention", "vid", "reviewkd", "crd"),
    *("rkd", "sp", "cc", "pkt", "fsp", "irg", "adversarial"),
)
# Their value is one number for a batch, not one for each row, so a batch cannot be cut.
OVER_BATCH = ("dist", "crd", "rkd", "sp", "cc", "pkt", "irg")


def needs_features(config: ObjectiveConfig) -> bool:
    """Whether it compares layers, and so needs a teacher that is run or whose features were stored."""
    return isinstance(config, Feature) or (isinstance(config, Adversarial) and config.signal == "features")
