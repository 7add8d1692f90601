"""Losses against independent computations in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from distillery.config import CrossEntropy, Kd
from distillery.objectives import build
from distillery.objectives.cross_entropy import cross_entropy
from distillery.objectives.kd import kd
from distillery.signals import Signals


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 5, dtype=torch.float64, generator=generator) * 3 for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_softened_divergence_times_temperature_squared(logits, temperature):
    student, teacher = logits
    probabilities = [np.exp(log_softmax(each.numpy() / temperature, axis=1)) for each in (teacher, student)]
    expected = temperature**2 * entropy(*probabilities, axis=1)
    np.testing.assert_allclose(kd(student, teacher, temperature).numpy(), expected, rtol=1e-10)


def test_kd_of_two_classes_by_hand():
    # softmax(0, 0) = (1/2, 1/2) and softmax(log 3, 0) = (3/4, 1/4).
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_a_perfect_student_scores_zero_and_stays(logits):
    teacher = logits[1]
    student = teacher.clone().requires_grad_()
    loss = kd(student, teacher, 2.0).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-12


def test_the_gradients_are_right(logits):
    student, teacher = logits
    target = torch.tensor([0, 1, -1, 3, 4, -1])
    assert torch.autograd.gradcheck(lambda z: kd(z, teacher, 3.0), student.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, target), student.clone().requires_grad_())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_and_constant_logits_stay_finite(rows, scale):
    student = (torch.eye(2)[torch.zeros(rows, dtype=torch.long)] * scale).requires_grad_()
    teacher = -student.detach()
    loss = kd(student, teacher, 2.0).mean()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_cross_entropy_is_the_negative_log_likelihood_and_skips_unlabelled_rows(logits):
    student = logits[0]
    target = torch.tensor([2, -1, 0, 4, -1, 1])
    expected = -log_softmax(student.numpy(), axis=1)[np.arange(6), target.numpy()]
    expected[target.numpy() == -1] = 0.0
    np.testing.assert_allclose(cross_entropy(student, target).numpy(), expected, rtol=1e-10)


def test_the_sum_averages_each_term_over_the_rows_it_is_about(logits):
    student, teacher = logits
    target = torch.tensor([0, 1, -1, 3, -1, -1])
    objectives = build([Kd(name="kd", weight=0.75, temperature=2.0), CrossEntropy(name="cross_entropy", weight=0.5)])
    total, named = objectives(Signals(student), Signals(teacher), target, target)
    assert named["kd"].item() == pytest.approx(kd(student, teacher, 2.0).mean().item())
    assert named["cross_entropy"].item() == pytest.approx(cross_entropy(student, target).sum().item() / 3)
    assert total.item() == pytest.approx(0.75 * named["kd"].item() + 0.5 * named["cross_entropy"].item())


def test_micro_batches_add_up_to_the_whole_step(logits):
    student, teacher = logits
    target = torch.tensor([0, -1, -1, 3, -1, 2])
    objectives = build([Kd(name="kd"), CrossEntropy(name="cross_entropy")])
    whole, _ = objectives(Signals(student), Signals(teacher), target, target)
    parts = [
        objectives(Signals(student[part]), Signals(teacher[part]), target[part], target)[0]
        for part in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-12)


def test_a_batch_of_unlabelled_rows_alone_teaches_by_the_teacher_only(logits):
    student, teacher = logits
    target = torch.full((6,), -1)
    objectives = build([Kd(name="kd"), CrossEntropy(name="cross_entropy")])
    total, named = objectives(Signals(student), Signals(teacher), target, target)
    assert named["cross_entropy"].item() == 0.0
    assert total.item() == pytest.approx(named["kd"].item()) and total.item() > 0
