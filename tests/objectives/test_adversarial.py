"""The game against the discriminator: its losses, who moves what, and when it has collapsed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from distillery.objectives.adversarial import AdversarialObjective, condition, deception, detection
from distillery.objectives.configs.adversarial import Adversarial
from distillery.objectives.objective import Setting
from distillery.signals import Signals

SETTING = Setting(3, student={"s1": (2, 4, 4), "s2": (5, 2, 2)}, teacher={"t1": (3, 4, 4), "t2": (6,)})
TARGET = torch.tensor([0, -1, 2, 1, -1, 0])
quick = settings(max_examples=25, deadline=None, derandomize=True)


def side(number: int, rows: int = 6, scale: float = 1.0) -> Signals:
    generator = torch.Generator().manual_seed(number)
    shapes = (SETTING.student, SETTING.teacher)[number]
    draw = lambda *shape: scale * torch.randn(rows, *shape, dtype=torch.float64, generator=generator)  # noqa: E731
    logits = draw(3).requires_grad_()
    return Signals(logits, {name: draw(*shape).requires_grad_() for name, shape in shapes.items()})


def built(**parameters) -> AdversarialObjective:
    torch.manual_seed(0)
    return AdversarialObjective(Adversarial(name="adversarial", hidden=(8, 6), **parameters), SETTING).double()


def slow_discriminator(objective: AdversarialObjective, signal: np.ndarray) -> tuple[float, np.ndarray]:
    """One row through the MLP by hand: the source score and the log-probabilities of the classes."""
    state = {name: value.detach().numpy() for name, value in objective.discriminator.named_parameters()}
    for layer in (0, 2):
        signal = np.maximum(state[f"body.{layer}.weight"] @ signal + state[f"body.{layer}.bias"], 0)
    scores = state["classes.weight"] @ signal + state["classes.bias"]
    source = float((state["source.weight"] @ signal + state["source.bias"])[0])
    return source, scores - math.log(sum(math.exp(score) for score in scores))


def slow_roughness(objective: AdversarialObjective, signal: np.ndarray) -> float:
    """Squared norm of the gradient of the source score, by the chain rule."""
    state = {name: value.detach().numpy() for name, value in objective.discriminator.named_parameters()}
    slope = np.eye(len(signal))
    for layer in (0, 2):
        inner = state[f"body.{layer}.weight"] @ signal + state[f"body.{layer}.bias"]
        slope = (inner > 0)[:, None] * (state[f"body.{layer}.weight"] @ slope)
        signal = np.maximum(inner, 0)
    return float(np.square(state["source.weight"] @ slope).sum())


def slow_signals(objective: AdversarialObjective, student: Signals, teacher: Signals) -> tuple[np.ndarray, np.ndarray]:
    if objective.pair is None:
        values = [each.logits.detach().numpy() for each in (student, teacher)]
        return tuple(each - each.mean(1, keepdims=True) for each in values)  # type: ignore[return-value]
    pooled = student.features["s2"].detach().numpy().mean((2, 3))
    weight, bias = (each.detach().numpy() for each in objective.projector.parameters())
    return pooled @ weight.T + bias, teacher.features["t2"].detach().numpy()


@pytest.mark.parametrize("gamma", [0.0, 2.5])
@pytest.mark.parametrize("signal", ["logits", "features"])
def test_both_losses_are_the_slow_loop_of_the_definition(signal, gamma):
    objective, student, teacher = built(signal=signal, gradient_penalty=gamma), side(0), side(1)
    ours, theirs = slow_signals(objective, student, teacher)
    sigmoid = lambda score: 1 / (1 + math.exp(-score))  # noqa: E731
    for_student, for_critic = [], []
    for row, label in enumerate(TARGET.tolist()):
        odds = np.exp(teacher.logits.detach().numpy()[row])
        said = np.eye(3)[label] if label >= 0 else odds / odds.sum()
        (source, classes), (goal, goal_classes) = (slow_discriminator(objective, each[row]) for each in (ours, theirs))
        for_student.append(-math.log(sigmoid(source)) - said @ classes)
        found = math.log(1 - sigmoid(source)) + math.log(sigmoid(goal))
        penalty = gamma * slow_roughness(objective, theirs[row])
        for_critic.append(-0.5 * (found + said @ classes + said @ goal_classes - penalty))
    np.testing.assert_allclose(objective(student, teacher, TARGET).detach().numpy(), for_student, rtol=1e-9)
    assert objective.critic(student, teacher, TARGET).item() == pytest.approx(np.mean(for_critic), rel=1e-9)


def test_the_gradients_are_right():
    objective, student, teacher = built(), side(0), side(1)
    loss = lambda logits: objective(Signals(logits), teacher, TARGET)  # noqa: E731
    assert torch.autograd.gradcheck(loss, student.logits)
    scores = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(detection, scores)


@quick
@given(score=st.floats(-20, 20), other=st.floats(-20, 20))
def test_what_the_critic_loses_the_student_wins(score, other):
    student, teacher = torch.tensor([score], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)
    nothing, said = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert detection(student, teacher).item() >= 0
    assert deception(student + 1, nothing, said) < deception(student, nothing, said)
    assert detection(student + 1, teacher) > detection(student, teacher)
    guessing = torch.zeros(1, dtype=torch.float64)
    assert detection(guessing, guessing).item() == pytest.approx(math.log(2))


@quick
@given(shift=st.floats(-1e3, 1e3))
def test_a_constant_added_to_all_logits_tells_nothing(shift):
    objective, student, teacher = built(), side(0), side(1)
    expected = objective(student, teacher, TARGET)
    moved = objective(Signals(student.logits + shift), Signals(teacher.logits + shift), TARGET)
    torch.testing.assert_close(moved, expected)


def test_the_condition_is_the_label_or_else_the_teacher():
    teacher = side(1).logits.detach()
    said = condition(teacher, TARGET)
    torch.testing.assert_close(said.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(said[TARGET == -1], teacher[TARGET == -1].softmax(1))
    assert said[TARGET != -1].argmax(1).tolist() == [0, 2, 1, 0] and said[TARGET != -1].amax(1).eq(1).all()


@pytest.mark.parametrize("signal", ["logits", "features"])
def test_the_steps_of_critic_and_student_are_apart(signal):
    objective, student, teacher = built(signal=signal), side(0), side(1)
    critics = objective.critic_parameters()
    of_student = [each for each in objective.parameters() if all(each is not other for other in critics)]
    assert len(of_student) == (2 if signal == "features" else 0)
    read = student.features["s2"] if signal == "features" else student.logits

    objective(student, teacher, TARGET).sum().backward()
    assert read.grad.abs().sum() > 0 and all(each.grad.abs().sum() > 0 for each in of_student)
    assert all(each.grad is None for each in critics), "the student's loss leaves the critic alone"
    read.grad = None
    for each in of_student:
        each.grad = None

    objective.critic(student, teacher, TARGET).backward()
    assert all(each.grad.abs().sum() > 0 for each in critics)
    assert read.grad is None and all(each.grad is None for each in of_student), "and the other way round"
    assert teacher.logits.grad is None and all(each.grad is None for each in teacher.features.values())


def test_a_row_counts_by_itself():
    objective, student, teacher = built(), side(0), side(1)
    whole, critic = objective(student, teacher, TARGET), objective.critic(student, teacher, TARGET)
    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    cut = [(Signals(student.logits[part]), Signals(teacher.logits[part]), TARGET[part]) for part in parts]
    torch.testing.assert_close(torch.cat([objective(*each) for each in cut]), whole)
    torch.testing.assert_close(torch.stack([objective.critic(*each) for each in cut]).mean(), critic)


def test_a_process_without_rows_changes_nothing():
    objective = built()
    objective.critic(side(0), side(1), TARGET)
    accuracy = objective.critic_accuracy
    empty = Signals(torch.zeros(0, 3, dtype=torch.float64))
    assert objective.critic(empty, empty, TARGET[:0]).item() == 0 and objective.critic_accuracy == accuracy
    assert objective(empty, empty, TARGET[:0]).shape == (0,)


@pytest.mark.parametrize("signal", ["logits", "features"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
def test_values_and_gradients_stay_finite(signal, rows, scale):
    objective, student, teacher = built(signal=signal), side(0, rows, scale), side(1, rows, -scale)
    unlabelled = torch.full((rows,), -1)
    losses = [objective(student, teacher, unlabelled).mean(), objective.critic(student, teacher, unlabelled)]
    sum(losses).backward()
    everything = [student.logits, *student.features.values(), *objective.parameters()]
    assert all(torch.isfinite(loss) for loss in losses) and math.isfinite(objective.critic_gradient)
    assert all(torch.isfinite(each.grad).all() for each in everything if each.grad is not None)


def test_the_running_means_are_decayed_means_of_accuracy_and_gradient():
    objective, teacher = built(), side(1)
    assert math.isnan(objective.critic_accuracy) and math.isnan(objective.critic_gradient)
    seen = []
    for step in range(4):
        student = Signals(side(0).logits.detach() + step * torch.tensor([1.0, 0.0, -1.0]))
        ours, theirs = slow_signals(objective, student, teacher)
        scores = [[slow_discriminator(objective, row)[0] for row in each] for each in (ours, theirs)]
        right = np.mean([score < 0 for score in scores[0]] + [score > 0 for score in scores[1]])
        leaf = torch.from_numpy(ours).requires_grad_()
        functional.softplus(-objective.discriminator(leaf)[0]).sum().backward()
        seen.append((right, np.linalg.norm(leaf.grad.numpy(), axis=1).mean()))
        objective.critic(student, teacher, TARGET)
    weights = [0.99 ** (3 - step) for step in range(4)]
    accuracy, gradient = np.average(seen, axis=0, weights=weights)
    assert objective.critic_accuracy == pytest.approx(accuracy) and objective.critic_gradient == pytest.approx(gradient)


def test_the_running_means_survive_a_checkpoint():
    objective = built()
    objective.critic(side(0), side(1), TARGET)
    again = built()
    again.load_state_dict(objective.state_dict())
    for each in (objective, again):
        each.critic(side(1), side(1), TARGET)
    assert again.critic_accuracy == objective.critic_accuracy and again.steps.item() == 2


def play(objective: AdversarialObjective, student: torch.Tensor, teacher: torch.Tensor, rate: float) -> None:
    optimizer = torch.optim.AdamW(objective.critic_parameters(), lr=rate)
    target = torch.zeros(len(student), dtype=torch.int64)
    for _ in range(150):
        optimizer.zero_grad()
        objective.critic(Signals(student), Signals(teacher), target).backward()
        optimizer.step()


def test_a_critic_that_always_wins_is_reported():
    objective = built()
    teacher = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).double()
    far = teacher + torch.tensor([20.0, 0.0, -20.0])
    play(objective, far, teacher, rate=0.1)
    assert objective.critic_accuracy > 0.99
    assert "cannot win" in objective.collapse()


def test_a_dead_critic_is_reported():
    objective = built()
    for parameter in objective.critic_parameters():
        torch.nn.init.zeros_(parameter)
    play(objective, side(0).logits.detach(), side(1).logits.detach(), rate=1e-12)
    assert objective.critic_accuracy == pytest.approx(0.5) and objective.critic_gradient < 1e-6
    assert "guesses" in objective.collapse()


def test_nothing_is_reported_too_early_or_in_a_fair_game():
    objective = built()
    objective.critic(side(0), side(1), TARGET)
    assert objective.collapse() is None
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(256, 3, generator=generator).double() + shift for shift in (0.0, torch.eye(3)[0]))
    play(objective, student, teacher, rate=0.01)
    assert 0.6 < objective.critic_accuracy < 0.9 and objective.collapse() is None


def test_a_student_that_can_move_comes_to_speak_like_the_teacher():
    torch.manual_seed(0)
    objective = built()
    teacher = torch.randn(256, 3, dtype=torch.float64) * 2 + torch.tensor([3.0, 0.0, -3.0])
    student = torch.randn(256, 3, dtype=torch.float64).requires_grad_()
    target = torch.full((256,), -1)
    before = _gap(student, teacher)
    ours = torch.optim.Adam([student], lr=0.05)
    critics = torch.optim.Adam(objective.critic_parameters(), lr=0.01)
    for _ in range(150):
        critics.zero_grad()
        objective.critic(Signals(student), Signals(teacher), target).backward()
        critics.step()
        ours.zero_grad()
        objective(Signals(student), Signals(teacher), target).sum().backward()
        ours.step()
    assert _gap(student, teacher) < 0.5 * before


def _gap(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Distance of the mean centred logits."""
    centred = [(each - each.mean(1, keepdim=True)).mean(0) for each in (student.detach(), teacher)]
    return float((centred[0] - centred[1]).norm())


def test_wrong_parameters_are_refused():
    layers = {"student": ["a"], "teacher": ["x"]}
    with pytest.raises(ValidationError, match="signal: features"):
        Adversarial(name="adversarial", layers=layers)
    with pytest.raises(ValidationError, match="one pair"):
        Adversarial(name="adversarial", signal="features", layers={"student": ["a", "b"], "teacher": ["x", "y"]})
    with pytest.raises(ValidationError):
        Adversarial(name="adversarial", hidden=())
    assert Adversarial(name="adversarial", signal="features", layers=layers).layers is not None
