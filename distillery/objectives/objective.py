"""The shape of an objective."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from distillery.schema import UNLABELLED
from distillery.signals import Signals


class Objective(nn.Module, ABC):
    """One term of the loss, row by row.

    Parameters that it trains itself (a projector, say) are its own and reach the optimiser because it is a module.

    Attributes:
        needs_label: whether unlabelled rows are left out of it.
        needs_teacher: whether it listens to a teacher.
    """

    needs_label: bool = False
    needs_teacher: bool = True

    def applies(self, target: Tensor) -> Tensor:
        """(B,) class numbers to (B,) bool: the rows that this term is about."""
        return target != UNLABELLED if self.needs_label else torch.ones_like(target, dtype=torch.bool)

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses, 0 for a row that the term is not about."""
