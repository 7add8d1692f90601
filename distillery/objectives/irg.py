"""Instance relationship graph.

Liu et al. 2019, "Knowledge Distillation via Instance Relationship Graph", sections 3.1 to 3.3: at each layer the batch
is a graph, its vertices the features of the rows and its edges their squared Euclidean distances; from layer to layer
the graph is transformed. The student copies three things:

- vertices: the outputs of each row (at other layers widths differ, and the paper leaves them out);
- edges: the distances between all rows, at each layer;
- transformations, from each layer to the next: how far every row moves, and how much every edge grows.

The paper compares plain distances, which grow with width and scale. Here distances are divided by their mean over the
pairs of different rows (movements by their mean over rows), so that networks of any width compare, and every term is
a mean: over rows and outputs, over pairs, over layers. A row moves between layers of different widths, which the
paper leaves open: the wider vector is averaged down to the narrower one, over neighbouring channels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from distillery.objectives.configs.graph import Irg
from distillery.objectives.maps import pairs, pool
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.relation import distances, pooled, rounding
from distillery.signals import Signals


def edges(vectors: Tensor) -> Tensor:
    """Squared distances of all pairs of rows, divided by their mean over pairs of different rows.

    Args:
        vectors: (B, D).

    Returns:
        (B, B); zeros where all rows are equal.
    """
    return _relative(distances(vectors).square(), count=len(vectors) * (len(vectors) - 1))


def movements(before: Tensor, after: Tensor) -> Tensor:
    """How far each row moves from one layer to the next, relative to the mean over rows.

    Args:
        before: (B, D).
        after: (B, E).

    Returns:
        (B,) squared distances over their mean.
    """
    width = min(before.shape[1], after.shape[1])
    one, two = (pool(vectors[:, None, None], (1, width)).flatten(1) for vectors in (before, after))
    length = torch.linalg.vector_norm(one - two, dim=1)
    still = length <= torch.maximum(rounding(one), rounding(two))
    return _relative(torch.where(still, 0.0, length).square(), count=len(before))


def _relative(values: Tensor, count: int) -> Tensor:
    """Values over their mean, of `count` of them; zeros stay zeros."""
    mean = values.sum() / max(1, count)
    return values / torch.where(mean > 0, mean, 1.0)


def graph(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Difference of the edges, and of the transformations.

    Args:
        student: L layers (B, D_l), shallow to deep.
        teacher: as many, (B, E_l).

    Returns:
        Two scalars: mean squared differences over pairs and layers; over the L - 1 steps the mean over rows of
        the movements plus that over pairs of the growths, 0 for a single layer.
    """
    ours, theirs = ([edges(vectors) for vectors in side] for side in (student, teacher))
    edge = torch.stack([(s - t).square().mean() for s, t in zip(ours, theirs, strict=True)]).mean()
    moves = zip(pairwise(student), pairwise(teacher), strict=True)
    growths = zip(pairwise(ours), pairwise(theirs), strict=True)
    steps = [
        (movements(*s) - movements(*t)).square().mean() + ((e[1] - e[0]) - (f[1] - f[0])).square().mean()
        for (s, t), (e, f) in zip(moves, growths, strict=True)
    ]
    return edge, torch.stack(steps).mean() if steps else torch.zeros_like(edge)


class IrgObjective(Objective):
    """Vertices, edges and transformations, each with its weight, over all layers averaged over space.

    Of one row only the vertex is left. Unlabelled rows count like any other.
    """

    needs_features = True
    over_batch = True

    def __init__(self, config: Irg, setting: Setting) -> None:
        super().__init__()
        self.layers = pairs(setting, config.name)
        self.vertex_weight = config.vertex_weight
        self.edge_weight = config.edge_weight
        self.transformation_weight = config.transformation_weight

    def forward(self, student: Signals, teacher: Signals | None, target: Tensor) -> Tensor:
        """A scalar for the batch."""
        assert teacher is not None
        vertex = functional.mse_loss(student.logits, teacher.logits.detach())
        edge, transformation = graph(
            [pooled(student.features[name]) for name, _ in self.layers],
            [pooled(teacher.features[name].detach()) for _, name in self.layers],
        )
        return self.vertex_weight * vertex + self.edge_weight * edge + self.transformation_weight * transformation
