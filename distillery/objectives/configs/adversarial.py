"""Parameters of the objective that plays against a discriminator."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillery.objectives.configs.feature import Layers
from distillery.objectives.configs.objective import Objective
from distillery.schema import Kind


class Adversarial(Objective):
    """Fool a discriminator that tells the student's signals from the teacher's (Xu et al. 2018)."""

    fits: ClassVar[tuple[Kind, ...]] = ("classes",)

    name: Literal["adversarial"]
    signal: Literal["logits", "features"] = Field("logits", description="what the discriminator reads")
    layers: Layers | None = Field(None, description="one pair, for features; by default the deepest")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128, 256, 128), min_length=1, description="of the discriminator"
    )
    gradient_penalty: float = Field(1.0, ge=0.0, description="keeps the discriminator smooth; 0: as in the paper")
    critic_learning_rate: float = Field(1e-3, gt=0.0, description="of the discriminator's own optimiser (AdamW)")

    @model_validator(mode="after")
    def _layers_are_read(self) -> Self:
        if self.layers is not None and self.signal == "logits":
            raise ValueError("layers are read where `signal: features` only")
        if self.layers is not None and len(self.layers.student) > 1:
            raise ValueError("the discriminator reads one pair of layers")
        return self
