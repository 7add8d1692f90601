"""Probabilistic knowledge transfer.

Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", equations 3 to 8: how
likely row i is to choose row j as its neighbour is `p(j | i) = K_ij / sum over k != i of K_ik`, with the cosine
affinity `K = (cos + 1) / 2`; the student's distributions should diverge little from the teacher's.

Here: the KL divergence of each row's distribution over the B - 1 others, averaged over rows. The paper sums over rows
(B times more). The code published with it averages over all B^2 entries, a row itself among its neighbours (about B
times less; its usual weight 30,000 at B = 64 is 469 here).
"""

import torch
from torch import Tensor

from distillery.objectives.configs.relation import Pkt
from distillery.objectives.objective import Setting
from distillery.objectives.relation import Relation, unit

EPSILON = 1e-7


def log_neighbours(vectors: Tensor) -> Tensor:
    """Logarithm of the probabilities with which each row chooses another.

    The epsilon stands on the affinity, so that probabilities stay such and the divergence is exactly 0 where they
    are equal. The affinity of a zero row is 1/2 to every other.

    Args:
        vectors: (B, D).

    Returns:
        (B, B - 1), without the row itself.
    """
    directions = unit(vectors)
    affinity = ((directions @ directions.T + 1) / 2).clamp_min(0) + EPSILON
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    affinity = affinity[others].view(len(vectors), len(vectors) - 1)
    return (affinity / affinity.sum(1, keepdim=True)).log()


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between both neighbourhoods; blind to the length of rows and to rotation of either side.

    Args:
        student: (B, D).
        teacher: (B, E).

    Returns:
        A scalar in nats, at least 0.
    """
    ours, theirs = log_neighbours(student), log_neighbours(teacher)
    return (theirs.exp() * (theirs - ours)).sum(1).mean()


class PktObjective(Relation):
    """`pkt` of the last layers, averaged over space."""

    def __init__(self, config: Pkt, setting: Setting) -> None:
        super().__init__(config.name, setting)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, D) and (B, E) to a scalar."""
        return pkt(student, teacher)
