"""What the student must match, by name.

An objective is one short file with a pure function of (student, teacher, target) and a module around it, its
parameters in `distillery.config`, and one line in `OBJECTIVES`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from distillery.config import ObjectiveConfig
from distillery.objectives.cross_entropy import CrossEntropyObjective
from distillery.objectives.kd import KdObjective
from distillery.objectives.objective import Objective
from distillery.signals import Signals

OBJECTIVES: dict[str, type[Objective]] = {
    "kd": KdObjective,
    "cross_entropy": CrossEntropyObjective,
}

__all__ = ["OBJECTIVES", "Objective", "WeightedSum", "build"]


class WeightedSum(nn.Module):
    """Named objectives and their weights; a module, so that an optimiser finds what the objectives train."""

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(objectives)
        self.weights = dict(weights)

    def forward(
        self, student: Signals, teacher: Signals | None, target: Tensor, whole: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all objectives.

        Each objective is averaged over the rows of the whole step that it applies to, so that the loss of a step is
        the sum over its micro-batches and processes, however it is cut.

        Args:
            student: signals of this micro-batch.
            teacher: the teacher's, or None where no objective listens to one.
            target: (B,) class numbers of this micro-batch, -1 where unlabelled.
            whole: (W,) class numbers of the whole step, of which this micro-batch is a part.

        Returns:
            The loss of this micro-batch, a scalar, and each objective's unweighted share of it.
        """
        named = {}
        total = student.logits.new_zeros(())
        for name, objective in self.parts.items():
            assert isinstance(objective, Objective)
            rows = objective.applies(whole).sum().clamp_min(1)
            named[name] = objective(student, teacher, target).sum() / rows
            total = total + self.weights[name] * named[name]
        return total, named


def build(configs: Sequence[ObjectiveConfig], class_weights: Tensor | None = None) -> WeightedSum:
    """Builds the sum that `distill.objectives` describes.

    Args:
        configs: each objective with its parameters.
        class_weights: (C,) factors on the loss of labelled rows.
    """
    objectives: dict[str, Objective] = {
        config.name: OBJECTIVES[config.name](config, class_weights) for config in configs
    }
    return WeightedSum(objectives, {config.name: config.weight for config in configs})
