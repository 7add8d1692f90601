"""Contrastive representation distillation, within the batch.

Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation": features of student and teacher are embedded
linearly, normalised, and a student's embedding must be closer to the teacher's of the same row (the positive) than to
those of other rows (the negatives); and the other way round.

The paper keeps embeddings of *all* training rows in two memory banks, draws K = 16,384 negatives of each row from
them, moves them with momentum 0.5 and scores positive and negatives one by one (its equation 10, with a normalising
constant that is estimated once). This is the form without a bank: the negatives are the other B - 1 rows of the
batch, fresh and not remembered, and the score is the cross-entropy of picking the positive among B (InfoNCE, van den
Oord et al. 2018), which needs no constant. Memory grows with B^2 and never with the data, row ids are not needed; but
there are fewer negatives, so larger batches help. Either is a lower bound of mutual information: here
I(student; teacher) >= log(B) - loss. A row that is drawn twice into a batch counts as its own negative.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.objectives.configs.feature import Crd
from distillery.objectives.maps import as_map, pairs
from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals


def crd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the same row among the batch, from the student's side and from the teacher's.

    Args:
        student: embeddings (B, D) of length 1.
        teacher: embeddings (B, D) of length 1.
        temperature: divides the cosines.

    Returns:
        Scalar in nats, mean over rows and over the two directions; at least 0, not 0 where the two are equal, log(B)
        where embeddings say nothing, exactly 0 for a single row.
    """
    scores = student @ teacher.T / temperature
    same = torch.arange(len(scores), device=scores.device)
    return 0.5 * (functional.cross_entropy(scores, same) + functional.cross_entropy(scores.T, same))


class Embedding(nn.Module):
    """Averages a map over positions, maps it linearly to D numbers, and scales them to length 1."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dimensions)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C) to (B, D)."""
        return functional.normalize(self.linear(as_map(feature).mean((2, 3))), dim=1)


class CrdObjective(Objective):
    """`crd` with an embedding of either side, averaged over pairs of layers; by default the deepest pair alone."""

    needs_features = True
    over_batch = True

    def __init__(self, config: Crd, setting: Setting) -> None:
        super().__init__()
        self.temperature = config.temperature
        found = pairs(setting, "crd")
        self.pairs = found[-1:] if config.layers is None else found
        self.student = nn.ModuleList(Embedding(setting.student[mine][0], config.dimensions) for mine, _ in self.pairs)
        self.teacher = nn.ModuleList(Embedding(setting.teacher[each][0], config.dimensions) for _, each in self.pairs)

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """Scalar; unlabelled rows count like any other."""
        assert teacher is not None
        losses = []
        for ours, goal, (mine, theirs) in zip(self.student, self.teacher, self.pairs, strict=True):
            embedded = goal(teacher.features[theirs].detach())
            losses.append(crd(ours(student.features[mine]), embedded, self.temperature))
        return torch.stack(losses).mean()
