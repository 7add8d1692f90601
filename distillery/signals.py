"""What a model says about a batch, and who says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distillery.models.network import Network


@dataclass(frozen=True)
class Batch:
    """Rows on their way through training.

    Attributes:
        rows: (B,) int64 row numbers in the training split, on the CPU.
        inputs: one tensor (B, *shape) for each input of the schema.
        target: (B,) int64 class numbers, -1 where unlabelled.
    """

    rows: Tensor
    inputs: tuple[Tensor, ...]
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
    """Anything that says something about a batch; where it comes from is nobody else's business."""

    def signals(self, batch: Batch) -> Signals:
        """What the teacher says about these rows, without a gradient."""
        ...


class LiveTeacher:
    """A frozen model that is run in every step."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    def signals(self, batch: Batch) -> Signals:
        """Runs the model on the batch as the student sees it."""
        with torch.no_grad():
            return Signals(self.network(*batch.inputs))
