"""Knowledge distillation on softened distributions.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2:
`T^2 * KL(softmax(z_t / T) || softmax(z_s / T))`, summed over classes, averaged over rows. It is the divergence and
not the cross-entropy, so a perfect student scores 0; the factor T^2 keeps the size of the gradient as T changes.
"""

from torch import Tensor
from torch.nn import functional

from distillery.config import at
from distillery.objectives.configs.response import Kd
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.standardize import check_standardize, standardize
from distillery.signals import Signals


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Softened divergence of each row.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: T > 0.

    Returns:
        (B,) losses in nats, times T^2; at least 0.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(1) * temperature**2


class KdObjective(Objective):
    """`kd` with the temperature of the parameters, on z-scores where they say so."""

    def __init__(self, config: Kd, setting: Setting) -> None:
        super().__init__()
        if config.standardize:
            check_standardize(config.name, setting)
        self.temperature = at(config.temperature)
        self.standardize = config.standardize

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; unlabelled rows count like any other."""
        assert teacher is not None
        ours, theirs = student.logits, teacher.logits.detach()
        if self.standardize:
            ours, theirs = standardize(ours), standardize(theirs)
        return kd(ours, theirs, self.temperature)
