"""Parameters of objectives over outputs: classes, numbers and multi-hot labels."""

from typing import Literal

from pydantic import Field

from distillery.config import Config, Scheduled


class Kd(Config):
    """Match the teacher's softened distribution (Hinton et al. 2015)."""

    name: Literal["kd"]
    weight: Scheduled = Field(1.0, description="9 was published with standardize")
    temperature: Scheduled = Field(2.0)
    standardize: bool = Field(False, description="z-score the logits of each row first (Sun et al. 2024); 3+ classes")


class Dkd(Config):
    """Match the teacher on the label and among the other classes, decoupled (Zhao et al. 2022); labelled rows only."""

    name: Literal["dkd"]
    weight: Scheduled = Field(1.0, description="published with a linear warm-up over 20 epochs")
    alpha: float = Field(1.0, ge=0.0, description="of the label against the rest")
    beta: float = Field(8.0, ge=0.0, description="of the classes other than the label; 2 to 8 were published")
    temperature: Scheduled = Field(4.0)
    standardize: bool = Field(False, description="z-score the logits of each row first (Sun et al. 2024); 3+ classes")


class Dist(Config):
    """Correlate with the teacher's probabilities, along rows and along columns (Huang et al. 2022)."""

    name: Literal["dist"]
    weight: Scheduled = Field(1.0)
    temperature: Scheduled = Field(1.0, description="tau; 4 was published on CIFAR")
    beta: float = Field(1.0, ge=0.0, description="of the rows (inter-class)")
    gamma: float = Field(1.0, ge=0.0, description="of the columns over the batch (intra-class)")


class CrossEntropy(Config):
    """Match the label, where there is one."""

    name: Literal["cross_entropy"]
    weight: Scheduled = Field(1.0)
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share spread evenly over all classes")


class Mse(Config):
    """Match the target number, where there is one (regression)."""

    name: Literal["mse"]
    weight: Scheduled = Field(1.0)


class MseTeacher(Config):
    """Match the teacher's outputs as numbers: the distillation of regression."""

    name: Literal["mse_teacher"]
    weight: Scheduled = Field(1.0)


class MultilabelCrossEntropy(Config):
    """Match each label of a row by itself, where it is known."""

    name: Literal["multilabel_cross_entropy"]
    weight: Scheduled = Field(1.0)


class MultilabelKd(Config):
    """Match the teacher's softened probability of each label by itself."""

    name: Literal["multilabel_kd"]
    weight: Scheduled = Field(1.0)
    temperature: Scheduled = Field(2.0)
