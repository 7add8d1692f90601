"""One update of what is trained: the same however its rows are cut into micro-batches and processes."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillery.augment import augment
from distillery.columns import Columns
from distillery.config import TrainingConfig
from distillery.errors import UserError
from distillery.features import Capture
from distillery.models import Network
from distillery.objectives.loss import Loss
from distillery.objectives.weighted_sum import gather_rows
from distillery.sampling import Rows
from distillery.saved import channels_last
from distillery.signals import Batch, Signals, Teacher

STUDENT = "student"


class Cohort(nn.Module):
    """The networks that are trained together: a student, and its peers where there are any."""

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        self.names = tuple(networks)
        self._networks = nn.ModuleList(networks.values())

    @property
    def networks(self) -> dict[str, Network]:
        """By name, the student first."""
        return dict(zip(self.names, self._networks, strict=True))  # type: ignore[arg-type]

    def forward(self, inputs: Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Each network's own inputs to its outputs (B, O)."""
        return {name: network(*inputs[name]) for name, network in self.networks.items()}


class Step:
    """Gathers rows, asks everybody, and moves the parameters.

    What a trained network says is a voice: the student's, each peer's, and those of the student's exits (`exit_1`, ...
    from the shallowest). A lesson is the loss of one voice; it hears frozen teachers and other voices, the latter
    without a gradient.

    Attributes:
        optimizer: of all networks and of what the objectives train beside them. Its steps are those that one for each
            network would make, since it mixes no parameters.
        critic_optimizer: of the objectives' adversaries, which take turns with the student; None where there are none.
    """

    def __init__(
        self,
        cohort: Cohort,
        model: nn.Module,
        lessons: Mapping[str, Loss],
        optimizer: torch.optim.Optimizer,
        critic_optimizer: torch.optim.Optimizer | None,
        train: Columns,
        teachers: Mapping[str, Teacher],
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        """Takes everything that stays the same from step to step; `model` is the cohort as Accelerate wraps it.

        Raises:
            UserError: where a teacher has the name of a voice.
        """
        if twice := sorted(teachers.keys() & lessons.keys()):
            raise UserError(f"{', '.join(twice)}: a teacher has the name of one who is trained; take another")
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer
        self._networks = cohort.networks
        self._model = model
        self._lessons = dict(lessons)
        self._captures = {name: Capture(each, _asked(name, each, lessons)) for name, each in self._networks.items()}
        self._teachers = teachers
        self._needed = tuple(
            dict.fromkeys(
                [
                    *(name for network in self._networks.values() for name in network.schema.inputs),
                    *(name for teacher in teachers.values() for name in teacher.inputs),
                ]
            )
        )
        self._train = train
        self._config = config
        self._accelerator = accelerator

    def __call__(self, rows: Rows, position: float) -> dict[str, Tensor]:
        """Makes one update.

        Args:
            rows: (W,) row numbers of the whole step, the same in every process.
            position: of the step in the training, from 0 to 1.

        Returns:
            `loss` and `loss_<objective>`, with the voice in front where it is not the student's, detached; over
            processes they sum to the step's.
        """
        accelerator = self._accelerator
        self._model.train()
        whole = self._train.gather_targets(rows)
        # Every process cuts the same step and takes its own part of every micro-batch.
        parts = np.array_split(rows, min(self._config.accumulate, len(rows)))
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            own = part[accelerator.process_index :: accelerator.num_processes]
            batch = self._batch(own)
            targets = {
                name: target.to(batch.device, non_blocking=True)
                for name, target in self._train.gather_targets(own).items()
            }
            said = {key: teacher.signals(batch) for key, teacher in self._teachers.items()}
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                voices = self._voices(batch)
                said |= {name: _detached(signals) for name, signals in voices.items()}
                self._train_critics(voices, said, targets)
                loss = next(iter(voices.values())).logits.new_zeros(())
                named: dict[str, Tensor] = {}
                for voice, lesson in self._lessons.items():
                    value, shares = lesson(
                        voices[voice],
                        {key: said[key] for key in lesson.teachers},
                        targets,
                        whole,
                        position=position,
                        gather=partial(self._gather, rows=len(part)),
                        processes=accelerator.num_processes,
                    )
                    prefix = "" if voice == STUDENT else f"{voice}."
                    named |= {f"loss_{prefix}{key}": share for key, share in shares.items()}
                    loss = loss + value
                named["loss"] = loss
                if accelerator.num_processes > 1:
                    # DDP waits for a gradient of every parameter, also of a head that no objective reads.
                    loss = loss + sum(0.0 * signals.logits.sum() for signals in voices.values())
                # DDP averages gradients over processes, and this loss is a sum over them.
                accelerator.backward(loss * accelerator.num_processes)
            for name, value in named.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        self._average_gradients(parameter for lesson in self._lessons.values() for parameter in lesson.parameters())
        if self._config.clip_gradient is not None:
            self._clip(self._config.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    def close(self) -> None:
        """Takes the hooks off the networks."""
        for capture in self._captures.values():
            capture.remove()

    def _batch(self, rows: Rows) -> Batch:
        """Gathers rows, changes them at random, and puts them on the device."""
        place = self._accelerator.device
        gathered = self._train.gather(rows, self._needed)
        moved = {name: tensor.to(place, non_blocking=True) for name, tensor in zip(self._needed, gathered, strict=True)}
        changed = augment(moved, self._train.schema, self._config.augment, torch.default_generator)
        inputs = dict(zip(changed, channels_last(changed.values()), strict=True))
        return Batch(torch.from_numpy(rows), inputs, self._train.schema, place)

    def _voices(self, batch: Batch) -> dict[str, Signals]:
        """What everybody who is trained says, with gradients."""
        said = self._model({name: batch.read(network.schema) for name, network in self._networks.items()})
        voices: dict[str, Signals] = {}
        for name, outputs in said.items():
            features = self._captures[name].features
            voices[name] = Signals(outputs, features)
            for number, path in enumerate(self._networks[name].exits, 1):
                voices[f"exit_{number}"] = Signals(self._networks[name].in_own_unit(features[path]), features)
        return voices

    def _train_critics(
        self, voices: Mapping[str, Signals], said: Mapping[str, Signals], targets: Mapping[str, Tensor]
    ) -> None:
        """Adversaries move first, on what is said now; their gradients do not reach those who said it."""
        if self.critic_optimizer is None:
            return
        losses = [
            lesson.critic(_detached(voices[voice]), {key: said[key] for key in lesson.teachers}, targets)
            for voice, lesson in self._lessons.items()
        ]
        loss = torch.stack([each for each in losses if each is not None]).sum()
        self.critic_optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._average_gradients(
            parameter for lesson in self._lessons.values() for parameter in lesson.critic_parameters()
        )
        self.critic_optimizer.step()
        # The student's own backward pass runs through the adversary too, and must not leave anything in it.
        self.critic_optimizer.zero_grad()

    def _average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """DDP looks after the networks; what objectives train is averaged over processes here."""
        if self._accelerator.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")

    def _clip(self, largest: float) -> None:
        """Bounds the gradient of each network, together with what its own objectives train."""
        # Once for all of them: the scaler of float16 refuses a second time.
        self._accelerator.unscale_gradients(self.optimizer)
        for name, network in self._networks.items():
            lessons = [self._lessons[voice] for voice in _voices_of(name, network) if voice in self._lessons]
            trained = [parameter for lesson in lessons for parameter in lesson.parameters()]
            nn.utils.clip_grad_norm_([*network.parameters(), *trained], largest)

    def _gather(self, tensor: Tensor, rows: int) -> Tensor:
        """All processes' rows of a micro-batch."""
        processes = self._accelerator.num_processes
        if processes == 1:
            return tensor
        sizes = [len(range(rank, rows, processes)) for rank in range(processes)]
        return gather_rows(tensor, sizes, self._accelerator.process_index)


def _asked(name: str, network: Network, lessons: Mapping[str, Loss]) -> tuple[str, ...]:
    """The layers of a network that lessons read, be it as the one who learns or as the one who is heard."""
    voices = _voices_of(name, network)
    layers = [layer for voice in voices if voice in lessons for layer in lessons[voice].student_layers]
    layers += [
        layer for lesson in lessons.values() for voice in voices for layer in lesson.teacher_layers.get(voice, ())
    ]
    return tuple(dict.fromkeys([*layers, *network.exits]))


def _voices_of(name: str, network: Network) -> tuple[str, ...]:
    """What a network says: at its end, and at its exits, shallow to deep."""
    return (name, *(f"exit_{number}" for number, _ in enumerate(network.exits, 1)))


def _detached(signals: Signals) -> Signals:
    """The same values without a gradient."""
    return Signals(signals.logits.detach(), {name: value.detach() for name, value in signals.features.items()})
