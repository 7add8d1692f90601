"""Cross-entropy with the label, where there is one."""

from torch import Tensor
from torch.nn import functional

from distillery.objectives.configs.response import CrossEntropy
from distillery.objectives.objective import Objective, Setting
from distillery.schema import UNLABELLED
from distillery.signals import Signals


def cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood of each row's label.

    With label smoothing e (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision",
    section 7) the label gets 1 - e + e / C and every other class e / C; each class keeps its own factor.

    Args:
        logits: (B, C).
        target: (B,) class numbers, -1 where unlabelled.
        class_weights: (C,) factors, or None for 1.
        label_smoothing: e, from 0 to below 1.

    Returns:
        (B,) losses in nats, 0 where unlabelled.
    """
    return functional.cross_entropy(
        logits, target, class_weights, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )


class CrossEntropyObjective(Objective):
    """`cross_entropy`, averaged over labelled rows only."""

    needs_label = True
    needs_teacher = False
    class_weights: Tensor | None

    def __init__(self, config: CrossEntropy, setting: Setting) -> None:
        super().__init__()
        self.register_buffer("class_weights", setting.class_weights)
        self.label_smoothing = config.label_smoothing

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; 0 for unlabelled rows."""
        return cross_entropy(student.logits, target, self.class_weights, self.label_smoothing)
