"""The loss of several targets: each on its own part of the outputs, in units of its deviation, with its weight."""

import math

import pytest
import torch
from torch import Tensor

from distillery import models
from distillery.config import Equal, FixedTasks, Mlp, Uncertainty
from distillery.objectives.configs.response import (
    CrossEntropy,
    Kd,
    Mse,
    MseTeacher,
    MultilabelCrossEntropy,
    MultilabelKd,
)
from distillery.objectives.cross_entropy import cross_entropy
from distillery.objectives.kd import kd
from distillery.objectives.loss import Loss
from distillery.objectives.multilabel import multilabel_cross_entropy, multilabel_kd
from distillery.objectives.registry import build
from distillery.schema import Input, Schema, Target
from distillery.signals import Signals

SCHEMA = Schema(
    inputs={"numeric": Input(kind="numeric", shape=(3,), columns=("a", "b", "c"))},
    targets={
        "kind": Target(kind="classes", names=("x", "y", "z")),
        "a.price": Target(kind="number", mean=100.0, deviation=20.0),
        "tags": Target(kind="labels", names=("red", "round")),
    },
)
OBJECTIVES = {
    "kind": [Kd(name="kd"), CrossEntropy(name="cross_entropy", weight=0.5)],
    "a.price": [MseTeacher(name="mse_teacher"), Mse(name="mse", weight=0.25)],
    "tags": [MultilabelKd(name="multilabel_kd"), MultilabelCrossEntropy(name="multilabel_cross_entropy")],
}


def made(weighting=None, teachers=("teacher",)) -> Loss:
    network = models.build(Mlp(name="mlp"), SCHEMA, seed=0)
    return build(OBJECTIVES, network, dict.fromkeys(teachers), weighting=weighting).double()


def signals(seed: int, rows: int = 6) -> Signals:
    outputs = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs[:, 3] = outputs[:, 3] * 20 + 100
    return Signals(outputs)


def targets() -> dict[str, Tensor]:
    nan = math.nan
    return {
        "kind": torch.tensor([0, 2, -1, 1, -1, 0]),
        "a.price": torch.tensor([90.0, nan, 130.0, 110.0, nan, 100.0], dtype=torch.float64),
        "tags": torch.tensor([[1, 0], [nan, nan], [0, 1], [1, 1], [0, 0], [nan, 1]], dtype=torch.float64),
    }


def by_hand(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Each target's loss, written out."""
    known = targets()
    labelled = known["kind"] >= 0
    classes = kd(student[:, :3], teacher[:, :3], 2.0).mean() + 0.5 * (
        cross_entropy(student[labelled, :3], known["kind"][labelled]).mean()
    )
    ours, theirs, truth = ((each - 100) / 20 for each in (student[:, 3], teacher[:, 3], known["a.price"]))
    priced = ~truth.isnan()
    price = (ours - theirs).square().mean() + 0.25 * (ours - truth)[priced].square().mean()
    tagged = ~known["tags"].isnan().all(1)
    tags = multilabel_kd(student[:, 4:], teacher[:, 4:], 2.0).mean() + (
        multilabel_cross_entropy(student[:, 4:], known["tags"])[tagged].mean()
    )
    return {"kind": classes.item(), "a.price": price.item(), "tags": tags.item()}


def test_each_target_reads_its_part_of_the_outputs_in_its_own_unit() -> None:
    student, teacher = signals(1), signals(2)
    loss, named = made()(student, {"teacher": teacher}, targets(), targets())
    expected = by_hand(student.logits, teacher.logits)
    assert {name: named[name].item() for name in expected} == pytest.approx(expected)
    assert loss.item() == pytest.approx(sum(expected.values()))
    assert {"kind.kd", "a.price.mse", "tags.multilabel_cross_entropy"} <= named.keys()


def test_fixed_weights_multiply_each_targets_loss() -> None:
    student, teacher = signals(1), signals(2)
    weights = {"kind": 1.0, "a.price": 3.0, "tags": 0.5}
    loss, _ = made(FixedTasks(name="fixed", weights=weights))(student, {"teacher": teacher}, targets(), targets())
    expected = by_hand(student.logits, teacher.logits)
    assert loss.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()))


def test_uncertainty_weighs_by_a_noise_whose_best_value_is_known() -> None:
    """d/ds (c exp(-s) L + s / 2) = 0 where exp(s) = 2 c L, with c one half for a number (Kendall et al. 2018)."""
    student, teacher = signals(1), signals(2)
    loss = made(Uncertainty(name="uncertainty"))
    assert loss.log_variances is not None
    expected = by_hand(student.logits, teacher.logits)
    best = {name: math.log(2 * (0.5 if name == "a.price" else 1.0) * value) for name, value in expected.items()}
    with torch.no_grad():
        for parameter, value in zip(loss.log_variances, best.values(), strict=True):
            parameter.fill_(value)
    value, _ = loss(student, {"teacher": teacher}, targets(), targets())
    assert value.item() == pytest.approx(sum(0.5 + each / 2 for each in best.values()))
    value.backward()
    for parameter in loss.log_variances:
        assert parameter.grad is not None and parameter.grad.item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("weighting", [Equal(), Uncertainty(name="uncertainty")])
def test_a_step_may_be_cut_anywhere(weighting) -> None:
    student, teacher = signals(1), signals(2)
    loss = made(weighting)
    whole, _ = loss(student, {"teacher": teacher}, targets(), targets())
    parts = [
        loss(
            Signals(student.logits[part]), {"teacher": Signals(teacher.logits[part])},
            {name: value[part] for name, value in targets().items()}, targets(),
        )[0].item()
        for part in (slice(0, 1), slice(1, 6))
    ]  # fmt: skip
    assert sum(parts) == pytest.approx(whole.item())


def test_the_gradient_is_right() -> None:
    loss, teacher = made(Uncertainty(name="uncertainty")), signals(2)

    def value(outputs: Tensor) -> Tensor:
        return loss(Signals(outputs), {"teacher": teacher}, targets(), targets())[0]

    assert torch.autograd.gradcheck(value, signals(1).logits.requires_grad_())


def test_two_teachers_are_heard_about_every_target() -> None:
    student, one, two = signals(1), signals(2), signals(3)
    loss, named = made(teachers=("one", "two"))(student, {"one": one, "two": two}, targets(), targets())
    first, second = by_hand(student.logits, one.logits), by_hand(student.logits, two.logits)
    assert loss.item() == pytest.approx((sum(first.values()) + sum(second.values())) / 2)
    assert named["tags.teacher_weight_one"].item() == pytest.approx(0.5)
