"""Parameters of objectives over relations: between the rows of a batch, or between layers."""

from typing import ClassVar, Literal

from pydantic import Field

from distillery.config import Scheduled
from distillery.objectives.configs.feature import Feature


class Rkd(Feature):
    """Match distances and angles between rows (Park et al. 2019)."""

    over_batch: ClassVar[bool] = True

    name: Literal["rkd"]
    distance_weight: float = Field(25.0, ge=0.0, description="goes with the mean over all pairs")
    angle_weight: float = Field(50.0, ge=0.0, description="goes with the mean over all triples")


class Sp(Feature):
    """Match which rows look alike (Tung and Mori 2019)."""

    over_batch: ClassVar[bool] = True

    name: Literal["sp"]
    weight: Scheduled = Field(3000.0, description="gamma of the paper")


class Cc(Feature):
    """Match the correlation of all pairs of rows under a Gaussian kernel (Peng et al. 2019)."""

    over_batch: ClassVar[bool] = True

    name: Literal["cc"]
    weight: Scheduled = Field(100.0, description="100 brings it to the size of a cross-entropy")
    gamma: float = Field(0.4, gt=0.0, description="of the kernel exp(-gamma * squared distance)")
    order: int = Field(2, ge=1, description="of the kernel's Taylor series")


class Pkt(Feature):
    """Match the distribution over neighbours that cosine affinities imply (Passalis and Tefas 2018)."""

    over_batch: ClassVar[bool] = True

    name: Literal["pkt"]
    weight: Scheduled = Field(500.0, description="500 brings it to the size of a cross-entropy")


class Fsp(Feature):
    """Match the flow from layer to layer (Yim et al. 2017)."""

    name: Literal["fsp"]
    project: bool = Field(False, description="learn 1x1 projections where the student's layers have other widths")
