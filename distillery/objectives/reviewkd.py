"""Knowledge review: later layers of the student are fused into earlier ones, then compared at several sizes.

Chen et al. 2021, "Distilling Knowledge via Knowledge Review", section 3.3. From deep to shallow, attention-based
fusion (ABF): a 1x1 convolution brings the student's features to a common width; the fused map of the level above is
enlarged to their size; a 1x1 convolution and a sigmoid give one mask for each of the two; the masked sum is passed on
to the next level, and after a 3x3 convolution it is compared with the teacher's features by the hierarchical context
loss (HCL).

Two things differ from the paper's code. Batch normalisation in the fusion would make the loss of a row depend on the
others in its micro-batch; the common-width maps are normalised within each row instead (one group), and the last
convolution has a bias only. And it averages over levels where the paper sums.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.objectives.configs.feature import ReviewKd
from distillery.objectives.maps import as_map, map_shape, pairs, pool, same_size
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals

SIZES = (4, 2, 1)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL: mean squared errors of maps pooled to several sizes, the smaller ones counting less.

    The full size has weight 1; of 4, 2 and 1 those below the map's smaller side follow, each with half the weight of
    the one before; the sum is divided by the sum of the weights.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).

    Returns:
        (B,) losses, each error a mean over channels and positions; 0 and stationary where the two are equal.
    """
    gap = student - teacher
    loss, weight, total = gap.square().mean((1, 2, 3)), 1.0, 1.0
    for size in SIZES:
        if size < min(gap.shape[2:]):
            weight /= 2
            total += weight
            # Pooling is linear: the difference of pooled maps is the pooled difference.
            loss = loss + weight * pool(gap, (size, size)).square().mean((1, 2, 3))
    return loss / total


class Fusion(nn.Module):
    """ABF of one level."""

    def __init__(self, student: int, common: int, teacher: int, *, deepest: bool) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(student, common, 1, bias=False), nn.GroupNorm(1, common))
        self.masks = None if deepest else nn.Sequential(nn.Conv2d(2 * common, 2, 1), nn.Sigmoid())
        self.widen = nn.Conv2d(common, teacher, 3, padding=1)

    def forward(self, feature: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step of the review.

        Args:
            feature: the student's, (B, student, H, W).
            above: fused map of the level above, (B, common, any, any); None at the deepest.

        Returns:
            The fused map (B, common, H, W), and what is compared with the teacher, (B, teacher, H, W).
        """
        fused = self.narrow(feature)
        if self.masks is not None:
            assert above is not None
            above = functional.interpolate(above, tuple(fused.shape[2:]), mode="nearest")
            masks = self.masks(torch.cat([fused, above], dim=1))
            fused = fused * masks[:, :1] + above * masks[:, 1:]
        return fused, self.widen(fused)


class ReviewKdObjective(Objective):
    """`hierarchical_context` behind the fusion of each level, averaged over levels."""

    needs_features = True

    def __init__(self, config: ReviewKd, setting: Setting) -> None:
        super().__init__()
        self.pairs = pairs(setting, "reviewkd")[::-1]
        widths = [
            (map_shape(setting.student[mine])[0], map_shape(setting.teacher[theirs])[0]) for mine, theirs in self.pairs
        ]
        common = min(config.channels, widths[0][0])
        self.fusions = nn.ModuleList(
            Fusion(student, common, teacher, deepest=level == 0) for level, (student, teacher) in enumerate(widths)
        )

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; unlabelled rows count like any other."""
        assert teacher is not None
        losses, fused = [], None
        for fusion, (mine, theirs) in zip(self.fusions, self.pairs, strict=True):
            fused, reviewed = fusion(as_map(student.features[mine]), fused)
            losses.append(hierarchical_context(*same_size(reviewed, as_map(teacher.features[theirs].detach()))))
        return torch.stack(losses).mean(0)
