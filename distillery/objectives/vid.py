"""Variational information distillation: the teacher's features predicted under a Gaussian with a learned variance.

Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer", equations 4 to 6: a lower bound of the
mutual information is maximised by -log q(t | s) = sum over c, h, w of log sigma_c + (t - mu(s))^2 / (2 sigma_c^2), up
to a constant. The variance is sigma_c^2 = softplus(alpha_c) + a small number, one alpha a channel, *learned* like the
weights of mu: channels that cannot be predicted count less. The mean mu is three 1x1 convolutions with ReLU between
them. Here the sum is a mean over channels and positions, averaged over pairs of layers.

It is not 0 where the prediction is perfect: the log of the variance stays, and it may be negative.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.objectives.configs.feature import Vid
from distillery.objectives.maps import as_map, map_shape, pairs, same_size
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def vid(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Negative log-likelihood of each row, without the constant log(2 pi) / 2.

    Args:
        mean: prediction from the student's features, (B, C, H, W).
        variance: (C,), above 0.
        teacher: (B, C, H, W).

    Returns:
        (B,) means over channels and positions, in nats; at least that of log(variance) / 2.
    """
    spread = variance[:, None, None]
    return 0.5 * ((teacher - mean).square() / spread + spread.log()).mean((1, 2, 3))


class Gaussian(nn.Module):
    """What is learned about one pair of layers: mean from the student's features, variance of each channel."""

    def __init__(self, student: int, teacher: int, variance: float, smallest: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1),
        )
        self.smallest = smallest
        start = variance - smallest
        # The inverse of softplus, in the form that does not overflow.
        self.alpha = nn.Parameter(torch.full((teacher,), start + math.log(-math.expm1(-start))))

    @property
    def variance(self) -> Tensor:
        """(C,), above 0."""
        return functional.softplus(self.alpha) + self.smallest


class VidObjective(Objective):
    """`vid` with one Gaussian for each pair of layers, averaged over pairs."""

    needs_features = True

    def __init__(self, config: Vid, setting: Setting) -> None:
        super().__init__()
        self.pairs = pairs(setting, "vid")
        self.gaussians = nn.ModuleList(
            Gaussian(
                map_shape(setting.student[mine])[0],
                map_shape(setting.teacher[theirs])[0],
                config.initial_variance,
                config.smallest_variance,
            )
            for mine, theirs in self.pairs
        )

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; unlabelled rows count like any other."""
        assert teacher is not None
        losses = []
        for gaussian, (mine, theirs) in zip(self.gaussians, self.pairs, strict=True):
            assert isinstance(gaussian, Gaussian)
            ours, goal = same_size(as_map(student.features[mine]), as_map(teacher.features[theirs].detach()))
            losses.append(vid(gaussian.mean(ours), gaussian.variance, goal))
        return torch.stack(losses).mean(0)
