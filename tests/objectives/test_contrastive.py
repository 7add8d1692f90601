"""CRD within the batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from distillery.objectives.configs.feature import Crd, Layers
from distillery.objectives.crd import CrdObjective, crd
from distillery.objectives.objective import Setting
from distillery.signals import Signals

SETTING = Setting(3, student={"s1": (2, 4, 4), "s2": (5, 2, 2)}, teacher={"t1": (3, 4, 4), "t2": (6,)})
seeds = st.integers(0, 2**31)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def embeddings(rows: int, seed: int = 0, dimensions: int = 4) -> torch.Tensor:
    values = torch.randn(rows, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=1)


def features(side: int, rows: int, scale: float = 1.0) -> Signals:
    shapes = (SETTING.student, SETTING.teacher)[side]
    generator = torch.Generator().manual_seed(side)
    values = {k: scale * torch.randn(rows, *v, dtype=torch.float64, generator=generator) for k, v in shapes.items()}
    return Signals(torch.zeros(rows, 3), {name: each.requires_grad_() for name, each in values.items()})


def built(**parameters) -> CrdObjective:
    torch.manual_seed(0)
    return CrdObjective(Crd(name="crd", dimensions=8, **parameters), SETTING).double()


def test_it_is_the_slow_loop_over_rows_and_negatives():
    student, teacher, temperature = embeddings(5, 0), embeddings(5, 1), 0.3
    terms = []
    for row in range(5):
        for anchor, others in ((student[row], teacher), (teacher[row], student)):
            scores = [math.exp(float(anchor @ other) / temperature) for other in others]
            terms.append(-math.log(scores[row] / sum(scores)))
    assert crd(student, teacher, temperature).item() == pytest.approx(np.mean(terms), rel=1e-10)


def test_the_gradients_are_right():
    student, teacher = (embeddings(4, seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: crd(a, b, 0.5), (student, teacher))


@quick
@given(rows=st.integers(1, 8), seed=seeds, order=st.randoms())
def test_order_rotation_and_sides_do_not_matter(rows, seed, order):
    student, teacher = embeddings(rows, seed), embeddings(rows, seed + 1)
    expected = crd(student, teacher, 0.07)
    mixed = list(range(rows))
    order.shuffle(mixed)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    torch.testing.assert_close(crd(student[mixed], teacher[mixed], 0.07), expected)
    torch.testing.assert_close(crd(student @ rotation, teacher @ rotation, 0.07), expected)
    torch.testing.assert_close(crd(teacher, student, 0.07), expected)
    assert expected >= 0


def test_known_values():
    same = torch.ones(6, 4, dtype=torch.float64) / 2
    assert crd(same, same, 0.07).item() == pytest.approx(math.log(6)), "embeddings that say nothing"
    assert crd(same[:1], same[:1], 0.07).item() == 0.0, "one row has no negatives"
    axes = torch.eye(4, dtype=torch.float64)
    assert crd(axes, axes, 0.07).item() == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.07)))
    assert crd(axes, axes[[1, 0, 3, 2]], 0.07) > 10, "the wrong rows"


def test_both_embeddings_learn_and_the_teacher_does_not():
    objective, student, teacher = built(), features(0, 4), features(1, 4)
    assert objective.over_batch
    objective(student, teacher, torch.full((4,), -1)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
    assert all(each.grad is None for each in teacher.features.values())
    assert student.features["s1"].grad is None, "by default the deepest pair alone"
    assert student.features["s2"].grad.abs().sum() > 0


def test_named_pairs_are_all_read_and_averaged():
    objective = built(layers=Layers(student=("s1", "s2"), teacher=("t1", "t2")))
    student, teacher = features(0, 4), features(1, 4)
    expected = []
    for mine, theirs, ours, goal in zip(
        student.features, teacher.features, objective.student, objective.teacher, strict=True
    ):
        expected.append(crd(ours(student.features[mine]), goal(teacher.features[theirs]), 0.07).item())
    assert objective(student, teacher, torch.zeros(4)).item() == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_values_and_gradients_stay_finite(rows, scale):
    objective, student, teacher = built().float(), features(0, rows), features(1, rows)
    ours = {name: (scale * each.detach()).float().requires_grad_() for name, each in student.features.items()}
    theirs = {name: (scale * each.detach()).float() for name, each in teacher.features.items()}
    loss = objective(Signals(student.logits, ours), Signals(teacher.logits, theirs), torch.zeros(rows))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(ours["s2"].grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.parameters())


def test_a_student_that_sees_the_rows_learns_to_find_them():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(32, 6, dtype=torch.float64, generator=generator)
    mixing = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    student = Signals(
        torch.zeros(32, 3), {"s1": rows.new_zeros(32, 2, 4, 4), "s2": (rows @ mixing.T)[:, :, None, None]}
    )
    teacher = Signals(torch.zeros(32, 3), {"t1": rows.new_zeros(32, 3, 4, 4), "t2": rows})
    objective = built()
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(student, teacher, torch.zeros(32))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * math.log(32)
