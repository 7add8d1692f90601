"""Similarity-preserving knowledge distillation.

Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", equations 2 to 4: inputs that look alike to the
teacher should look alike to the student. `|| G_t - G_s ||_F^2 / B^2`, where G is the Gram matrix of the flattened
features with each row divided by its L2 norm (with the L1 norm the loss is dozens of times smaller).
"""

from torch import Tensor

from distillery.objectives.configs.relation import Sp
from distillery.objectives.maps import as_map
from distillery.objectives.objective import Setting
from distillery.objectives.relation import Relation, unit


def similarities(vectors: Tensor) -> Tensor:
    """(B, D) to (B, B) inner products, each row of length 1 (0 for a zero row)."""
    return unit(vectors @ vectors.T)


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the similarities, averaged over all B^2 pairs; blind to scale and rotation of either side.

    Args:
        student: (B, D).
        teacher: (B, E).

    Returns:
        A scalar, at least 0.
    """
    return (similarities(student) - similarities(teacher)).square().mean()


class SpObjective(Relation):
    """`sp` of the last layers, flattened as in the paper."""

    def __init__(self, config: Sp, setting: Setting) -> None:
        super().__init__(config.name, setting)

    def vectors(self, features: Tensor) -> Tensor:
        """(B, ...) to (B, D), every position kept."""
        return as_map(features).flatten(1)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, D) and (B, E) to a scalar."""
        return sp(student, teacher)
