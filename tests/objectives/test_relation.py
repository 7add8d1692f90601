"""Losses over relations against slow loops in float64, and what they promise."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.distance import pdist, squareform
from scipy.stats import entropy, ortho_group
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.preprocessing import normalize

from distillery.errors import UserError
from distillery.objectives.cc import CcObjective, cc, correlations
from distillery.objectives.configs.relation import Cc, Fsp, Pkt, Rkd, Sp
from distillery.objectives.fsp import FspObjective, flow, fsp
from distillery.objectives.objective import Setting
from distillery.objectives.pkt import PktObjective, pkt
from distillery.objectives.rkd import RkdObjective, angles, relative_distances, rkd
from distillery.objectives.sp import SpObjective, sp
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

LOSSES = {
    "rkd": lambda s, t: rkd(s, t, 25.0, 50.0),
    "sp": sp,
    "cc": lambda s, t: cc(s, t, 0.4, 2),
    "pkt": pkt,
}
OVER_BATCH = {
    "rkd": lambda setting: RkdObjective(Rkd(name="rkd"), setting),
    "sp": lambda setting: SpObjective(Sp(name="sp"), setting),
    "cc": lambda setting: CcObjective(Cc(name="cc"), setting),
    "pkt": lambda setting: PktObjective(Pkt(name="pkt"), setting),
}
OBJECTIVES = OVER_BATCH | {
    "fsp": lambda setting: FspObjective(Fsp(name="fsp", project=True), setting).double(),
}
seeds = st.integers(0, 2**31)
quick = settings(max_examples=15, deadline=None, derandomize=True)


# Each against another computation of it.


def huber(difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def slow_distances(rows: np.ndarray) -> np.ndarray:
    plain = squareform(pdist(rows))
    return plain / plain[plain > 0].mean()


def slow_angles(rows: np.ndarray) -> np.ndarray:
    result = np.zeros((len(rows),) * 3)
    for j, i, k in product(range(len(rows)), repeat=3):
        one, two = rows[i] - rows[j], rows[k] - rows[j]
        lengths = np.linalg.norm(one) * np.linalg.norm(two)
        result[j, i, k] = one @ two / lengths if lengths else 0.0
    return result


def slow_rkd(student: np.ndarray, teacher: np.ndarray) -> float:
    pairs = huber(slow_distances(student) - slow_distances(teacher)).mean()
    return 25 * pairs + 50 * huber(slow_angles(student) - slow_angles(teacher)).mean()


def slow_sp(student: np.ndarray, teacher: np.ndarray, norm: str = "l2") -> float:
    ours, theirs = (normalize(rows @ rows.T, norm=norm) for rows in (student, teacher))
    return np.linalg.norm(theirs - ours, "fro") ** 2 / len(ours) ** 2


def slow_cc(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for i, j in product(range(len(student)), repeat=2):
        values = []
        for rows in (student, teacher):
            cosine = rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
            values.append(math.exp(-0.8) * (1 + 0.8 * cosine + (0.8 * cosine) ** 2 / 2))
        total += (values[0] - values[1]) ** 2
    return total / len(student) ** 2


def slow_pkt(student: np.ndarray, teacher: np.ndarray) -> float:
    divergences = []
    affinities = [(cosine_similarity(rows) + 1) / 2 for rows in (student, teacher)]
    for row in range(len(student)):
        ours, theirs = (np.delete(matrix[row], row) for matrix in affinities)
        divergences.append(entropy(theirs, ours))  # normalises both
    return np.mean(divergences)


SLOW = {"rkd": slow_rkd, "sp": slow_sp, "cc": slow_cc, "pkt": slow_pkt}


@pytest.mark.parametrize("method", SLOW)
@quick
@given(seed=seeds, rows=st.integers(2, 7), widths=st.tuples(st.integers(2, 6), st.integers(2, 6)))
def test_each_loss_is_the_slow_loop_of_its_paper(method, seed, rows, widths):
    student, teacher = random(rows, widths[0], seed=seed), random(rows, widths[1], seed=seed + 1)
    found = LOSSES[method](student, teacher).item()
    assert found == pytest.approx(SLOW[method](student.numpy(), teacher.numpy()), rel=1e-4, abs=1e-12)


def test_the_parts_of_rkd_are_those_of_the_slow_loop():
    rows = random(6, 4)
    rows[3] = rows[1]  # a distance of 0 is not in the mean
    np.testing.assert_allclose(relative_distances(rows).numpy(), slow_distances(rows.numpy()), atol=1e-12)
    np.testing.assert_allclose(angles(rows).numpy(), slow_angles(rows.numpy()), atol=1e-12)


def test_the_angle_of_a_right_corner_is_zero_and_of_an_equilateral_triangle_a_half():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    assert angles(corner)[0, 1, 2].item() == 0.0
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert angles(triangle)[[0, 1, 2], [1, 2, 0], [2, 0, 1]].tolist() == pytest.approx([0.5] * 3)


def test_sp_normalises_by_l2():
    student, teacher = random(64, 32).relu(), random(64, 48, seed=1).relu()
    found = sp(student, teacher).item()
    assert found == pytest.approx(slow_sp(student.numpy(), teacher.numpy()))
    assert 30 < found / slow_sp(student.numpy(), teacher.numpy(), "l1") < 100


def test_the_taylor_series_of_cc_tends_to_the_gaussian_kernel():
    rows = random(6, 4)
    kernel = rbf_kernel(normalize(rows.numpy()), gamma=0.4)
    errors = [np.abs(correlations(rows, 0.4, order).numpy() - kernel).max() for order in (1, 2, 4, 12)]
    assert errors == sorted(errors, reverse=True) and errors[1] < 0.05 and errors[3] < 1e-10


def test_cc_compares_all_pairs_and_not_only_neighbours():
    # Neighbours keep their angle of 90 degrees in both; only the pair (0, 2) differs.
    one, two = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    two[2] = two[0]
    values = [math.exp(-0.8) * (1 + x + x * x / 2) for x in (0.0, 0.8)]
    assert cc(one, two, 0.4, 2).item() == pytest.approx(2 * (values[1] - values[0]) ** 2 / 9)


def test_pkt_of_three_rows_by_hand():
    # Affinities of the student 1/2 and 1/2, of the teacher from its first row 1 and 1/2: p = (2/3, 1/3) against 1/2.
    student = torch.eye(3, dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    uneven = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert pkt(student, teacher).item() == pytest.approx(2 * uneven / 3, rel=1e-5)


def slow_flow(shallow: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Of maps of one size, position by position."""
    rows, one, height, width = shallow.shape
    result = np.zeros((rows, one, deep.shape[1]))
    for row, i, j, y, x in product(range(rows), range(one), range(deep.shape[1]), range(height), range(width)):
        result[row, i, j] += shallow[row, i, y, x] * deep[row, j, y, x] / (height * width)
    return result


def halved(maps: np.ndarray) -> np.ndarray:
    return (maps[..., ::2, ::2] + maps[..., 1::2, ::2] + maps[..., ::2, 1::2] + maps[..., 1::2, 1::2]) / 4


def test_fsp_is_the_slow_loop_of_its_paper():
    student = [random(3, 2, 4, 4, seed=0), random(3, 4, 2, 2, seed=1), random(3, 5, 2, 2, seed=2)]
    teacher = [random(3, 2, 6, 6, seed=3), random(3, 4, 3, 3, seed=4), random(3, 5, 3, 3, seed=5)]
    expected = 0.0
    for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True):
        flows = []
        for one, two in (ours, theirs):
            shallow = one.numpy() if one.shape == two.shape or one.shape[2] == two.shape[2] else halved(one.numpy())
            flows.append(slow_flow(shallow, two.numpy()))
        expected = expected + ((flows[0] - flows[1]) ** 2).mean((1, 2)) / 2
    np.testing.assert_allclose(fsp(student, teacher).numpy(), expected, rtol=1e-10)


def test_the_flow_of_one_position_is_an_outer_product():
    one, two = random(2, 3, 1, 1), random(2, 4, 1, 1, seed=1)
    expected = [np.outer(a, b) for a, b in zip(one[..., 0, 0].numpy(), two[..., 0, 0].numpy(), strict=True)]
    np.testing.assert_allclose(flow(one, two).numpy(), expected)


@pytest.mark.parametrize("method", LOSSES)
def test_objectives_compare_the_last_layers(method):
    student, teacher = signals(UNEQUAL, rows=5)
    ours, theirs = student.features["s3"], teacher.features["t3"]
    theirs = theirs.flatten(1) if method == "sp" else theirs.mean((2, 3))
    found = loss_of(OVER_BATCH[method](UNEQUAL), student, teacher)
    torch.testing.assert_close(found, LOSSES[method](ours, theirs))
    assert found.shape == ()


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_gradients_are_right(method):
    student, teacher = signals(UNEQUAL, rows=4)
    objective = OBJECTIVES[method](UNEQUAL)

    def loss(*features: torch.Tensor) -> torch.Tensor:
        return loss_of(objective, Signals(student.logits, dict(zip(student.features, features, strict=True))), teacher)

    assert torch.autograd.gradcheck(loss, tuple(student.features.values()))


# What they promise.


@pytest.mark.parametrize("method", OBJECTIVES)
@quick
@given(seed=seeds, rows=st.integers(1, 5))
def test_a_perfect_student_scores_zero_and_stays(method, seed, rows):
    setting, student, teacher = twins(EQUAL, rows, seed)
    loss = loss_of(OBJECTIVES[method](setting), student, teacher)
    assert loss.abs().max().item() == pytest.approx(0.0, abs=1e-12)
    assert gradients(loss, student).abs().max().item() < 1e-9


@pytest.mark.parametrize("method", OBJECTIVES)
@quick
@given(seed=seeds, rows=st.integers(1, 6))
def test_the_order_of_rows_does_not_matter(method, seed, rows):
    student, teacher = signals(UNEQUAL, rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    objective = OBJECTIVES[method](UNEQUAL)
    plain = loss_of(objective, student, teacher)
    mixed = loss_of(objective, shuffled(student, order), shuffled(teacher, order))
    torch.testing.assert_close(mixed, plain if objective.over_batch else plain[order])


@pytest.mark.parametrize("method", LOSSES)
@quick
@given(seed=seeds, rows=st.integers(2, 6), scale=st.floats(0.01, 100))
def test_scale_and_rotation_of_the_student_do_not_matter(method, seed, rows, scale):
    student, teacher = random(rows, 4, seed=seed), random(rows, 5, seed=seed + 1)
    rotation = torch.from_numpy(ortho_group.rvs(4, random_state=seed))
    turned = scale * student @ rotation
    if method == "rkd":
        turned = turned + random(1, 4, seed=seed)
    torch.testing.assert_close(LOSSES[method](turned, teacher), LOSSES[method](student, teacher), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["cc", "pkt"])
def test_the_length_of_single_rows_does_not_matter_to_cosines(method):
    student, teacher = random(5, 4), random(5, 6, seed=1)
    stretched = student * torch.arange(1.0, 6.0)[:, None]
    torch.testing.assert_close(LOSSES[method](stretched, teacher), LOSSES[method](student, teacher))
    assert not torch.allclose(LOSSES["rkd"](stretched, teacher), LOSSES["rkd"](student, teacher))


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_teacher_gets_no_gradient_and_every_layer_that_is_read_does(method):
    student, teacher = signals(UNEQUAL, rows=4)
    objective = OBJECTIVES[method](UNEQUAL)
    loss_of(objective, student, teacher).sum().backward()
    assert all(each.grad is None for each in leaves(teacher))
    read = student.features if method == "fsp" else {"s3"}
    assert all(student.features[name].grad.abs().sum() > 0 for name in read)
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


@pytest.mark.parametrize("method", OVER_BATCH)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_one_row_has_no_relations(method, value):
    pairs = [signals(UNEQUAL, 1), filled(UNEQUAL, 1, value)]
    for (student, _), (_, teacher) in product(pairs, pairs):
        loss = loss_of(OVER_BATCH[method](UNEQUAL), student, teacher)
        assert loss.item() == 0.0
        assert gradients(loss, student).abs().max() == 0


@pytest.mark.parametrize("method", LOSSES)
def test_a_zero_row_among_others_does_not_blow_up_the_gradient(method):
    student, teacher = random(5, 4), random(5, 6, seed=1)
    student[2] = 0
    student.requires_grad_()
    loss = LOSSES[method](student, teacher)
    assert loss.isfinite() and loss > 0
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e2


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_constant_extreme_and_repeated_features_stay_finite(method, rows):
    ordinary = [
        Signals(s.logits.float(), {n: f.float() for n, f in s.features.items()}) for s in signals(UNEQUAL, rows)
    ]
    # Rows 0 and 1 are equal in the student and differ in the teacher.
    repeated = Signals(
        ordinary[0].logits, {n: f[[0] * min(2, rows) + [*range(2, rows)]] for n, f in ordinary[0].features.items()}
    )
    objective = OBJECTIVES[method](UNEQUAL).float()
    students = [filled(UNEQUAL, rows, value)[0] for value in (0.0, 0.3, 1e4, -1e4)]
    students += [repeated, Signals(ordinary[0].logits, {n: 1e4 * f for n, f in ordinary[0].features.items()})]
    teachers = [filled(UNEQUAL, rows, value)[1] for value in (0.0, 0.3, 1e4)]
    for values, teacher in product(students, [*teachers, ordinary[1]]):
        student = Signals(values.logits, {n: f.detach().requires_grad_() for n, f in values.features.items()})
        loss = loss_of(objective, student, teacher)
        found = gradients(loss, student)
        assert loss.isfinite().all() and loss.min() > -1e-6
        assert found.isfinite().all()
        if method != "fsp":  # its gradient grows with the features, as a squared error's does
            assert found.abs().max() < 1e3


@pytest.mark.parametrize("method", LOSSES)
def test_a_row_that_stands_twice_is_equal_to_itself_whatever_rounding_made_of_it(method):
    student, teacher = random(6, 8).float(), random(6, 5, seed=1).float()
    found = []
    for factor in (1.0, 1 + 2 * torch.finfo(torch.float32).eps):
        student[1] = factor * student[0]
        leaf = student.clone().requires_grad_()
        loss = LOSSES[method](leaf, teacher)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_half_precision_features_are_compared_in_single(method):
    student, teacher = signals(UNEQUAL, rows=4)
    halves = [
        Signals(side.logits.float(), {name: each.to(torch.bfloat16) for name, each in side.features.items()})
        for side in (student, teacher)
    ]
    rounded = [Signals(side.logits, {name: each.double() for name, each in side.features.items()}) for side in halves]
    objective = OBJECTIVES[method](UNEQUAL)
    expected = loss_of(objective, *rounded)
    found = loss_of(objective.float(), *halves)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_fsp_of_equal_widths_learns_nothing_itself_and_compares_plain_flows():
    student, teacher = signals(EQUAL, rows=3)
    objective = FspObjective(Fsp(name="fsp"), EQUAL)
    assert not list(objective.parameters())
    ours = [each if each.dim() == 4 else each[:, :, None, None] for each in student.features.values()]
    torch.testing.assert_close(loss_of(objective, student, teacher), fsp(ours, list(teacher.features.values())))


def test_fsp_of_unequal_widths_is_refused_unless_it_may_project():
    with pytest.raises(UserError, match=r"student's s1 has 3 channels and the teacher's t1 4.*project: true"):
        FspObjective(Fsp(name="fsp"), UNEQUAL)
    assert [p.shape[:2] for p in OBJECTIVES["fsp"](UNEQUAL).parameters()] == [(4, 3), (6, 4), (7, 5)]


def test_fsp_of_one_layer_is_refused():
    with pytest.raises(UserError, match="has one, s3"):
        FspObjective(Fsp(name="fsp"), Setting(3, student={"s3": (5,)}, teacher={"t3": (5,)}))


@pytest.mark.parametrize("method", OBJECTIVES)
def test_without_features_there_is_nothing_to_compare(method):
    with pytest.raises(UserError, match=f"{method}: 0 student layers"):
        OBJECTIVES[method](Setting(3))


@pytest.mark.parametrize(
    ("kind", "values"), [(Rkd, {"angle_weight": -1}), (Sp, {"weight": 0}), (Cc, {"order": 0}), (Cc, {"gamma": 0})]
)
def test_parameters_out_of_range_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind(name=kind.__name__.lower(), **values)
