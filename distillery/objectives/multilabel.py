"""Rows with any number of labels: each label is a yes or no of its own.

Both losses are summed over the labels, as the log-likelihood and the divergence of independent events are, so that
their ratio is that of `cross_entropy` and `kd`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import at
from distillery.objectives.configs.response import MultilabelCrossEntropy, MultilabelKd
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def multilabel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of each row's known labels, with the probability sigmoid(z) for each.

    Args:
        logits: (B, C).
        target: (B, C) 0 or 1, NaN where unknown.

    Returns:
        (B,) losses in nats, summed over labels; 0 where nothing is known.
    """
    loss = functional.binary_cross_entropy_with_logits(logits, target.nan_to_num().to(logits.dtype), reduction="none")
    return torch.where(target.isnan(), 0.0, loss).sum(1)


def multilabel_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(Bernoulli(sigmoid(z_t / T)) || Bernoulli(sigmoid(z_s / T)))`, summed over labels.

    It is `kd` (Hinton et al. 2015) of the two classes (z, 0), once for each label.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T > 0.

    Returns:
        (B,) losses in nats, times T^2; at least 0.
    """
    ours, theirs = (torch.stack([z, -z]) / temperature for z in (student, teacher))
    yes_no = functional.kl_div(
        functional.logsigmoid(ours), functional.logsigmoid(theirs), reduction="none", log_target=True
    )
    return yes_no.sum((0, 2)) * temperature**2


class MultilabelCrossEntropyObjective(Objective):
    """`multilabel_cross_entropy`, averaged over rows with a known label."""

    needs_label = True
    needs_teacher = False

    def __init__(self, config: MultilabelCrossEntropy, setting: Setting) -> None:
        super().__init__()

    def applies(self, target: Tensor) -> Tensor:
        """(B, C) multi-hot to (B,) bool: the rows with at least one known label."""
        return ~target.isnan().all(1)

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; 0 for unlabelled rows."""
        return multilabel_cross_entropy(student.logits, target)


class MultilabelKdObjective(Objective):
    """`multilabel_kd` with the temperature of the parameters; unlabelled rows count like any other."""

    def __init__(self, config: MultilabelKd, setting: Setting) -> None:
        super().__init__()
        self.temperature = at(config.temperature)

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses."""
        assert teacher is not None
        return multilabel_kd(student.logits, teacher.logits.detach(), self.temperature)
