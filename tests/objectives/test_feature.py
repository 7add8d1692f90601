"""Hints, attention, VID, ReviewKD against slow loops in float64, and what they promise."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from distillery.errors import UserError
from distillery.objectives.attention import AttentionObjective, attention
from distillery.objectives.configs.feature import Attention, Hints, Layers, ReviewKd, Vid
from distillery.objectives.hints import HintsObjective, hints
from distillery.objectives.maps import pool
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.reviewkd import ReviewKdObjective, hierarchical_context
from distillery.objectives.vid import VidObjective, vid
from distillery.signals import Signals

# Wider and larger teacher, a size that does not divide, and a vector on one side.
SETTING = Setting(
    classes=3,
    student={"s1": (3, 6, 5), "s2": (4, 3, 3), "s3": (5,)},
    teacher={"t1": (4, 8, 5), "t2": (6, 3, 3), "t3": (7, 2, 2)},
)
METHODS = {
    "hints": lambda setting: HintsObjective(Hints(name="hints"), setting),
    "attention": lambda setting: AttentionObjective(Attention(name="attention"), setting),
    "vid": lambda setting: VidObjective(Vid(name="vid"), setting),
    "reviewkd": lambda setting: ReviewKdObjective(ReviewKd(name="reviewkd", channels=4), setting),
}
seeds = st.integers(0, 2**31)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signals(rows: int = 4, setting: Setting = SETTING, **kind: float) -> tuple[Signals, Signals]:
    sides = []
    for number, shapes in enumerate((setting.student, setting.teacher)):
        features = {name: random(rows, *shape, seed=number, **kind) for name, shape in shapes.items()}
        sides.append(Signals(torch.zeros(rows, 3), {name: each.requires_grad_() for name, each in features.items()}))
    return sides[0], sides[1]


def built(method: str, setting: Setting = SETTING) -> Objective:
    torch.manual_seed(0)
    return METHODS[method](setting).double()


def loss_of(objective: Objective, student: Signals, teacher: Signals) -> torch.Tensor:
    return objective(student, teacher, torch.full((len(student.logits),), -1))


def averaged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Adaptive average pooling, cell by cell."""
    height, width = maps.shape[2:]
    result = np.zeros((*maps.shape[:2], *size))
    for y, x in product(range(size[0]), range(size[1])):
        rows = slice(y * height // size[0], math.ceil((y + 1) * height / size[0]))
        columns = slice(x * width // size[1], math.ceil((x + 1) * width / size[1]))
        result[:, :, y, x] = maps[:, :, rows, columns].mean((2, 3))
    return result


def convolved(maps: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A 1x1 convolution, row by row and position by position."""
    weight = layer.weight.detach().numpy()[:, :, 0, 0]
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    rows, _, height, width = maps.shape
    result = np.zeros((rows, len(weight), height, width))
    for row, y, x in product(range(rows), range(height), range(width)):
        result[row, :, y, x] = weight @ maps[row, :, y, x] + bias
    return result


def as_arrays(side: Signals) -> list[np.ndarray]:
    arrays = [each.detach().numpy() for each in side.features.values()]
    return [each[:, :, None, None] if each.ndim == 2 else each for each in arrays]


def sized(student: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = tuple(min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return averaged(student, size), averaged(teacher, size)


def slow_hints(objective: HintsObjective, student: Signals, teacher: Signals) -> np.ndarray:
    losses = []
    for layer, mine, theirs in zip(objective.projectors, as_arrays(student), as_arrays(teacher), strict=True):
        # Projected first and pooled afterwards: the other order than in the code.
        ours, goal = sized(convolved(mine, layer), theirs)
        losses.append([np.mean((ours[row] - goal[row]) ** 2) for row in range(len(ours))])
    return np.mean(losses, axis=0)


def slow_attention(objective: AttentionObjective, student: Signals, teacher: Signals) -> np.ndarray:
    losses = []
    for mine, theirs in list(zip(as_arrays(student), as_arrays(teacher), strict=True))[:2]:  # the third is 1 x 1
        ours, goal = sized((mine**2).mean(1, keepdims=True), (theirs**2).mean(1, keepdims=True))
        for_rows = []
        for a, b in zip(ours.reshape(len(ours), -1), goal.reshape(len(goal), -1), strict=True):
            for_rows.append(2 - 2 * (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)))
        losses.append(for_rows)
    return np.mean(losses, axis=0)


def slow_vid(objective: VidObjective, student: Signals, teacher: Signals) -> np.ndarray:
    losses = []
    for gaussian, mine, theirs in zip(objective.gaussians, as_arrays(student), as_arrays(teacher), strict=True):
        ours, goal = sized(mine, theirs)
        first, _, second, _, third = gaussian.mean
        mean = convolved(np.maximum(convolved(np.maximum(convolved(ours, first), 0), second), 0), third)
        variance = np.log1p(np.exp(gaussian.alpha.detach().numpy())) + 1e-5
        for_rows = []
        for row in range(len(goal)):
            cells = [
                math.log(math.sqrt(variance[c])) + (goal[row, c, y, x] - mean[row, c, y, x]) ** 2 / (2 * variance[c])
                for c, y, x in product(*map(range, goal.shape[1:]))
            ]
            for_rows.append(np.mean(cells))
        losses.append(for_rows)
    return np.mean(losses, axis=0)


def slow_context(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    total, weights, weight = np.zeros(len(student)), 0.0, 1.0
    for size in (None, 4, 2, 1):
        if size is not None and size >= min(student.shape[2:]):
            continue
        a, b = (each if size is None else averaged(each, (size, size)) for each in (student, teacher))
        total += weight * np.array([np.mean((a[row] - b[row]) ** 2) for row in range(len(a))])
        weights += weight
        weight /= 2
    return total / weights


def slow_reviewkd(objective: ReviewKdObjective, student: Signals, teacher: Signals) -> np.ndarray:
    losses, above = [], None
    levels = zip(objective.fusions, as_arrays(student)[::-1], as_arrays(teacher)[::-1], strict=True)
    for fusion, mine, theirs in levels:
        narrow = convolved(mine, fusion.narrow[0])
        mean, variance = (getattr(narrow, what)((1, 2, 3), keepdims=True) for what in ("mean", "var"))
        fused = (narrow - mean) / np.sqrt(variance + 1e-5)
        if above is not None:
            height, width = fused.shape[2:]
            rows = [y * above.shape[2] // height for y in range(height)]
            columns = [x * above.shape[3] // width for x in range(width)]
            larger = above[:, :, rows][:, :, :, columns]
            masks = 1 / (1 + np.exp(-convolved(np.concatenate([fused, larger], 1), fusion.masks[0])))
            fused = fused * masks[:, [0]] + larger * masks[:, [1]]
        above = fused
        weight, bias = (each.detach().numpy() for each in (fusion.widen.weight, fusion.widen.bias))
        padded = np.pad(fused, ((0, 0), (0, 0), (1, 1), (1, 1)))
        wide = np.zeros((len(fused), len(weight), *fused.shape[2:]))
        for row, c, y, x in product(*map(range, wide.shape)):
            wide[row, c, y, x] = (weight[c] * padded[row, :, y : y + 3, x : x + 3]).sum() + bias[c]
        losses.append(slow_context(*sized(wide, theirs)))
    return np.mean(losses, axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_each_loss_is_the_slow_loop_of_its_paper(method):
    objective, (student, teacher) = built(method), signals()
    with torch.no_grad():
        for parameter in objective.parameters():  # also biases and variances away from where they start
            parameter.add_(random(*parameter.shape, seed=1, scale=0.1))
        if isinstance(objective, ReviewKdObjective):
            for fusion in objective.fusions:
                nn.init.ones_(fusion.narrow[1].weight)
                nn.init.zeros_(fusion.narrow[1].bias)
    expected = {
        "hints": slow_hints, "attention": slow_attention, "vid": slow_vid, "reviewkd": slow_reviewkd,
    }[method](objective, student, teacher)  # fmt: skip
    found = loss_of(objective, student, teacher)
    assert found.shape == (4,)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_are_right(method):
    objective, (student, teacher) = built(method), signals(rows=2)
    names = list(student.features)
    if method == "attention":
        names = names[:2]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        features = {**student.features, **dict(zip(names, values, strict=True))}
        return loss_of(objective, Signals(student.logits, features), teacher)

    assert torch.autograd.gradcheck(loss, tuple(student.features[name] for name in names))
    extra = list(objective.named_parameters())
    for name, parameter in extra if method == "vid" else extra[:1]:

        def moved(value: torch.Tensor, name: str = name) -> torch.Tensor:
            arguments = (student, teacher, torch.zeros(2, dtype=torch.int64))
            return torch.func.functional_call(objective, {name: value}, arguments)

        assert torch.autograd.gradcheck(moved, parameter.detach().clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_extra_parameter_learns_and_the_teacher_does_not(method):
    objective, (student, teacher) = built(method), signals()
    loss_of(objective, student, teacher).sum().backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(each.grad is None for each in teacher.features.values())
    read = list(student.features.values())[: 2 if method == "attention" else 3]
    assert all(each.grad.abs().sum() > 0 for each in read)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["zeros", "constant", "tiny", "huge", "one side huge"])
def test_values_and_gradients_stay_finite(method, rows, kind):
    objective = built(method).float()
    student, teacher = signals(rows)
    change = {
        "zeros": torch.zeros_like, "constant": torch.ones_like, "tiny": lambda each: each * 1e-20,
        "huge": lambda each: each * 1e4, "one side huge": lambda each: each * 1e4,
    }[kind]  # fmt: skip
    ours = {name: change(each.detach()).float().requires_grad_() for name, each in student.features.items()}
    still = torch.zeros_like if kind == "one side huge" else change
    theirs = {name: still(each.detach()).float() for name, each in teacher.features.items()}
    loss = loss_of(objective, Signals(student.logits, ours), Signals(teacher.logits, theirs))
    loss.sum().backward()
    gradients = [each.grad for each in [*ours.values(), *objective.parameters()] if each.grad is not None]
    assert torch.isfinite(loss).all() and all(torch.isfinite(each).all() for each in gradients)


@pytest.mark.parametrize("method", METHODS)
@quick
@given(cut=st.integers(1, 4), order=st.permutations(range(5)))
def test_a_row_counts_by_itself_however_the_batch_is_cut_or_ordered(method, cut, order):
    objective, (student, teacher) = built(method), signals(rows=5)

    def of(rows: list[int]) -> torch.Tensor:
        sides = (
            Signals(side.logits[rows], {k: v[rows] for k, v in side.features.items()}) for side in (student, teacher)
        )
        return loss_of(objective, *sides)

    whole = loss_of(objective, student, teacher)
    torch.testing.assert_close(torch.cat([of(order[:cut]), of(order[cut:])]), whole[order])


@pytest.mark.parametrize("method", METHODS)
def test_a_process_without_rows_adds_nothing(method):
    loss = loss_of(built(method), *signals(rows=0))
    assert loss.shape == (0,)
    loss.sum().backward()


def test_equal_features_score_zero_and_stay_where_that_is_promised():
    same = random(4, 3, 5, 5).requires_grad_()
    for loss in (attention, hints, hierarchical_context):
        value = loss(same, same.detach()).sum()
        (gradient,) = torch.autograd.grad(value, same)
        assert value.item() == pytest.approx(0.0, abs=1e-14) and gradient.abs().max() < 1e-14


def test_an_identity_projector_makes_equal_features_the_best():
    setting = Setting(3, student={"s": (3, 4, 4)}, teacher={"t": (3, 4, 4)})
    objective = built("hints", setting)
    (projector,) = objective.projectors
    nn.init.dirac_(projector.weight)
    nn.init.zeros_(projector.bias)
    same = random(2, 3, 4, 4).requires_grad_()
    loss = loss_of(objective, Signals(torch.zeros(2, 3), {"s": same}), Signals(torch.zeros(2, 3), {"t": same.detach()}))
    loss.sum().backward()
    assert loss.abs().max() == 0 and same.grad.abs().max() == 0 and projector.weight.grad.abs().max() == 0


@quick
@given(seed=seeds, height=st.integers(2, 6), width=st.integers(2, 6), channels=st.integers(1, 4))
def test_attention_weighs_a_map_and_its_enlargement_alike(seed, height, width, channels):
    student, teacher = random(2, channels, height, width, seed=seed), random(2, 3, height, width, seed=seed + 1)
    larger = [functional.interpolate(each, scale_factor=2, mode="nearest") for each in (student, teacher)]
    expected = attention(student, teacher)
    torch.testing.assert_close(attention(*larger), expected)
    torch.testing.assert_close(attention(student, larger[1]), expected)
    torch.testing.assert_close(attention(larger[0], teacher), expected)


@quick
@given(seed=seeds, factor=st.floats(1e-2, 1e3))
def test_attention_reads_where_and_not_how_much_or_in_which_channel(seed, factor):
    student, teacher = random(2, 4, 3, 5, seed=seed), random(2, 3, 3, 5, seed=seed + 1)
    expected = attention(student, teacher)
    assert (expected >= 0).all() and (expected <= 2).all()
    changed = -factor * student[:, [2, 0, 3, 1]]
    torch.testing.assert_close(attention(changed, teacher), expected)
    torch.testing.assert_close(attention(student.repeat(1, 3, 1, 1), teacher), expected)


def test_attention_by_hand_is_not_divided_by_the_area():
    # Activity at one corner against activity at another: orthogonal maps, 2 - 2 cos = 2, on 2 x 2 and on 8 x 8.
    for size in (2, 8):
        student, teacher = torch.zeros(1, 2, size, size), torch.zeros(1, 1, size, size)
        student[0, :, 0, 0], teacher[0, :, -1, -1] = 3.0, 5.0
        assert attention(student, teacher).item() == pytest.approx(2.0)


def test_vid_starts_at_the_variance_it_is_told_and_is_not_zero_for_a_perfect_prediction():
    objective = built("vid")
    for gaussian in objective.gaussians:
        torch.testing.assert_close(gaussian.variance, torch.full_like(gaussian.alpha, 5.0))
    same, variance = random(2, 3, 4, 4), torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(vid(same, variance, same), torch.zeros(2, dtype=torch.float64))  # logs cancel
    assert vid(same, variance / 2, same).sum().item() == pytest.approx(2 * 0.5 * math.log(0.5))


def test_vid_learns_the_variance_of_what_cannot_be_predicted():
    setting = Setting(3, student={"s": (2,)}, teacher={"t": (2,)})
    objective = built("vid", setting)
    rows, target = 512, torch.zeros(512)
    noise = random(rows, 2) * torch.tensor([0.3, 2.0])
    student = Signals(torch.zeros(rows, 3), {"s": torch.zeros(rows, 2, dtype=torch.float64)})
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        objective(student, Signals(torch.zeros(rows, 3), {"t": noise}), target).mean().backward()
        optimizer.step()
    found = objective.gaussians[0].variance.detach()
    torch.testing.assert_close(found, noise.var(0, unbiased=False), rtol=0.02, atol=0.0)


def test_a_review_reaches_back_from_the_shallow_teacher_to_the_deep_student():
    objective, (student, teacher) = built("reviewkd"), signals()
    shallow_only = Signals(teacher.logits, dict(teacher.features))
    before = loss_of(objective, student, shallow_only)
    changed = Signals(teacher.logits, {**teacher.features, "t1": teacher.features["t1"].detach() + 1})
    (gradient,) = torch.autograd.grad((loss_of(objective, student, changed) - before).sum(), student.features["s3"])
    assert gradient.abs().sum() > 0


@quick
@given(seed=seeds, before=st.tuples(st.integers(1, 9), st.integers(1, 9)), data=st.data())
def test_pooling_is_adaptive_average_pooling(seed, before, data):
    size = tuple(data.draw(st.integers(1, each)) for each in before)
    maps = random(2, 3, *before, seed=seed)
    torch.testing.assert_close(pool(maps, size), functional.adaptive_avg_pool2d(maps, size))
    np.testing.assert_allclose(pool(maps, size).numpy(), averaged(maps.numpy(), size), rtol=1e-9, atol=1e-12)


def test_half_precision_features_are_widened_before_they_are_squared():
    setting = Setting(3, student={"s": (2, 2, 2)}, teacher={"t": (2, 2, 2)})
    large = torch.full((1, 2, 2, 2), 1e4, dtype=torch.float16)  # its square is infinite in float16
    student, teacher = Signals(torch.zeros(1, 3), {"s": large}), Signals(torch.zeros(1, 3), {"t": large})
    for method in METHODS:
        assert torch.isfinite(loss_of(built(method, setting).float(), student, teacher)).all()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ({}, {}, "0 student layers"),
        ({"a": (2, 2, 2)}, {"x": (2, 2, 2), "y": (2, 2, 2)}, "1 student layers cannot be paired with 2"),
        ({"a": (2, 7)}, {"x": (2, 2, 2)}, r"student's layer a puts out \(2, 7\)"),
    ],
)
def test_layers_that_cannot_be_paired_are_refused(student, teacher, message):
    for method in METHODS:
        with pytest.raises(UserError, match=message):
            built(method, Setting(3, student=student, teacher=teacher))


def test_attention_without_positions_is_refused():
    with pytest.raises(UserError, match="more than one position"):
        built("attention", Setting(3, student={"a": (4,)}, teacher={"x": (4, 3, 3)}))


def test_wrong_parameters_are_refused():
    assert Hints(name="hints", layers={"student": ["a"], "teacher": ["x"]}).layers == Layers(
        student=("a",), teacher=("x",)
    )
    for wrong in ({"student": ["a"], "teacher": []}, {"student": ["a"], "teacher": ["x", "y"]},
                  {"student": ["a", "a"], "teacher": ["x", "y"]}):  # fmt: skip
        with pytest.raises(ValidationError):
            Hints(name="hints", layers=wrong)
    with pytest.raises(ValidationError):
        Attention(name="attention", weight=0.0)
    with pytest.raises(ValidationError, match="larger than smallest"):
        Vid(name="vid", initial_variance=1e-6)
