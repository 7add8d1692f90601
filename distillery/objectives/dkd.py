"""Decoupled knowledge distillation.

Zhao et al. 2022, "Decoupled Knowledge Distillation", equations 6 and 7: the divergence of `kd` is
`TCKD + (1 - p_label of the teacher) * NCKD`; here the parts get weights of their own, `alpha * TCKD + beta * NCKD`.
TCKD compares the label with all other classes together, NCKD the other classes among themselves.
"""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import at
from distillery.objectives.configs.response import Dkd
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.standardize import check_standardize, standardize
from distillery.schema import UNLABELLED
from distillery.signals import Signals


def dkd(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """Decoupled divergence of each row, summed over classes.

    Everything stays in logarithms and the label's column is taken out instead of masked, so that saturated logits
    are finite; with two classes one other class is left and NCKD is 0.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        target: (B,) class numbers, -1 where unlabelled.
        alpha: factor on TCKD.
        beta: factor on NCKD.
        temperature: T > 0.

    Returns:
        (B,) losses in nats, times T^2; at least 0, and 0 where unlabelled.
    """
    label = target.clamp_min(0).unsqueeze(1)
    others = torch.arange(student.shape[1] - 1, device=target.device).expand(len(target), -1)
    others = others + (others >= label)

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of (the label, the rest) and among the rest."""
        rest = logits.gather(1, others)
        pair = torch.cat([logits.gather(1, label), rest.logsumexp(1, keepdim=True)], dim=1)
        return functional.log_softmax(pair, dim=1), functional.log_softmax(rest, dim=1)

    parts = zip(split(student / temperature), split(teacher / temperature), strict=True)
    target_part, other_part = (
        functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1) for ours, theirs in parts
    )
    loss = (alpha * target_part + beta * other_part) * temperature**2
    return torch.where(target == UNLABELLED, torch.zeros_like(loss), loss)


class DkdObjective(Objective):
    """`dkd` over labelled rows: which class is the target is part of its definition, so the others need `kd`."""

    needs_label = True

    def __init__(self, config: Dkd, setting: Setting) -> None:
        super().__init__()
        if config.standardize:
            check_standardize(config.name, setting)
        self.alpha = config.alpha
        self.beta = config.beta
        self.temperature = at(config.temperature)
        self.standardize = config.standardize

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; 0 for unlabelled rows."""
        assert teacher is not None
        ours, theirs = student.logits, teacher.logits.detach()
        if self.standardize:
            ours, theirs = standardize(ours), standardize(theirs)
        return dkd(ours, theirs, target, self.alpha, self.beta, self.temperature)
