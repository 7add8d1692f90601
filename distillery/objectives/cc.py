"""Correlation congruence.

Peng et al. 2019, "Correlation Congruence for Knowledge Distillation", equations 5 to 9: `|| C_t - C_s ||^2 / B^2`,
where C_ij is the correlation of rows i and j under a Gaussian kernel. Between vectors of length 1 the kernel
`exp(-gamma |x - y|^2)` is `exp(-2 gamma) exp(2 gamma <x, y>)`, of which the paper takes the Taylor series to order 2.
It compares *all* pairs; a popular code compares neighbours in the batch only and so depends on their order.
"""

import math

import torch
from torch import Tensor

from distillery.objectives.configs.relation import Cc
from distillery.objectives.objective import Setting
from distillery.objectives.relation import Relation, unit


def correlations(vectors: Tensor, gamma: float, order: int) -> Tensor:
    """Correlation of all pairs of rows.

    Args:
        vectors: (B, D), of any length.
        gamma: of the kernel.
        order: where its Taylor series ends.

    Returns:
        (B, B), about 1 on the diagonal.
    """
    directions = unit(vectors)
    exponent = 2 * gamma * (directions @ directions.T)
    series = torch.stack([exponent**power / math.factorial(power) for power in range(order + 1)])
    return math.exp(-2 * gamma) * series.sum(0)


def cc(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Squared difference of the correlations, averaged over all B^2 pairs; blind to the length of rows and to rotation.

    Args:
        student: (B, D).
        teacher: (B, E).
        gamma: of the kernel.
        order: of its Taylor series.

    Returns:
        A scalar, at least 0.
    """
    return (correlations(student, gamma, order) - correlations(teacher, gamma, order)).square().mean()


class CcObjective(Relation):
    """`cc` of the last layers, averaged over space."""

    def __init__(self, config: Cc, setting: Setting) -> None:
        super().__init__(config.name, setting)
        self.gamma = config.gamma
        self.order = config.order

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, D) and (B, E) to a scalar."""
        return cc(student, teacher, self.gamma, self.order)
