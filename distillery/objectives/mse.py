"""Squared error: regression on the target and on the teacher."""

import torch
from torch import Tensor

from distillery.objectives.configs.response import Mse, MseTeacher
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def mse(outputs: Tensor, target: Tensor) -> Tensor:
    """Squared error of each row, averaged over the outputs whose target is known.

    Args:
        outputs: (B, K).
        target: (B, K), or (B,) where K is 1; NaN where unknown.

    Returns:
        (B,) losses, 0 where nothing is known.
    """
    target = target.reshape(outputs.shape).to(outputs.dtype)
    known = ~target.isnan()
    error = torch.where(known, outputs - target, 0.0)
    return error.square().sum(1) / known.sum(1).clamp_min(1)


class MseObjective(Objective):
    """`mse` against the target, averaged over labelled rows only."""

    needs_label = True
    needs_teacher = False

    def __init__(self, config: Mse, setting: Setting) -> None:
        super().__init__()

    def applies(self, target: Tensor) -> Tensor:
        """(B,) or (B, K) numbers to (B,) bool: the rows with at least one that is known."""
        return ~target.reshape(len(target), -1).isnan().all(1)

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; 0 for unlabelled rows."""
        return mse(student.logits, target)


class MseTeacherObjective(Objective):
    """`mse` against the teacher's outputs; unlabelled rows count like any other."""

    def __init__(self, config: MseTeacher, setting: Setting) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses."""
        assert teacher is not None
        return mse(student.logits, teacher.logits.detach())
