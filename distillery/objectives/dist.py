"""Distillation from a stronger teacher, by correlation.

Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10. Of the softened probabilities
`p = softmax(z / tau)`: `tau^2 * (beta * mean over rows of (1 - r) + gamma * mean over columns of (1 - r))`, with r the
Pearson correlation of student and teacher. Rows compare the classes of one input (inter-class), columns the inputs
under one class (intra-class); hence the columns need the whole batch.

It is blind to a constant added to a row of logits, but not to their scale. With two classes a row's correlation is
+1 or -1, without a gradient: only the columns teach.
"""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import at
from distillery.objectives.configs.response import Dist
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals

EPSILON = 1e-8


def anticorrelation(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - r` of each row, with Pearson's r; blind to a scale > 0 and a shift of either side.

    A row whose deviation is below 1e-8, or below what rounding leaves, counts as constant. Where the teacher's is,
    there is nothing to match and the result is 0 (the paper's code has 1). Where only the student's is, the result is
    1 and the gradient that of the covariance: divided by the deviation it would be 1e8 times as large.

    Args:
        student: (N, D).
        teacher: (N, D).

    Returns:
        (N,) from 0 to 2.
    """
    ours, _ = _directions(student)
    theirs, nothing = _directions(teacher)
    return torch.where(nothing, 0.0, 1 - (ours * theirs).sum(1))


def _directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) centred rows, of length 1 unless they are constant, and (N,) which ones are."""
    centred = rows - rows.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1)
    rounding = 4 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=1)
    constant = length <= EPSILON + rounding
    return centred / torch.where(constant, torch.ones_like(length), length).unsqueeze(1), constant


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """Both relations of a batch.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: tau > 0.
        beta: factor on the rows, averaged over B.
        gamma: factor on the columns, averaged over C.

    Returns:
        A scalar, at least 0. One row has no columns to compare: the rows' term alone is left.
    """
    ours, theirs = (functional.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    rows = anticorrelation(ours, theirs).mean()
    columns = anticorrelation(ours.T, theirs.T).mean()
    return temperature**2 * (beta * rows + gamma * columns)


class DistObjective(Objective):
    """`dist` with the parameters of the section; unlabelled rows count like any other."""

    over_batch = True

    def __init__(self, config: Dist, setting: Setting) -> None:
        super().__init__()
        self.temperature = at(config.temperature)
        self.beta = config.beta
        self.gamma = config.gamma

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """A scalar for the batch."""
        assert teacher is not None
        return dist(student.logits, teacher.logits.detach(), self.temperature, self.beta, self.gamma)
