"""Relational knowledge distillation.

Park et al. 2019, "Relational Knowledge Distillation", equations 5 to 10: smooth-L1 (Huber, delta 1) between the
student's and the teacher's distances of pairs, divided by their mean, and between the cosines of the angles that
triples form. Averaged over *all* B^2 pairs and B^3 triples, the degenerate ones included, as in the code published
with it; the weights 25 and 50 belong to these means.
"""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.objectives.configs.relation import Rkd
from distillery.objectives.objective import Setting
from distillery.objectives.relation import Relation, distances, rounding, unit


def relative_distances(vectors: Tensor) -> Tensor:
    """Euclidean distances of all pairs, divided by the mean of the positive ones.

    Args:
        vectors: (B, D).

    Returns:
        (B, B); zeros where all rows are equal.
    """
    plain = distances(vectors)
    mean = plain.sum() / (plain > 0).sum().clamp_min(1)
    return plain / torch.where(mean > 0, mean, 1.0)


def angles(vectors: Tensor) -> Tensor:
    """Cosine of the angle at j between i and k, for all triples.

    Args:
        vectors: (B, D).

    Returns:
        (B, B, B), first the vertex j; 0 where row i or k equals row j.
    """
    towards = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1), rounding(vectors))
    return towards @ towards.transpose(1, 2)


def rkd(student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """The weighted sum of both; blind to scale, rotation and translation of either side.

    Args:
        student: (B, D).
        teacher: (B, E).
        distance_weight: factor on the mean over pairs.
        angle_weight: factor on the mean over triples.

    Returns:
        A scalar, at least 0.
    """
    pairs = functional.smooth_l1_loss(relative_distances(student), relative_distances(teacher))
    triples = functional.smooth_l1_loss(angles(student), angles(teacher))
    return distance_weight * pairs + angle_weight * triples


class RkdObjective(Relation):
    """`rkd` of the last layers, averaged over space."""

    def __init__(self, config: Rkd, setting: Setting) -> None:
        super().__init__(config.name, setting)
        self.distance_weight = config.distance_weight
        self.angle_weight = config.angle_weight

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, D) and (B, E) to a scalar."""
        return rkd(student, teacher, self.distance_weight, self.angle_weight)
