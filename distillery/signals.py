"""What a model says about a batch, and who says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distillery.features import Capture
from distillery.models.network import Network


@dataclass(frozen=True)
class Batch:
    """Rows on their way through training.

    Attributes:
        rows: (B,) int64 row numbers in the training split, on the CPU.
        inputs: name -> (B, *shape), what student and live teachers read.
        target: (B,) int64 class numbers, -1 where unlabelled.
    """

    rows: Tensor
    inputs: Mapping[str, Tensor]
    target: Tensor


@dataclass(frozen=True)
class Signals:
    """What a model says about a batch.

    Attributes:
        logits: (B, C), without a temperature.
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
        self.network.to(batch.target.device)
        with torch.no_grad():
            logits = self.network(*(batch.inputs[name] for name in self.inputs))
        return Signals(logits, self._capture.features)
