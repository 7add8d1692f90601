"""What objectives over relations share: vectors from features, their directions, and the layer that is compared."""

from abc import abstractmethod

import torch
from torch import Tensor

from distillery.objectives.maps import as_map, pairs
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def pooled(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C), the mean over space; (B, D) as it is; at least float32."""
    return as_map(features).mean((2, 3))


def rounding(vectors: Tensor) -> Tensor:
    """The distance that rounding alone may put between rows that are equal, a scalar.

    A batch may hold a row twice, and the same input need not give the same features to the last bit. What divides by
    a distance must take such a pair for equal, or its gradient grows by the inverse of the rounding.

    Args:
        vectors: (B, D).
    """
    longest: Tensor = torch.linalg.vector_norm(vectors.detach(), dim=1).amax()
    return 32 * torch.finfo(vectors.dtype).eps * longest


def distances(vectors: Tensor) -> Tensor:
    """Euclidean distances of all pairs.

    Args:
        vectors: (B, D).

    Returns:
        (B, B); exactly 0, without a gradient, between equal rows.
    """
    # The exact form: with Gram matrices, equal rows would get the square root of a rounding error.
    plain = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(plain <= rounding(vectors), 0.0, plain)


def unit(vectors: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """(..., D) divided by their length; one that is no longer than the floor becomes zero, without a gradient.

    An epsilon in the denominator would be as finite, but multiply the gradient of a zero vector by its inverse.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    zero = length <= floor
    return torch.where(zero, 0.0, vectors / torch.where(zero, 1.0, length))


class Relation(Objective):
    """Compares the rows of a batch by the last layer of each side; widths and spatial sizes may differ.

    A subclass says how, in `compare`. Unlabelled rows count like any other.
    """

    needs_features = True
    over_batch = True

    def __init__(self, name: str, setting: Setting) -> None:
        super().__init__()
        self.student_layer, self.teacher_layer = pairs(setting, name)[-1]

    def vectors(self, features: Tensor) -> Tensor:
        """(B, ...) features to the (B, D) vectors to compare: the mean over space."""
        return pooled(features)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, D) and (B, E) vectors to a scalar."""

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """A scalar for the batch; 0 for one row, which has no relations."""
        assert teacher is not None
        ours = self.vectors(student.features[self.student_layer])
        theirs = self.vectors(teacher.features[self.teacher_layer].detach())
        return self.compare(ours, theirs) if len(ours) > 1 else ours.sum() * 0
