"""Parameters of objectives that compare what layers of student and teacher put out."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillery.config import Config, Scheduled
from distillery.objectives.configs.objective import Objective


class Layers(Config):
    """Layers by module path, shallow to deep; the student's are paired with the teacher's by position."""

    student: tuple[str, ...] = Field(min_length=1)
    teacher: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _pairs_match(self) -> Self:
        if len(self.student) != len(self.teacher):
            raise ValueError(
                f"{len(self.student)} student layers cannot be paired with {len(self.teacher)} teacher layers"
            )
        for side, names in (("student", self.student), ("teacher", self.teacher)):
            if len(set(names)) < len(names):
                raise ValueError(f"a {side} layer is named twice")
        return self


class Feature(Objective):
    """What all of them share."""

    layers: Layers | None = Field(None, description="by default the last of each stage")


class Hints(Feature):
    """Match the teacher's features after a learned projector (FitNet, Romero et al. 2015)."""

    name: Literal["hints"]


class Attention(Feature):
    """Match where the teacher's maps are active (Zagoruyko & Komodakis 2017)."""

    name: Literal["attention"]
    weight: Scheduled = Field(10.0, description="10 is the paper's beta = 1000 on maps of 32, 16 and 8 pixels")


class Vid(Feature):
    """Predict the teacher's features under a Gaussian with a learned variance (Ahn et al. 2019)."""

    name: Literal["vid"]
    initial_variance: float = Field(5.0, gt=0.0, description="of every channel, before training")
    smallest_variance: float = Field(1e-5, gt=0.0, description="added to the learned one")

    @model_validator(mode="after")
    def _variance_starts_above_its_bound(self) -> Self:
        if self.initial_variance <= self.smallest_variance:
            raise ValueError("initial_variance must be larger than smallest_variance")
        return self


class ReviewKd(Feature):
    """Fuse later layers into earlier ones, compare at several sizes (Chen et al. 2021)."""

    name: Literal["reviewkd"]
    weight: Scheduled = Field(3.0, description="3 is the paper's 1, a sum over layers, on three of them")
    channels: int = Field(512, ge=1, description="of the fused maps, at most; the deepest student layer has the say")


class Crd(Feature):
    """Tell the teacher's view of a row from its view of others, contrastively (Tian et al. 2020)."""

    over_batch: ClassVar[bool] = True

    name: Literal["crd"]
    weight: Scheduled = Field(0.8)
    layers: Layers | None = Field(None, description="by default the deepest pair")
    dimensions: int = Field(128, ge=1, description="of the embedding")
    temperature: float = Field(0.07, gt=0.0)
