"""What a model says about a batch, and who says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distillery.features import Capture
from distillery.models.network import Network
from distillery.schema import Schema


@dataclass(frozen=True)
class Batch:
    """Rows on their way through training.

    Attributes:
        rows: (B,) int64 row numbers in the training split, on the CPU.
        inputs: name -> (B, *shape), what student and live teachers read.
        schema: what the inputs hold; a model may read only some of it.
        device: where the inputs lie, and where signals are wanted.
    """

    rows: Tensor
    inputs: Mapping[str, Tensor]
    schema: Schema
    device: torch.device

    def read(self, wanted: Schema) -> tuple[Tensor, ...]:
        """The inputs of a model with that schema, in its order."""
        if wanted.inputs == self.schema.inputs:
            return tuple(self.inputs[name] for name in wanted.inputs)
        picks = self.schema.picks(wanted)
        return tuple(self.inputs[name] if pick is None else self.inputs[name][:, pick] for name, pick in picks.items())


@dataclass(frozen=True)
class Signals:
    """What a model says about a batch.

    Attributes:
        logits: (B, O), the outputs of all targets: logits without a temperature, numbers in their own unit.
        features: name -> activation (B, ...), where an objective asks for them.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Teacher(Protocol):
    """Anything that says something about a batch; where it comes from is nobody else's business.

    Attributes:
        inputs: names of the inputs that it has to be given.
    """

    inputs: tuple[str, ...]

    def signals(self, batch: Batch) -> Signals:
        """What the teacher says about these rows, without a gradient."""
        ...


class LiveTeacher:
    """A frozen model that is run in every step."""

    def __init__(self, network: Network, layers: Sequence[str] = ()) -> None:
        """Takes a model, whose parameters no longer move, and the layers whose features are asked for."""
        self.network = network.eval().requires_grad_(False)
        self.inputs = tuple(network.schema.inputs)
        self._capture = Capture(network, layers)

    def signals(self, batch: Batch) -> Signals:
        """Runs the model on the batch as the student sees it."""
        self.network.to(batch.device)
        with torch.no_grad():
            logits = self.network(*batch.read(self.network.schema))
        return Signals(logits, self._capture.features)

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._capture.remove()


class OneTarget:
    """A teacher of several targets, heard about one of them."""

    def __init__(self, teacher: Teacher, schema: Schema, target: str) -> None:
        """Takes the teacher, what it predicts, and the target that it is asked about."""
        self._teacher = teacher
        self._part = schema.part(target)
        self.inputs = teacher.inputs

    def signals(self, batch: Batch) -> Signals:
        """What it says of that target, and its features."""
        said = self._teacher.signals(batch)
        return Signals(said.logits[:, self._part], said.features)
