"""Cross-entropy with the label, where there is one."""

from torch import Tensor
from torch.nn import functional

from distillery.config import CrossEntropy
from distillery.objectives.objective import Objective
from distillery.schema import UNLABELLED
from distillery.signals import Signals


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each row's label.

    Args:
        logits: (B, C).
        target: (B,) class numbers, -1 where unlabelled.
        class_weights: (C,) factors, or None for 1.

    Returns:
        (B,) losses in nats, 0 where unlabelled.
    """
    return functional.cross_entropy(logits, target, class_weights, ignore_index=UNLABELLED, reduction="none")


class CrossEntropyObjective(Objective):
    """`cross_entropy`, averaged over labelled rows only."""

    needs_label = True
    needs_teacher = False
    class_weights: Tensor | None

    def __init__(self, config: CrossEntropy, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; 0 for unlabelled rows."""
        return cross_entropy(student.logits, target, self.class_weights)
