"""One update of a student: the same however its rows are cut into micro-batches and processes."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillery.augment import augment
from distillery.columns import Columns
from distillery.config import TrainingConfig
from distillery.features import Capture
from distillery.models import Network
from distillery.objectives.weighted_sum import WeightedSum, gather_rows
from distillery.sampling import Rows
from distillery.saved import channels_last
from distillery.signals import Batch, Signals, Teacher


class Step:
    """Gathers rows, asks student and teachers, and moves the parameters.

    Attributes:
        optimizer: of the student and of what the objectives train beside it.
        critic_optimizer: of the objectives' adversaries, which take turns with the student; None where there are none.
    """

    def __init__(
        self,
        network: Network,
        model: nn.Module,
        objectives: WeightedSum,
        optimizer: torch.optim.Optimizer,
        critic_optimizer: torch.optim.Optimizer | None,
        train: Columns,
        teachers: Mapping[str, Teacher],
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        """Takes everything that stays the same from step to step; `model` is the network as Accelerate wraps it."""
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer
        self._names = tuple(network.schema.inputs)
        self._needed = tuple(
            dict.fromkeys([*self._names, *(name for each in teachers.values() for name in each.inputs)])
        )
        self._model = model
        self._capture = Capture(network, objectives.student_layers)
        self._objectives = objectives
        self._train = train
        self._teachers = teachers
        self._config = config
        self._accelerator = accelerator

    def __call__(self, rows: Rows, position: float) -> dict[str, Tensor]:
        """Makes one update.

        Args:
            rows: (W,) row numbers of the whole step, the same in every process.
            position: of the step in the training, from 0 to 1.

        Returns:
            `loss` and `loss_<objective>`, detached; over processes they sum to the step's.
        """
        accelerator = self._accelerator
        self._model.train()
        whole = self._train.targets(rows)
        # Every process cuts the same step and takes its own part of every micro-batch.
        parts = np.array_split(rows, min(self._config.accumulate, len(rows)))
        named: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            batch = self._batch(part[accelerator.process_index :: accelerator.num_processes])
            said = {key: teacher.signals(batch) for key, teacher in self._teachers.items()}
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                logits = self._model(*(batch.inputs[name] for name in self._names))
                student = Signals(logits, self._capture.features)
                self._train_critics(student, said, batch.target)
                loss, shares = self._objectives(
                    student,
                    said,
                    batch.target,
                    whole,
                    position=position,
                    gather=partial(self._gather, rows=len(part)),
                    processes=accelerator.num_processes,
                )
                if accelerator.num_processes > 1:
                    # DDP waits for a gradient of every parameter, also of a head that no objective reads.
                    loss = loss + 0.0 * logits.sum()
                # DDP averages gradients over processes, and this loss is a sum over them.
                accelerator.backward(loss * accelerator.num_processes)
            for name, value in {"loss": loss, **{f"loss_{key}": share for key, share in shares.items()}}.items():
                named[name] = named[name] + value.detach() if name in named else value.detach()
        self._average_gradients()
        if self._config.clip_gradient is not None:
            accelerator.clip_grad_norm_(
                [*self._model.parameters(), *self._objectives.parameters()], self._config.clip_gradient
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return named

    def close(self) -> None:
        """Takes the hooks off the network."""
        self._capture.remove()

    def _batch(self, rows: Rows) -> Batch:
        """Gathers rows, changes them at random, and puts them on the device."""
        place = self._accelerator.device
        gathered = self._train.gather(rows, self._needed)
        moved = {name: tensor.to(place, non_blocking=True) for name, tensor in zip(self._needed, gathered, strict=True)}
        changed = augment(moved, self._train.schema, self._config.augment, torch.default_generator)
        inputs = dict(zip(changed, channels_last(changed.values()), strict=True))
        return Batch(torch.from_numpy(rows), inputs, self._train.targets(rows).to(place, non_blocking=True))

    def _train_critics(self, student: Signals, said: Mapping[str, Signals], target: Tensor) -> None:
        """Adversaries move first, on what the student says now; their gradients do not reach it."""
        if self.critic_optimizer is None:
            return
        shown = Signals(student.logits.detach(), {name: value.detach() for name, value in student.features.items()})
        losses = [
            objective.critic(shown, said[key], target)
            for (_, key), objective in self._objectives.objectives.items()
            if key in said
        ]
        loss = torch.stack([each for each in losses if each is not None]).sum()
        self.critic_optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._average_gradients(self._objectives.critic_parameters())
        self.critic_optimizer.step()
        # The student's own backward pass runs through the adversary too, and must not leave anything in it.
        self.critic_optimizer.zero_grad()

    def _average_gradients(self, parameters: list[nn.Parameter] | None = None) -> None:
        """DDP looks after the model; what objectives train is averaged over processes here."""
        if self._accelerator.num_processes == 1:
            return
        for parameter in self._objectives.parameters() if parameters is None else parameters:
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")

    def _gather(self, tensor: Tensor, rows: int) -> Tensor:
        """All processes' rows of a micro-batch."""
        processes = self._accelerator.num_processes
        if processes == 1:
            return tensor
        sizes = [len(range(rank, rows, processes)) for rank in range(processes)]
        return gather_rows(tensor, sizes, self._accelerator.process_index)
