"""What a model is trained to minimise: for each target its weighted sum of objectives."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distillery.config import Equal, FixedTasks, TaskWeighting
from distillery.objectives.objective import Objective
from distillery.objectives.weighted_sum import WeightedSum
from distillery.schema import Schema, Target
from distillery.signals import Signals

Gather = Callable[[Tensor], Tensor]


class Loss(nn.Module):
    """The losses of all targets, each on its own part of the outputs; numbers in units of their deviation.

    With `uncertainty` each target's loss is weighted by a noise that is learned (Kendall, Gal, Cipolla 2018, equations
    7 and 10): `exp(-s) * L + s / 2`, half the first term for a number, where s is the log of the variance. The loss
    can then be negative.

    Attributes:
        heads: target -> its weighted sum.
        schema: tells which outputs speak of which target.
        teachers: whom the objectives listen to.
        student_layers: whose features the objectives read.
        teacher_layers: the same for each teacher.
    """

    def __init__(
        self, heads: Mapping[str, WeightedSum], schema: Schema, weighting: TaskWeighting | None = None
    ) -> None:
        super().__init__()
        # A list: a target's name may hold a dot.
        self._sums = nn.ModuleList(heads.values())
        self._names = tuple(heads)
        self.schema = schema
        self.weighting = weighting or Equal(name="equal")
        learned = self.weighting.name == "uncertainty"
        self.log_variances = nn.ParameterList(torch.zeros(()) for _ in heads) if learned else None
        self.student_layers = tuple(dict.fromkeys(layer for each in heads.values() for layer in each.student_layers))
        self.teacher_layers: dict[str, tuple[str, ...]] = {}
        for each in heads.values():
            for key, layers in each.teacher_layers.items():
                self.teacher_layers[key] = tuple(dict.fromkeys([*self.teacher_layers.get(key, ()), *layers]))
        self.teachers = tuple(self.teacher_layers)

    @property
    def heads(self) -> dict[str, WeightedSum]:
        """Target -> its weighted sum."""
        return dict(zip(self._names, self._sums, strict=True))  # type: ignore[arg-type]

    @property
    def objectives(self) -> list[Objective]:
        """Every term."""
        return [objective for each in self.heads.values() for objective in each.objectives.values()]

    @property
    def over_batch(self) -> bool:
        """Whether a term compares rows of a batch with each other."""
        return any(part.over_batch for part in self.objectives)

    @property
    def needs_label(self) -> bool:
        """Whether nothing is learned from an unlabelled row."""
        return all(part.needs_label for part in self.objectives)

    @property
    def critic_learning_rate(self) -> float:
        """Of the adversaries' optimiser."""
        return max(part.critic_learning_rate for part in self.objectives)

    def collapses(self) -> list[str]:
        """What adversaries tell of games that teach nothing."""
        return [told for part in self.objectives if (told := part.collapse()) is not None]

    def critic_accuracy(self) -> dict[str, float]:
        """How often adversaries tell student from teacher of late, by name; one half is a fair game."""
        return {
            f"critic_accuracy_{key}" if len(self.teachers) > 1 else "critic_accuracy": accuracy
            for each in self.heads.values()
            for (_, key), objective in each.objectives.items()
            if (accuracy := objective.critic_accuracy) is not None
        }

    def critic_parameters(self) -> list[nn.Parameter]:
        """What adversaries train."""
        return [parameter for part in self.objectives for parameter in part.critic_parameters()]

    def critic(self, student: Signals, teachers: Mapping[str, Signals], targets: Mapping[str, Tensor]) -> Tensor | None:
        """The sum of the adversaries' losses; None where there is no adversary."""
        losses = [
            objective.critic(
                self._view(name, student), self._view(name, teachers[key]), self._target(name, targets[name])
            )
            for name, each in self.heads.items()
            for (_, key), objective in each.objectives.items()
            if key in teachers
        ]
        told = [loss for loss in losses if loss is not None]
        return torch.stack(told).sum() if told else None

    def forward(
        self,
        student: Signals,
        teachers: Mapping[str, Signals],
        targets: Mapping[str, Tensor],
        whole: Mapping[str, Tensor],
        *,
        position: float = 0.0,
        gather: Gather = lambda tensor: tensor,
        processes: int = 1,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch; over micro-batches and processes it sums to that of the step.

        Args:
            student: signals of this micro-batch.
            teachers: each teacher's.
            targets: target name -> (B,) or (B, L), of this micro-batch.
            whole: the same of the whole step; on any device.
            position: of this step in the training, from 0 to 1; what schedules go by.
            gather: brings the rows of all processes together, with a gradient to one's own.
            processes: their number.

        Returns:
            A scalar, and by name each objective's unweighted share of it; with several targets `<target>.<name>`.
        """
        total = student.logits.new_zeros(())
        named: dict[str, Tensor] = {}
        several = len(self._names) > 1
        for at, (name, each) in enumerate(self.heads.items()):
            value, shares = each(
                self._view(name, student),
                {key: self._view(name, said) for key, said in teachers.items()},
                self._target(name, targets[name]),
                self._target(name, whole[name]),
                position=position,
                gather=gather,
                processes=processes,
            )
            if several:
                named[name] = value
            named |= {f"{name}.{key}": share for key, share in shares.items()} if several else shares
            total = total + self._weighted(at, name, value, len(targets[name]) / len(whole[name]))
        return total, named

    def _weighted(self, at: int, name: str, value: Tensor, share: float) -> Tensor:
        """A target's loss with its weight; `share` is this micro-batch's of the step."""
        if isinstance(self.weighting, FixedTasks):
            return value * self.weighting.weights[name]
        if self.log_variances is None:
            return value
        scale = 0.5 if self._spec(name).kind == "number" else 1.0
        log_variance: Tensor = self.log_variances[at]
        weighted: Tensor = value * torch.exp(-log_variance) * scale + log_variance * (share / 2)
        return weighted

    def _spec(self, name: str) -> Target:
        return self.schema.targets[name]

    def _view(self, name: str, signals: Signals) -> Signals:
        """What a model says of one target."""
        outputs = signals.logits[:, self.schema.part(name)]
        if self._spec(name).kind == "number":
            outputs = (outputs - self._spec(name).mean) / self._spec(name).deviation
        return Signals(outputs, signals.features)

    def _target(self, name: str, values: Tensor) -> Tensor:
        """What is to be predicted, in the same units."""
        spec = self._spec(name)
        if spec.kind != "number":
            return values
        return (values - spec.mean) / spec.deviation
