"""Attention transfer: where in a map the activity is.

Zagoruyko & Komodakis 2017, "Paying More Attention to Attention", section 3.1, activation-based, with F_mean^2: the
attention at a position is the mean over channels of the squared activations; the map is divided by its L2 norm. The
loss is the *squared* L2 distance of the two normalised maps, summed over positions, averaged over pairs of layers.

Three forms are about. The paper's equation 2 has the norm itself, times beta / 2. Its code, and most after it, has
the *mean* of the squares over positions, which shrinks with the area of the map and so is 64 times smaller at 8 x 8.
This one is the sum: as the maps have norm 1 it is 2 - 2 cos(student, teacher), between 0 and 2 at every size, the
same for a map and its enlargement. beta = 1000 in the paper's code on 32 x 32, 16 x 16 and 8 x 8 is a weight of
500 (1/1024 + 1/256 + 1/64) = 10.3 here. Sum or mean over channels makes no difference.
"""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.errors import UserError
from distillery.objectives.configs.feature import Attention
from distillery.objectives.maps import as_map, common_size, pairs, same_size
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals

# A map without activity has no direction; below this norm (activations of about 1e-4) the gradient stops growing.
SMALLEST_NORM = 1e-8


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of each row's normalised attention maps.

    Of two sizes the larger map is pooled to the smaller one: the map of squares, as averages of the features
    themselves would let activity of opposite sign vanish.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, any C, any H, any W).

    Returns:
        (B,) sums over positions, in 0..2; 0 and stationary where the two are equal up to a factor.
    """
    maps = same_size(*(each.square().mean(1, keepdim=True) for each in (student, teacher)))
    ours, theirs = (functional.normalize(each.flatten(1), dim=1, eps=SMALLEST_NORM) for each in maps)
    return (ours - theirs).square().sum(1)


class AttentionObjective(Objective):
    """`attention`, averaged over the pairs of layers that have more than one position in common."""

    needs_features = True

    def __init__(self, config: Attention, setting: Setting) -> None:
        super().__init__()
        # At a single position every normalised map is 1: nothing to learn, and it would only dilute the others.
        self.pairs = [
            (mine, theirs)
            for mine, theirs in pairs(setting, "attention")
            if common_size(setting.student[mine], setting.teacher[theirs]) != (1, 1)
        ]
        if not self.pairs:
            raise UserError("attention: no pair of layers is a map with more than one position; name others (layers)")

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """(B,) losses; unlabelled rows count like any other."""
        assert teacher is not None
        losses = [
            attention(as_map(student.features[mine]), as_map(teacher.features[theirs].detach()))
            for mine, theirs in self.pairs
        ]
        return torch.stack(losses).mean(0)
