"""What every registered objective promises; a new one is covered by being registered."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from distillery.objectives.configs import FITS, OVER_BATCH, ObjectiveConfig
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.registry import OBJECTIVES
from distillery.objectives.weighted_sum import ALONE, WeightedSum, gather_rows
from distillery.signals import Signals

CLASSES, ROWS = 5, 7
OPTIONS = {"fsp": {"project": True}, "reviewkd": {"channels": 8}}
STUDENT = {"shallow": (4, 6, 6), "deep": (8, 3, 3)}
TEACHER = {"early": (6, 6, 6), "late": (12, 3, 3)}
NAMES = sorted(OBJECTIVES)
HEARING = [name for name in NAMES if OBJECTIVES[name].needs_teacher]


def kind_of(name: str) -> str:
    return FITS.get(name, ("classes",))[0]


def width_of(name: str, classes: int) -> int:
    return 1 if kind_of(name) == "number" else classes


def made(name: str, classes: int = CLASSES) -> Objective:
    torch.manual_seed(0)
    config = TypeAdapter(ObjectiveConfig).validate_python({"name": name, **OPTIONS.get(name, {})})
    return OBJECTIVES[name](config, Setting(width_of(name, classes), None, STUDENT, TEACHER)).double()


def said(name: str, shapes: dict[str, tuple[int, ...]], seed: int, rows: int = ROWS, classes: int = CLASSES) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, width_of(name, classes), generator=generator, dtype=torch.float64)
    features = {
        layer: torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for layer, shape in shapes.items()
    }
    return Signals(logits, features)


def target_of(name: str, rows: int = ROWS, classes: int = CLASSES) -> Tensor:
    """Every third row is unlabelled."""
    generator = torch.Generator().manual_seed(9)
    unknown = torch.arange(rows) % 3 == 2
    if kind_of(name) == "classes":
        return torch.where(unknown, -1, torch.randint(classes, (rows,), generator=generator))
    if kind_of(name) == "number":
        return torch.randn(rows, generator=generator, dtype=torch.float64).masked_fill(unknown, torch.nan)
    hot = torch.randint(2, (rows, classes), generator=generator).double()
    return hot.masked_fill(unknown[:, None], torch.nan)


def nothing_known(name: str, rows: int, classes: int = CLASSES) -> Tensor:
    return torch.full_like(target_of(name, rows, classes), -1 if kind_of(name) == "classes" else torch.nan)


def asked(signals: Signals) -> tuple[Signals, list[Tensor]]:
    """The same signals as leaves that want a gradient."""
    leaves = [signals.logits.clone().requires_grad_()]
    features = {name: value.clone().requires_grad_() for name, value in signals.features.items()}
    return Signals(leaves[0], features), [*leaves, *features.values()]


def total(objective: Objective, student: Signals, teacher: Signals, target: Tensor) -> Tensor:
    return objective(student, teacher if objective.needs_teacher else None, target).sum()


def permuted(signals: Signals, order: Tensor) -> Signals:
    return Signals(signals.logits[order], {name: value[order] for name, value in signals.features.items()})


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    objective, student, teacher = made(name), said(name, STUDENT, 1), said(name, TEACHER, 2)
    target, order = target_of(name), torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    straight = total(objective, student, teacher, target)
    mixed = total(objective, permuted(student, order), permuted(teacher, order), target[order])
    assert mixed.item() == pytest.approx(straight.item(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_says_whether_rows_are_compared(name: str) -> None:
    objective = made(name)
    assert objective.over_batch == (name in OVER_BATCH)
    value = objective(said(name, STUDENT, 1), said(name, TEACHER, 2), target_of(name))
    assert value.shape == (() if objective.over_batch else (ROWS,))


@pytest.mark.parametrize("name", HEARING)
def test_a_teacher_gets_no_gradient_and_the_student_does(name: str) -> None:
    objective = made(name)
    student, ours = asked(said(name, STUDENT, 1))
    teacher, theirs = asked(said(name, TEACHER, 2))
    total(objective, student, teacher, target_of(name)).backward()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in theirs)
    assert any(leaf.grad is not None and leaf.grad.any() for leaf in ours)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_its_own_learns(name: str) -> None:
    objective = made(name)
    student, _ = asked(said(name, STUDENT, 1))
    teacher, target = said(name, TEACHER, 2), target_of(name)
    loss = total(objective, student, teacher, target)
    critic = objective.critic(student, teacher, target)
    (loss if critic is None else loss + critic).backward()
    still = [path for path, own in objective.named_parameters() if own.grad is None or not own.grad.any()]
    assert not still


def spoilt(signals: Signals, case: str) -> Signals:
    def change(tensor: Tensor) -> Tensor:
        if case == "constant":
            return torch.full_like(tensor, 0.3)
        return tensor.sign() * 1e4 if case == "extreme" else tensor

    return Signals(change(signals.logits), {name: change(value) for name, value in signals.features.items()})


@pytest.mark.parametrize("case", ["one row", "two classes", "constant", "extreme", "unlabelled"])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_stay_finite(name: str, case: str) -> None:
    rows = 1 if case == "one row" else 4
    classes = 2 if case == "two classes" else CLASSES
    objective = made(name, classes)
    student, leaves = asked(spoilt(said(name, STUDENT, 1, rows, classes), case))
    teacher = spoilt(said(name, TEACHER, 2, rows, classes), case)
    target = nothing_known(name, rows, classes) if case == "unlabelled" else target_of(name, rows, classes)
    value = total(objective, student, teacher, target)
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    assert all(each.grad is None or each.grad.isfinite().all() for each in objective.parameters())
    if case == "unlabelled" and objective.needs_label:
        assert value.item() == 0


def summed(name: str) -> WeightedSum:
    objective = made(name)
    return WeightedSum({name: {"teacher" if objective.needs_teacher else ALONE: objective}}, {name: 1.0})


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]


def share_of_a_process(rank: int, meeting: str, results: str) -> None:
    """Every objective on half of the rows; writes this process's loss and the gradient at its rows."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mine, sizes = torch.arange(rank, ROWS, 2), [4, 3]
    found = {}
    for name in NAMES:
        student, leaves = asked(permuted(said(name, STUDENT, 1), mine))
        teacher, target = permuted(said(name, TEACHER, 2), mine), target_of(name)
        objective = summed(name)
        loss, _ = objective(
            student, {"teacher": teacher}, target[mine], target,
            gather=lambda tensor: gather_rows(tensor, sizes, rank), processes=2,
        )  # fmt: skip
        if loss.requires_grad:
            loss.backward()
        found[name] = [loss.detach(), gradients(leaves), gradients(objective.parameters())]
    torch.save(found, f"{results}{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(share_of_a_process, (str(tmp_path / "meeting"), str(tmp_path / "rank")), nprocs=2)
    shares = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    order = torch.cat([torch.arange(0, ROWS, 2), torch.arange(1, ROWS, 2)])
    for name in NAMES:
        student, leaves = asked(said(name, STUDENT, 1))
        objective = summed(name)
        loss, _ = objective(student, {"teacher": said(name, TEACHER, 2)}, target_of(name), target_of(name))
        loss.backward()
        assert sum(share[name][0].item() for share in shares) == pytest.approx(loss.item(), rel=1e-9), name
        for at, whole in enumerate(gradients(leaves)):
            torch.testing.assert_close(torch.cat([share[name][1][at] for share in shares]), whole[order], msg=name)
        for at, whole in enumerate(gradients(objective.parameters())):
            torch.testing.assert_close(sum(share[name][2][at] for share in shares), whole, msg=name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OVER_BATCH])
def test_a_step_cut_into_pieces_sums_to_the_whole(name: str) -> None:
    student, teacher, target = said(name, STUDENT, 1), said(name, TEACHER, 2), target_of(name)
    whole, _ = summed(name)(student, {"teacher": teacher}, target, target)
    pieces = [torch.arange(0, 3), torch.arange(3, ROWS)]
    parts = [
        summed(name)(permuted(student, part), {"teacher": permuted(teacher, part)}, target[part], target)[0]
        for part in pieces
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-9)
