"""What is minimised for one target: named objectives, their weights, and whom they listen to."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distillery.config import Mean, Mixing, Schedule, at
from distillery.mixing import teacher_weights
from distillery.objectives.objective import Objective
from distillery.signals import Signals

ALONE = "label"
Gather = Callable[[Tensor], Tensor]


class WeightedSum(nn.Module):
    """A module, so that an optimiser finds what the objectives train.

    An objective that listens to a teacher stands once for each teacher, with its own parameters.

    Attributes:
        parts: objective -> teacher -> module; an objective that needs no teacher stands under `label`.
        weights: objective -> number or schedule.
        schedules: objective -> parameter -> schedule of that parameter.
        mixing: how much each teacher counts for each row.
        student_layers: whose features the objectives read.
        teacher_layers: the same for each teacher.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Objective]],
        weights: Mapping[str, float | Schedule],
        schedules: Mapping[str, Mapping[str, Schedule]] | None = None,
        mixing: Mixing | None = None,
        *,
        student_layers: tuple[str, ...] = (),
        teacher_layers: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.ModuleDict(dict(each)) for name, each in parts.items()})
        self.weights = dict(weights)
        self.schedules = {name: dict(each) for name, each in (schedules or {}).items()}
        self.mixing = mixing or Mean(name="mean")
        self.student_layers = student_layers
        self.teacher_layers = dict(teacher_layers or {})

    @property
    def objectives(self) -> dict[tuple[str, str], Objective]:
        """(Objective, teacher) -> module."""
        found: dict[tuple[str, str], Objective] = {}
        for name, each in self.parts.items():
            assert isinstance(each, nn.ModuleDict)
            for key, part in each.items():
                assert isinstance(part, Objective)
                found[name, key] = part
        return found

    def forward(
        self,
        student: Signals,
        teachers: Mapping[str, Signals],
        target: Tensor,
        whole: Tensor,
        *,
        position: float = 0.0,
        gather: Gather = lambda tensor: tensor,
        processes: int = 1,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all objectives.

        A row-wise objective is averaged over the rows of the whole step that it applies to, so that the loss of a step
        is the sum over its micro-batches and processes, however it is cut. An objective over the batch sees the rows of
        all processes, and each process accounts for its share.

        Args:
            student: signals of this micro-batch.
            teachers: each teacher's.
            target: (B,) or (B, L), of this micro-batch; see `distillery.schema.Target`.
            whole: (W,) or (W, L), of the whole step, of which this micro-batch is a part; on any device.
            position: of this step in the training, from 0 to 1; what schedules go by.
            gather: brings the rows of all processes together, with a gradient to one's own.
            processes: their number.

        Returns:
            The loss of this micro-batch, a scalar, and by name each objective's unweighted share of it; with several
            teachers also `<objective>_<teacher>` and `teacher_weight_<teacher>`.
        """
        shares = teacher_weights(self.mixing, {key: said.logits for key, said in teachers.items()}, target)
        several = len(teachers) > 1
        named: dict[str, Tensor] = {}
        if several:
            named = {f"teacher_weight_{key}": share.sum() / len(whole) for key, share in shares.items()}
        total = student.logits.new_zeros(())
        for (name, key), objective in self.objectives.items():
            for parameter, schedule in self.schedules.get(name, {}).items():
                setattr(objective, parameter, schedule.at(position))
            said = teachers.get(key)
            if objective.over_batch:
                everyone = _gathered(student, gather), said and _gathered(said, gather), gather(target)
                value = objective(*everyone) / processes
                value = value if said is None else value * gather(shares[key]).mean()
            else:
                rows = objective.applies(whole).sum().clamp_min(1)
                losses = objective(student, said, target)
                value = (losses if said is None else losses * shares[key]).sum() / rows
            if several and said is not None:
                named[f"{name}_{key}"] = value
            named[name] = named[name] + value if name in named else value
            weight = self.weights[name]
            total = total + at(weight, position) * value
        return total, named


def _gathered(signals: Signals, gather: Gather) -> Signals:
    """The signals of all processes."""
    return Signals(gather(signals.logits), {name: gather(tensor) for name, tensor in signals.features.items()})


class _GatherRows(torch.autograd.Function):
    """All processes' rows; the gradient of the sum of their losses goes to one's own part."""

    @staticmethod
    def forward(context: object, tensor: Tensor, sizes: list[int], rank: int) -> Tensor:
        context.start, context.size = sum(sizes[:rank]), len(tensor)  # type: ignore[attr-defined]
        context.processes = len(sizes)  # type: ignore[attr-defined]
        # Collectives want equal shapes; the last batch of an epoch may not cut evenly.
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        start, size, processes = context.start, context.size, context.processes  # type: ignore[attr-defined]
        # Every process holds the same share of the loss, so the sum of their gradients is a multiple of one's own.
        return gradient[start : start + size] * processes, None, None


def gather_rows(tensor: Tensor, sizes: list[int], rank: int) -> Tensor:
    """Rows of all processes, in order of the processes.

    Every process computes the same share of a loss of all rows, and gets the gradient of the whole at its own rows.

    Args:
        tensor: (B, ...) this process's rows.
        sizes: rows of each process.
        rank: of this process.
    """
    return _GatherRows.apply(tensor, sizes, rank)  # type: ignore[no-any-return, no-untyped-call]
