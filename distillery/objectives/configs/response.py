"""Parameters of objectives over outputs: classes, numbers and multi-hot labels."""

from typing import ClassVar, Literal

from pydantic import Field

from distillery.config import Scheduled
from distillery.objectives.configs.objective import Objective
from distillery.schema import Kind


class Kd(Objective):
    """Match the teacher's softened distribution (Hinton et al. 2015)."""

    fits: ClassVar[tuple[Kind, ...]] = ("classes",)

    name: Literal["kd"]
    weight: Scheduled = Field(1.0, description="9 was published with standardize")
    temperature: Scheduled = Field(2.0)
    standardize: bool = Field(False, description="z-score the logits of each row first (Sun et al. 2024); 3+ classes")


class Dkd(Objective):
    """Match the teacher on the label and among the other classes, decoupled (Zhao et al. 2022); labelled rows only."""

    fits: ClassVar[tuple[Kind, ...]] = ("classes",)

    name: Literal["dkd"]
    weight: Scheduled = Field(1.0, description="published with a linear warm-up over 20 epochs")
    alpha: float = Field(1.0, ge=0.0, description="of the label against the rest")
    beta: float = Field(8.0, ge=0.0, description="of the classes other than the label; 2 to 8 were published")
    temperature: Scheduled = Field(4.0)
    standardize: bool = Field(False, description="z-score the logits of each row first (Sun et al. 2024); 3+ classes")


class Dist(Objective):
    """Correlate with the teacher's probabilities, along rows and along columns (Huang et al. 2022)."""

    fits: ClassVar[tuple[Kind, ...]] = ("classes",)
    over_batch: ClassVar[bool] = True

    name: Literal["dist"]
    temperature: Scheduled = Field(1.0, description="tau; 4 was published on CIFAR")
    beta: float = Field(1.0, ge=0.0, description="of the rows (inter-class)")
    gamma: float = Field(1.0, ge=0.0, description="of the columns over the batch (intra-class)")


class CrossEntropy(Objective):
    """Match the label, where there is one."""

    fits: ClassVar[tuple[Kind, ...]] = ("classes",)

    name: Literal["cross_entropy"]
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share spread evenly over all classes")


class Mse(Objective):
    """Match the target number, where there is one (regression)."""

    fits: ClassVar[tuple[Kind, ...]] = ("number",)

    name: Literal["mse"]


class MseTeacher(Objective):
    """Match the teacher's outputs as numbers: the distillation of regression."""

    name: Literal["mse_teacher"]


class MultilabelCrossEntropy(Objective):
    """Match each label of a row by itself, where it is known."""

    fits: ClassVar[tuple[Kind, ...]] = ("labels",)

    name: Literal["multilabel_cross_entropy"]


class MultilabelKd(Objective):
    """Match the teacher's softened probability of each label by itself."""

    fits: ClassVar[tuple[Kind, ...]] = ("labels",)

    name: Literal["multilabel_kd"]
    temperature: Scheduled = Field(2.0)
