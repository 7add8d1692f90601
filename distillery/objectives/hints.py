"""Hints: the teacher's features after a learned projector.

Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3: the squared distance between the teacher's hint
and the student's guided features, which a learned regressor lifts to the teacher's width. Here the distance is a
mean over channels and positions and not half a sum, so the weight means the same at every size; the regressor is a
1x1 convolution with a bias (a linear layer on vectors) and no activation, as in the paper's later comparisons; both
maps are pooled to the smaller size first. The paper trains one pair in a stage of its own; here it is a term of the
loss, averaged over pairs.
"""

import torch
from torch import Tensor, nn

from distillery.objectives.configs.feature import Hints
from distillery.objectives.maps import as_map, map_shape, pairs, same_size
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def hints(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of each row.

    Args:
        projected: the student's features in the teacher's shape, (B, C, H, W).
        teacher: (B, C, H, W).

    Returns:
        (B,) means over channels and positions, at least 0; 0 and stationary where the two are equal.
    """
    return (projected - teacher).square().mean((1, 2, 3))


class HintsObjective(Objective):
    """`hints` behind one projector for each pair of layers, averaged over pairs."""

    needs_features = True

    def __init__(self, config: Hints, setting: Setting) -> None:
        super().__init__()
        self.pairs = pairs(setting, "hints")
        self.projectors = nn.ModuleList(
            nn.Conv2d(map_shape(setting.student[mine])[0], map_shape(setting.teacher[theirs])[0], 1)
            for mine, theirs in self.pairs
        )

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; unlabelled rows count like any other."""
        assert teacher is not None
        losses = []
        for projector, (mine, theirs) in zip(self.projectors, self.pairs, strict=True):
            # An average and a 1x1 convolution change places freely, and this order is the cheaper one.
            ours, goal = same_size(as_map(student.features[mine]), as_map(teacher.features[theirs].detach()))
            losses.append(hints(projector(ours), goal))
        return torch.stack(losses).mean(0)
