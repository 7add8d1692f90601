"""The shape of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distillery.schema import UNLABELLED
from distillery.signals import Signals

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """What an objective may want to know when it is built.

    Attributes:
        classes: number of outputs C.
        class_weights: (C,) factors on the loss of labelled rows, or None for 1.
        student: the student's features, name -> shape without the batch, shallow to deep; (C, H, W) or (D,).
        teacher: the teacher's, likewise; paired with the student's by position.
    """

    classes: int
    class_weights: Tensor | None = None
    student: Mapping[str, Shape] = field(default_factory=dict)
    teacher: Mapping[str, Shape] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """One term of the loss.

    Parameters that it trains itself (a projector, say) are its own and reach the optimiser because it is a module.

    Attributes:
        needs_label: whether unlabelled rows are left out of it.
        needs_teacher: whether it listens to a teacher.
        needs_features: whether it reads features; signals then hold those of `Setting.student` and `.teacher`.
        over_batch: whether it compares rows of a batch with each other; its result is then one number for the batch
            instead of one for each row, and gradient accumulation is refused.
        critic_learning_rate: of its adversary, where it has one.
    """

    needs_label: bool = False
    needs_teacher: bool = True
    needs_features: bool = False
    over_batch: bool = False
    critic_learning_rate: float = 0.0

    def applies(self, target: Tensor) -> Tensor:
        """(B,) class numbers to (B,) bool: the rows that this term is about."""
        if not self.needs_label:
            return torch.ones(len(target), dtype=torch.bool, device=target.device)
        return target != UNLABELLED

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses, 0 for a row that the term is not about; or a scalar where it is `over_batch`."""

    def critic(self, student: Signals, teacher: Signals, target: Tensor) -> Tensor | None:
        """The loss of an adversary that takes turns with the student and has its own optimiser; None: there is none."""
        return None

    def critic_parameters(self) -> list[nn.Parameter]:
        """What that optimiser moves, and the student's optimiser does not."""
        return []

    @property
    def critic_accuracy(self) -> float | None:
        """How often the adversary is right of late; None where there is none."""
        return None

    def collapse(self) -> str | None:
        """Why the game with the adversary teaches nothing; None where it does, or there is none."""
        return None
