"""Flow of solution procedure.

Yim et al. 2017, "A Gift from Knowledge Distillation", equations 1 and 2: how features flow from one layer to a deeper
one is the matrix `G_ij = sum over positions of F1_i * F2_j / (H W)`, C1 x C2 for each input. The student's should
equal the teacher's: squared error.

Here: over all pairs of consecutive layers; where their spatial sizes differ, both are average-pooled to the smaller
one, and vectors count as maps of one position. The error is averaged over the C1 x C2 entries and over pairs, so that
the weight means the same at every width (the paper sums the entries). Student and teacher may differ in size
but not in channels, unless learned 1x1 projections map the student's layers to the teacher's widths (not in the paper).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.objectives.configs.relation import Fsp
from distillery.objectives.maps import as_map, pairs, same_size
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """The matrix between two layers of a network.

    Args:
        shallow: (B, C1, H1, W1).
        deep: (B, C2, H2, W2).

    Returns:
        (B, C1, C2), the mean over the positions of the smaller size.
    """
    one, two = (maps.flatten(2) for maps in same_size(shallow, deep))
    return one @ two.transpose(1, 2) / one.shape[2]


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Difference of the flows.

    Args:
        student: L >= 2 layers (B, C_l, H_l, W_l), shallow to deep.
        teacher: as many, with the same channels; sizes may differ.

    Returns:
        (B,) squared errors, averaged over entries and over the L - 1 pairs.
    """
    errors = [
        (flow(*ours) - flow(*theirs)).square().mean((1, 2))
        for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True)
    ]
    return torch.stack(errors).mean(0)


class FspObjective(Objective):
    """`fsp` over all layers; each row by itself, unlabelled rows like any other.

    Attributes:
        projections: one for each of the student's layers; the identity where the widths agree.
    """

    needs_features = True

    def __init__(self, config: Fsp, setting: Setting) -> None:
        super().__init__()
        self.layers = pairs(setting, config.name)
        if len(self.layers) < 2:
            raise UserError(f"fsp compares flows between layers and has one, {self.layers[0][0]}: name two or more")
        self.projections = nn.ModuleList()
        for ours, theirs in self.layers:
            width, wanted = setting.student[ours][0], setting.teacher[theirs][0]
            if width != wanted and not config.project:
                raise UserError(
                    f"fsp compares layers of equal width; the student's {ours} has {width} channels and the teacher's "
                    f"{theirs} {wanted}: name other layers, or set project: true"
                )
            self.projections.append(nn.Identity() if width == wanted else nn.Conv2d(width, wanted, 1, bias=False))

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses."""
        assert teacher is not None
        ours = [
            project(as_map(student.features[name]))
            for project, (name, _) in zip(self.projections, self.layers, strict=True)
        ]
        return fsp(ours, [as_map(teacher.features[name].detach()) for _, name in self.layers])
