"""Losses over outputs against independent computations in float64, and what they promise."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import expit, log_softmax, rel_entr, softmax
from scipy.stats import entropy, pearsonr, zscore
from sklearn.metrics import log_loss, mean_squared_error

from distillery.errors import UserError
from distillery.objectives.configs.response import (
    CrossEntropy,
    Dist,
    Dkd,
    Kd,
    Mse,
    MseTeacher,
    MultilabelCrossEntropy,
    MultilabelKd,
)
from distillery.objectives.cross_entropy import CrossEntropyObjective, cross_entropy
from distillery.objectives.dist import DistObjective, anticorrelation, dist
from distillery.objectives.dkd import DkdObjective, dkd
from distillery.objectives.kd import KdObjective, kd
from distillery.objectives.mse import MseObjective, MseTeacherObjective, mse
from distillery.objectives.multilabel import (
    MultilabelCrossEntropyObjective,
    MultilabelKdObjective,
    multilabel_cross_entropy,
    multilabel_kd,
)
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.standardize import standardize
from distillery.signals import Signals

FROM_TEACHER = {
    "kd": lambda c: KdObjective(Kd(name="kd"), Setting(c)),
    "kd_standardized": lambda c: KdObjective(Kd(name="kd", standardize=True), Setting(c)),
    "dkd": lambda c: DkdObjective(Dkd(name="dkd"), Setting(c)),
    "dkd_standardized": lambda c: DkdObjective(Dkd(name="dkd", standardize=True), Setting(c)),
    "dist": lambda c: DistObjective(Dist(name="dist", temperature=2.0), Setting(c)),
    "mse_teacher": lambda c: MseTeacherObjective(MseTeacher(name="mse_teacher"), Setting(c)),
    "multilabel_kd": lambda c: MultilabelKdObjective(MultilabelKd(name="multilabel_kd"), Setting(c)),
}
FROM_LABEL = {
    "cross_entropy": lambda c: CrossEntropyObjective(CrossEntropy(name="cross_entropy"), Setting(c)),
    "smoothed": lambda c: CrossEntropyObjective(CrossEntropy(name="cross_entropy", label_smoothing=0.1), Setting(c)),
    "mse": lambda c: MseObjective(Mse(name="mse"), Setting(c)),
    "multilabel_cross_entropy": lambda c: MultilabelCrossEntropyObjective(
        MultilabelCrossEntropy(name="multilabel_cross_entropy"), Setting(c)
    ),
}
ALL = FROM_TEACHER | FROM_LABEL
seeds = st.integers(0, 2**31)
quick = settings(max_examples=20, deadline=None, derandomize=True)


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def target_of(method: str, rows: int, classes: int, seed: int = 0, labelled: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if method.startswith(("mse", "multilabel")):
        several = torch.randint(0, 2, (rows, classes), generator=generator).double()
        return several if labelled else torch.full_like(several, math.nan)
    one = torch.randint(0, classes, (rows,), generator=generator)
    return one if labelled else torch.full_like(one, -1)


def loss_and_gradient(
    objective: Objective, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.clone().requires_grad_()
    loss = objective(Signals(student), Signals(teacher), target)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    return random(6, 5, seed=0), random(6, 5, seed=1)


# Each against another computation of it.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_softened_divergence_times_temperature_squared(logits, temperature):
    student, teacher = logits
    probabilities = [softmax(each.numpy() / temperature, axis=1) for each in (teacher, student)]
    expected = temperature**2 * entropy(*probabilities, axis=1)
    np.testing.assert_allclose(kd(student, teacher, temperature).numpy(), expected, rtol=1e-10)


def test_kd_of_two_classes_by_hand():
    # softmax(0, 0) = (1/2, 1/2) and softmax(log 3, 0) = (3/4, 1/4).
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_kd_is_summed_over_classes_and_not_averaged():
    # A mean over classes as well would be 100 times less; a cross-entropy would add the teacher's entropy.
    student, teacher = torch.zeros(1, 100, dtype=torch.float64), random(1, 100)
    expected = math.log(100) - entropy(softmax(teacher.numpy()[0]))
    assert kd(student, teacher, 1.0).item() == pytest.approx(expected)


def test_standardized_logits_are_z_scores_with_the_deviation_that_divides_by_the_number_of_classes(logits):
    student, teacher = logits
    found = standardize(student).numpy()
    np.testing.assert_allclose(found, zscore(student.numpy(), axis=1, ddof=0), rtol=1e-6)
    assert not np.allclose(found, zscore(student.numpy(), axis=1, ddof=1), rtol=1e-2)
    objective = KdObjective(Kd(name="kd", standardize=True), Setting(5))
    scores = [zscore(each.numpy(), axis=1) / 2 for each in (teacher, student)]
    expected = 4 * entropy(*(softmax(each, axis=1) for each in scores), axis=1)
    np.testing.assert_allclose(objective(Signals(student), Signals(teacher), None).numpy(), expected, rtol=1e-5)


def slow_dkd(student, teacher, target, alpha, beta, temperature):
    losses = []
    for ours, theirs, label in zip(student.numpy(), teacher.numpy(), target.numpy(), strict=True):
        q, p = softmax(ours / temperature), softmax(theirs / temperature)
        others = np.delete(np.arange(len(p)), label)
        binary = entropy([p[label], p[others].sum()], [q[label], q[others].sum()])
        rest = entropy(p[others] / p[others].sum(), q[others] / q[others].sum())
        losses.append(temperature**2 * (alpha * binary + beta * rest))
    return losses


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_the_sum_of_both_divergences(logits, temperature):
    target = torch.tensor([0, 4, 2, 2, 3, 1])
    found = dkd(*logits, target, 1.0, 8.0, temperature).numpy()
    np.testing.assert_allclose(found, slow_dkd(*logits, target, 1.0, 8.0, temperature), rtol=1e-9)


def test_dkd_with_the_weights_that_the_teacher_implies_is_kd(logits):
    # KL = TCKD + (1 - p_label) NCKD, the identity that the paper starts from.
    student, teacher = logits
    target = torch.tensor([0, 4, 2, 2, 3, 1])
    rest = 1 - torch.softmax(teacher / 2, 1).gather(1, target[:, None])[:, 0]
    parts = [dkd(student, teacher, target, alpha, beta, 2.0) for alpha, beta in ((1.0, 0.0), (0.0, 1.0))]
    torch.testing.assert_close(parts[0] + rest * parts[1], kd(student, teacher, 2.0))


def test_dkd_of_two_classes_is_the_binary_divergence_alone():
    student, teacher, target = random(4, 2), random(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(dkd(student, teacher, target, 1.0, 8.0, 3.0), kd(student, teacher, 3.0))


def slow_dist(student, teacher, temperature, beta, gamma):
    q, p = (softmax(each.numpy() / temperature, axis=1) for each in (student, teacher))
    rows = [1 - pearsonr(a, b).statistic for a, b in zip(q, p, strict=True)]
    columns = [1 - pearsonr(a, b).statistic for a, b in zip(q.T, p.T, strict=True)]
    return temperature**2 * (beta * np.mean(rows) + gamma * np.mean(columns))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_dist_is_one_minus_pearson_of_rows_and_columns(logits, weights):
    assert dist(*logits, 2.0, *weights).item() == pytest.approx(slow_dist(*logits, 2.0, *weights), rel=1e-10)


def test_dist_maximises_the_correlation():
    teacher = random(8, 5)
    assert dist(teacher, teacher, 1.0, 1.0, 1.0) < dist(random(8, 5, seed=1), teacher, 1.0, 1.0, 1.0)
    assert anticorrelation(-teacher, teacher).numpy() == pytest.approx(2.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_the_negative_log_likelihood_and_skips_unlabelled_rows(logits, smoothing, weighted):
    student = logits[0]
    target = torch.tensor([2, -1, 0, 4, -1, 1])
    factors = np.array([0.5, 1.0, 2.0, 1.0, 3.0]) if weighted else np.ones(5)
    wanted = np.full((6, 5), smoothing / 5) + (1 - smoothing) * np.eye(5)[target.numpy()]
    expected = -(wanted * factors * log_softmax(student.numpy(), axis=1)).sum(1)
    expected[target.numpy() == -1] = 0.0
    found = cross_entropy(student, target, torch.from_numpy(factors), smoothing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_squared_error_is_averaged_over_the_outputs_that_are_known(logits):
    outputs, target = logits
    expected = [mean_squared_error(a, b) for a, b in zip(target.numpy(), outputs.numpy(), strict=True)]
    np.testing.assert_allclose(mse(outputs, target).numpy(), expected)
    target = target.clone()
    target[0] = math.nan
    target[1, :3] = math.nan
    expected[:2] = [0.0, mean_squared_error(target[1, 3:].numpy(), outputs[1, 3:].numpy())]
    np.testing.assert_allclose(mse(outputs, target).numpy(), expected)


def test_one_output_takes_a_column_of_numbers_as_target():
    outputs = torch.tensor([[1.0], [2.0], [3.0]])
    assert mse(outputs, torch.tensor([3.0, math.nan, 3.5])).tolist() == [4.0, 0.0, 0.25]
    objective = MseObjective(Mse(name="mse"), Setting(1))
    assert objective.applies(torch.tensor([3.0, math.nan, 3.5])).tolist() == [True, False, True]


def test_multilabel_cross_entropy_is_the_log_loss_of_each_label_summed(logits):
    student = logits[0]
    target = target_of("multilabel", 6, 5)
    probabilities = expit(student.numpy())
    expected = [
        sum(log_loss([y], [p], labels=[0, 1]) for y, p in zip(*row, strict=True))
        for row in zip(target.numpy(), probabilities, strict=True)
    ]
    np.testing.assert_allclose(multilabel_cross_entropy(student, target).numpy(), expected, rtol=1e-9)
    target[0], target[1, 1:] = math.nan, math.nan
    expected[:2] = [0.0, log_loss([target[1, 0]], [probabilities[1, 0]], labels=[0, 1])]
    np.testing.assert_allclose(multilabel_cross_entropy(student, target).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_multilabel_kd_is_the_divergence_of_each_label_summed(logits, temperature):
    student, teacher = logits
    q, p = (expit(each.numpy() / temperature) for each in (student, teacher))
    expected = temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(1)
    np.testing.assert_allclose(multilabel_kd(student, teacher, temperature).numpy(), expected, rtol=1e-9)
    columns = [torch.stack([each[:, 0], torch.zeros(6)], 1) for each in logits]
    one = multilabel_kd(student[:, :1], teacher[:, :1], temperature)
    torch.testing.assert_close(one, kd(*columns, temperature))


@pytest.mark.parametrize("method", ALL)
def test_the_gradients_are_right(method, logits):
    student, teacher = logits
    target = target_of(method, 6, 5)
    target[1] = -1 if target.dtype == torch.long else math.nan
    objective = ALL[method](5)
    assert torch.autograd.gradcheck(
        lambda z: objective(Signals(z), Signals(teacher), target), student.clone().requires_grad_()
    )


# What they promise.


@pytest.mark.parametrize("method", FROM_TEACHER)
@quick
@given(seed=seeds, rows=st.integers(1, 5), classes=st.integers(3, 6))
def test_a_perfect_student_scores_zero_and_stays(method, seed, rows, classes):
    teacher = random(rows, classes, seed=seed)
    loss, gradient = loss_and_gradient(
        FROM_TEACHER[method](classes), teacher, teacher, target_of(method, rows, classes, seed)
    )
    assert loss.abs().max().item() == pytest.approx(0.0, abs=1e-10)
    assert gradient.abs().max().item() < 1e-9


@pytest.mark.parametrize("method", ALL)
@quick
@given(seed=seeds, rows=st.integers(1, 6), classes=st.integers(3, 5))
def test_the_order_of_rows_does_not_matter(method, seed, rows, classes):
    student, teacher = random(rows, classes, seed=seed), random(rows, classes, seed=seed + 1)
    target = target_of(method, rows, classes, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    objective = ALL[method](classes)
    plain = objective(Signals(student), Signals(teacher), target)
    mixed = objective(Signals(student[order]), Signals(teacher[order]), target[order])
    torch.testing.assert_close(mixed, plain if objective.over_batch else plain[order])


@quick
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_shift_of_a_row_of_logits_changes_nothing_over_classes(seed, shift):
    student, teacher = random(4, 5, seed=seed, scale=1.0), random(4, 5, seed=seed + 1)
    shifts = shift * random(4, 1, seed=seed)
    for method in ("kd", "kd_standardized", "dkd", "dkd_standardized", "dist"):
        target = target_of(method, 4, 5)
        objective = FROM_TEACHER[method](5)
        plain = objective(Signals(student), Signals(teacher), target)
        shifted = objective(Signals(student + shifts), Signals(teacher - shifts), target)
        torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-9)


@quick
@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_correlation_is_blind_to_affine_maps_of_probabilities_but_dist_is_not_to_the_scale_of_logits(
    seed, scale, shift
):
    student, teacher = random(4, 5, seed=seed), random(4, 5, seed=seed + 1)
    plain = anticorrelation(student, teacher)
    torch.testing.assert_close(anticorrelation(scale * student + shift, teacher), plain)
    assert not torch.allclose(dist(2 * student, teacher, 1.0, 1.0, 1.0), dist(student, teacher, 1.0, 1.0, 1.0))


@quick
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_standardized_kd_is_blind_to_the_scale_of_logits(seed, scale):
    student, teacher = random(4, 5, seed=seed), random(4, 5, seed=seed + 1)
    objective = FROM_TEACHER["kd_standardized"](5)
    plain = objective(Signals(student), Signals(teacher), None)
    torch.testing.assert_close(objective(Signals(scale * student), Signals(teacher), None), plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", FROM_TEACHER)
def test_the_teacher_gets_no_gradient(method, logits):
    student, teacher = (each.clone().requires_grad_() for each in logits)
    FROM_TEACHER[method](5)(Signals(student), Signals(teacher), target_of(method, 6, 5)).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


EXTREMES = {
    "saturated": lambda rows, classes: 1e4 * torch.eye(classes)[torch.arange(rows) % classes],
    "opposite": lambda rows, classes: -1e4 * torch.eye(classes)[torch.arange(rows) % classes],
    "alternating": lambda rows, classes: 1e4 * (1 - 2 * (torch.arange(rows * classes).reshape(rows, classes) % 2.0)),
    "zero": torch.zeros,
    "constant": lambda rows, classes: torch.full((rows, classes), 12345.678),
    "ordinary": lambda rows, classes: random(rows, classes).float(),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("method", "classes"), [(name, c) for name in ALL for c in (2, 5) if c > 2 or "standardized" not in name]
)
def test_extreme_and_constant_logits_stay_finite(method, rows, classes):
    objective = ALL[method](classes)
    target = target_of(method, rows, classes)
    for ours, theirs in product(EXTREMES, EXTREMES):
        student, teacher = (EXTREMES[kind](rows, classes) for kind in (ours, theirs))
        loss, gradient = loss_and_gradient(objective, student, teacher, target)
        assert loss.isfinite().all() and gradient.isfinite().all(), (ours, theirs)
        assert loss.min() > -1e-4, (ours, theirs)
        # Those that take logits apart by their spread must not blow up where there is none.
        if method in ("kd_standardized", "dkd_standardized", "dist"):
            assert gradient.abs().max() < 1e2, (ours, theirs)


def test_correlation_with_a_constant_teacher_asks_for_nothing():
    flat = torch.full((3, 5), 0.2, dtype=torch.float64)
    assert anticorrelation(random(3, 5), flat).tolist() == [0.0, 0.0, 0.0]
    assert anticorrelation(flat, flat).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_constant_student_is_uncorrelated_and_gently_pushed(noise):
    flat = torch.full((3, 10), 0.1) + noise * random(3, 10).float()
    student = flat.requires_grad_()
    distance = anticorrelation(student, random(3, 10, seed=1).float())
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    np.testing.assert_allclose(distance.detach().numpy(), 1.0, atol=1e-6)
    assert 0 < gradient.abs().max() < 1


def test_one_row_has_no_columns_to_compare():
    student, teacher = random(1, 5), random(1, 5, seed=1)
    assert dist(student, teacher, 1.0, 0.0, 1.0).item() == 0.0
    assert dist(student, teacher, 1.0, 1.0, 1.0).item() == dist(student, teacher, 1.0, 1.0, 0.0).item() > 0


@pytest.mark.parametrize("method", ALL)
def test_unlabelled_rows_alone_are_taught_by_the_teacher_only(method, logits):
    student, teacher = logits
    target = target_of(method, 6, 5, labelled=False)
    objective = ALL[method](5)
    loss, gradient = loss_and_gradient(objective, student, teacher, target)
    applies = objective.applies(target)
    assert applies.shape == (6,) and applies.dtype == torch.bool
    assert applies.all() if not objective.needs_label else not applies.any()
    if objective.needs_label:
        assert loss.abs().max() == 0 and gradient.abs().max() == 0
    else:
        assert loss.sum() > 0 and gradient.abs().max() > 0 and gradient.isfinite().all()
        without = objective(Signals(student), Signals(teacher), target_of(method, 6, 5))
        torch.testing.assert_close(loss, without)


@pytest.mark.parametrize("method", ["dkd", "cross_entropy", "mse", "multilabel_cross_entropy"])
def test_a_labelled_row_scores_the_same_beside_unlabelled_ones(method, logits):
    student, teacher = logits
    target = target_of(method, 6, 5)
    objective = ALL[method](5)
    full = objective(Signals(student), Signals(teacher), target)
    target[::2] = -1 if target.dtype == torch.long else math.nan
    part, gradient = loss_and_gradient(objective, student, teacher, target)
    torch.testing.assert_close(part[1::2], full[1::2])
    assert part[::2].abs().max() == 0 and gradient[::2].abs().max() == 0
    assert objective.applies(target).tolist() == [False, True] * 3


@pytest.mark.parametrize("method", ["kd_standardized", "dkd_standardized"])
def test_standardizing_two_classes_is_refused_with_the_reason(method):
    with pytest.raises(UserError, match=r"kd\.standardize needs three classes.*always \+1 and -1"):
        FROM_TEACHER[method](2)


@pytest.mark.parametrize("scale", [0.0, 0.1, 12345.678])
def test_a_constant_row_is_only_centred_so_its_gradient_is_that_of_plain_logits(scale):
    constant, teacher = torch.full((2, 7), scale), random(2, 7, seed=1).float()
    _, gradient = loss_and_gradient(FROM_TEACHER["kd_standardized"](7), constant, teacher, None)
    assert 0 < gradient.abs().max() < 10


def test_class_weights_reach_the_cross_entropy(logits):
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    objective = CrossEntropyObjective(CrossEntropy(name="cross_entropy"), Setting(5, weights))
    target = torch.tensor([0, 1, 2, 3, 4, -1])
    expected = torch.cat([weights, torch.zeros(1)]) * cross_entropy(logits[0], target)
    torch.testing.assert_close(objective(Signals(logits[0]), None, target), expected)


@pytest.mark.parametrize(
    "config",
    [
        (Kd, {"temperature": 0}),
        (Kd, {"weight": 0}),
        (Dkd, {"beta": -1}),
        (Dist, {"temperature": -1}),
        (CrossEntropy, {"label_smoothing": 1.0}),
        (MultilabelKd, {"temperature": 0}),
    ],
)
def test_parameters_out_of_range_are_refused(config):
    kind, values = config
    with pytest.raises(ValidationError):
        kind(name=kind.model_fields["name"].annotation.__args__[0], **values)
