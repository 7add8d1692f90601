"""The sum of named objectives: each over the rows that it is about, however a step is cut."""

import math
from collections.abc import Mapping

import pytest
import torch

from distillery.objectives.configs.response import (
    CrossEntropy,
    Dkd,
    Kd,
    Mse,
    MseTeacher,
    MultilabelCrossEntropy,
    MultilabelKd,
)
from distillery.objectives.cross_entropy import CrossEntropyObjective, cross_entropy
from distillery.objectives.dkd import DkdObjective
from distillery.objectives.kd import KdObjective, kd
from distillery.objectives.mse import MseObjective, MseTeacherObjective
from distillery.objectives.multilabel import MultilabelCrossEntropyObjective, MultilabelKdObjective
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.weighted_sum import ALONE, WeightedSum
from distillery.signals import Signals

SETTING = Setting(classes=5)
KINDS: dict[str, dict[str, Objective]] = {
    "classes": {
        "kd": KdObjective(Kd(name="kd"), SETTING),
        "dkd": DkdObjective(Dkd(name="dkd"), SETTING),
        "cross_entropy": CrossEntropyObjective(CrossEntropy(name="cross_entropy"), SETTING),
    },
    "numbers": {
        "mse": MseObjective(Mse(name="mse"), SETTING),
        "mse_teacher": MseTeacherObjective(MseTeacher(name="mse_teacher"), SETTING),
    },
    "labels": {
        "multilabel_cross_entropy": MultilabelCrossEntropyObjective(
            MultilabelCrossEntropy(name="multilabel_cross_entropy"), SETTING
        ),
        "multilabel_kd": MultilabelKdObjective(MultilabelKd(name="multilabel_kd"), SETTING),
    },
}


def summed(objectives: Mapping[str, Objective], **weights: float) -> WeightedSum:
    parts = {name: {"teacher" if each.needs_teacher else ALONE: each} for name, each in objectives.items()}
    return WeightedSum(parts, {name: weights.get(name, 1.0) for name in objectives})


def target_of(kind: str) -> torch.Tensor:
    """Half of six rows unlabelled."""
    if kind == "classes":
        return torch.tensor([0, -1, -1, 3, -1, 2])
    target = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]] * 6)
    target[[1, 2, 4]] = math.nan
    return target


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    return student, teacher


def test_each_term_is_averaged_over_the_rows_it_is_about(logits):
    student, teacher = logits
    target = target_of("classes")
    both = {name: KINDS["classes"][name] for name in ("kd", "cross_entropy")}
    total, named = summed(both, kd=0.75, cross_entropy=0.5)(
        Signals(student), {"teacher": Signals(teacher)}, target, target
    )
    assert named["kd"].item() == pytest.approx(kd(student, teacher, 2.0).mean().item())
    assert named["cross_entropy"].item() == pytest.approx(cross_entropy(student, target).sum().item() / 3)
    assert total.item() == pytest.approx(0.75 * named["kd"].item() + 0.5 * named["cross_entropy"].item())


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_whole_step(kind, logits):
    student, teacher = logits
    target = target_of(kind)
    objectives = summed(KINDS[kind])
    whole, named = objectives(Signals(student), {"teacher": Signals(teacher)}, target, target)
    parts = [
        objectives(Signals(student[part]), {"teacher": Signals(teacher[part])}, target[part], target)
        for part in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    for name in KINDS[kind]:
        assert sum(part[name].item() for _, part in parts) == pytest.approx(named[name].item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_unlabelled_rows_alone_teaches_by_the_teacher_only(kind, logits):
    student, teacher = logits
    target = torch.full((6,), -1) if kind == "classes" else torch.full((6, 5), math.nan)
    total, named = summed(KINDS[kind])(Signals(student), {"teacher": Signals(teacher)}, target, target)
    silent = [name for name, each in KINDS[kind].items() if each.needs_label]
    assert all(named[name].item() == 0.0 for name in silent)
    heard = sum(named[name].item() for name in KINDS[kind] if name not in silent)
    assert total.item() == pytest.approx(heard) and heard > 0
