"""The graph of a batch against a slow loop in float64, and what it promises."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group

from distillery.errors import UserError
from distillery.objectives.configs.graph import Irg
from distillery.objectives.irg import IrgObjective, edges, graph, movements
from distillery.objectives.objective import Setting
from distillery.signals import Signals
from tests.objectives.relations import (
    EQUAL,
    UNEQUAL,
    filled,
    gradients,
    leaves,
    loss_of,
    random,
    shuffled,
    signals,
    twins,
)

seeds = st.integers(0, 2**31)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def irg(setting: Setting = UNEQUAL, **values: float) -> IrgObjective:
    return IrgObjective(Irg(name="irg", **values), setting)


def vectors(side: Signals) -> list[np.ndarray]:
    arrays = [each.detach().numpy() for each in side.features.values()]
    return [each.mean((2, 3)) if each.ndim == 4 else each for each in arrays]


def slow_edges(rows: np.ndarray) -> np.ndarray:
    squares = pdist(rows, "sqeuclidean")
    return squareform(squares / squares.mean())


def narrowed(vector: np.ndarray, width: int) -> np.ndarray:
    """Means of neighbouring channels, whose groups overlap where the width does not divide."""
    ends = [(i * len(vector) // width, -(-(i + 1) * len(vector) // width)) for i in range(width)]
    return np.array([vector[start:end].mean() for start, end in ends])


def slow_movements(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    width = min(before.shape[1], after.shape[1])
    moved = [np.sum((narrowed(a, width) - narrowed(b, width)) ** 2) for a, b in zip(before, after, strict=True)]
    return np.array(moved) / np.mean(moved)


def slow_irg(student: Signals, teacher: Signals) -> tuple[float, float, float]:
    logits = [side.logits.detach().numpy() for side in (student, teacher)]
    ours, theirs = vectors(student), vectors(teacher)
    edge = np.mean([np.mean((slow_edges(a) - slow_edges(b)) ** 2) for a, b in zip(ours, theirs, strict=True)])
    steps = []
    for layer in range(len(ours) - 1):
        moves = [slow_movements(side[layer], side[layer + 1]) for side in (ours, theirs)]
        growth = [slow_edges(side[layer + 1]) - slow_edges(side[layer]) for side in (ours, theirs)]
        steps.append(np.mean((moves[0] - moves[1]) ** 2) + np.mean((growth[0] - growth[1]) ** 2))
    return float(np.mean((logits[0] - logits[1]) ** 2)), float(edge), float(np.mean(steps))


@quick
@given(seed=seeds, rows=st.integers(2, 6))
def test_the_loss_is_the_slow_loop(seed, rows):
    student, teacher = signals(UNEQUAL, rows, seed)
    vertex, edge, step = slow_irg(student, teacher)
    assert loss_of(irg(), student, teacher).item() == pytest.approx(0.1 * vertex + 5 * edge + 5 * step, rel=1e-8)
    only = loss_of(irg(vertex_weight=0, edge_weight=2, transformation_weight=0), student, teacher)
    assert only.item() == pytest.approx(2 * edge, rel=1e-8)


def test_edges_are_squared_distances_over_their_mean():
    line = torch.tensor([[0.0], [1.0], [3.0]])
    expected = np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / (14 / 3)
    np.testing.assert_allclose(edges(line).numpy(), expected, rtol=1e-6)


def test_movements_between_widths_average_neighbouring_channels():
    before = torch.tensor([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 0.0, 0.0]])  # to (2, 6) and (0, 0)
    after = torch.tensor([[2.0, 4.0], [2.0, 0.0]])
    assert movements(before, after).tolist() == pytest.approx([1.0, 1.0])
    assert movements(after, before).tolist() == pytest.approx([1.0, 1.0])


def test_a_movement_no_larger_than_rounding_is_none():
    before, after = torch.full((3, 4), 0.3, requires_grad=True), torch.full((3, 3), 0.3)
    after[1:] *= 1 + 2 * torch.finfo(torch.float32).eps
    found = movements(before, after)
    assert found.tolist() == [0.0, 0.0, 0.0]
    assert torch.autograd.grad(found.sum(), before)[0].abs().max() == 0


def test_one_layer_has_no_transformation():
    edge, transformation = graph([random(4, 3)], [random(4, 5, seed=1)])
    assert edge > 0 and transformation == 0


def test_the_gradients_are_right():
    student, teacher = signals(UNEQUAL, rows=4)

    def loss(logits: torch.Tensor, *features: torch.Tensor) -> torch.Tensor:
        return loss_of(irg(), Signals(logits, dict(zip(student.features, features, strict=True))), teacher)

    assert torch.autograd.gradcheck(loss, tuple(leaves(student)))


@quick
@given(seed=seeds, rows=st.integers(1, 6))
def test_a_perfect_student_scores_zero_and_stays(seed, rows):
    setting, student, teacher = twins(EQUAL, rows, seed)
    loss = loss_of(irg(setting), student, teacher)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradients(loss, student).abs().max().item() < 1e-9


@quick
@given(seed=seeds, rows=st.integers(1, 6))
def test_the_order_of_rows_does_not_matter(seed, rows):
    student, teacher = signals(UNEQUAL, rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    mixed = loss_of(irg(), shuffled(student, order), shuffled(teacher, order))
    torch.testing.assert_close(mixed, loss_of(irg(), student, teacher))


@quick
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_scale_and_rotation_do_not_matter_to_edges_nor_scale_to_movements(seed, scale):
    rows, other = random(5, 4, seed=seed), random(5, 3, seed=seed + 1)
    rotation = torch.from_numpy(ortho_group.rvs(4, random_state=seed))
    torch.testing.assert_close(edges(scale * rows @ rotation + 7), edges(rows), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(movements(scale * rows, scale * other), movements(rows, other))


def test_the_teacher_gets_no_gradient_and_every_layer_of_the_student_does():
    student, teacher = signals(UNEQUAL, rows=4)
    loss_of(irg(), student, teacher).backward()
    assert all(each.grad is None for each in leaves(teacher))
    assert all(each.grad.abs().sum() > 0 for each in leaves(student))


def test_of_one_row_the_vertex_alone_is_left():
    student, teacher = signals(UNEQUAL, rows=1)
    loss = loss_of(irg(), student, teacher)
    assert loss.item() == pytest.approx(0.1 * (student.logits - teacher.logits).square().mean().item())
    assert loss_of(irg(vertex_weight=0), student, teacher).item() == 0.0


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_constant_and_extreme_features_stay_finite(rows):
    values = (0.0, 0.3, 1e4, -1e4)
    for one, two in product(values, values):
        student, teacher = filled(UNEQUAL, rows, one)[0], filled(UNEQUAL, rows, two)[1]
        loss = loss_of(irg(vertex_weight=0), student, teacher)
        found = gradients(loss, student)
        assert loss.isfinite() and found.isfinite().all() and found.abs().max() < 1e3
    student, teacher = signals(UNEQUAL, rows)
    large = Signals(1e4 * student.logits, {name: 1e4 * each for name, each in student.features.items()})
    for pair in ((large, filled(UNEQUAL, rows, 0.0)[1]), (filled(UNEQUAL, rows, 0.0)[0], teacher)):
        loss = loss_of(irg(), *pair)
        assert loss.isfinite() and gradients(loss, student if pair[0] is large else pair[0]).isfinite().all()


def test_layers_that_cannot_be_paired_are_refused():
    with pytest.raises(UserError, match="irg: 1 student layers cannot be paired with 2"):
        irg(Setting(3, student={"a": (3,)}, teacher={"b": (3,), "c": (3,)}))


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValidationError):
        Irg(name="irg", edge_weight=-1)
