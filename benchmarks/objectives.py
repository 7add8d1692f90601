"""What every objective costs: a step of the main job's student with it, and its own arithmetic against a floor."""

from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.digits28 import SCHEMA, main_job, teacher_model
from benchmarks.interleaved import Result, Work, ratio, seconds
from distillery import models
from distillery.features import Capture, feature_shapes
from distillery.objectives.configs import FITS, OVER_BATCH, ObjectiveConfig, needs_features
from distillery.objectives.loss import Loss
from distillery.objectives.registry import OBJECTIVES, build
from distillery.signals import Signals

ROWS, ROUNDS = 128, 15
OPTIONS = {"fsp": {"project": True}}
STEP, ARITHMETIC = 2.0, 10.0  # aims: of a plain step, and of the floor


def measure(folder: Path) -> list[Result]:
    """Interleaved steps on 128 rows; what the teacher says is given, as if it had been stored."""
    student = models.build(main_job().student.model, SCHEMA, seed=0)
    teacher = models.build(teacher_model(), SCHEMA, seed=1)
    images = torch.randint(256, (ROWS, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target = {"label": torch.arange(ROWS) % 10}
    names = [name for name in OBJECTIVES if "classes" in FITS.get(name, ("classes",))]
    steps: dict[str, Work] = {}
    alone: dict[str, Work] = {}
    for name in names:
        config = TypeAdapter(ObjectiveConfig).validate_python({"name": name, **OPTIONS.get(name, {})})
        loss = build([config], student, {"teacher": teacher})
        shapes = feature_shapes(teacher, loss.teacher_layers["teacher"])
        said = Signals(torch.randn(ROWS, 10), {layer: torch.randn(ROWS, *shape) for layer, shape in shapes.items()})
        capture = Capture(student, loss.student_layers)
        steps[name] = _step(student, capture, images, loss, said, target)
        own = Signals(
            torch.randn(ROWS, 10),
            {layer: torch.randn(ROWS, *shape) for layer, shape in feature_shapes(student, loss.student_layers).items()},
        )
        alone[name] = _alone(loss, own, said, target)
        alone[f"floor of {name}"] = _floor(own, said, pairs=name in OVER_BATCH, layers=needs_features(config))
    stepped, by_itself = seconds(steps, ROUNDS), seconds(alone, ROUNDS)
    results = []
    for name in names:
        value, told = ratio(stepped, name, "cross_entropy")
        results.append(Result(f"a step with {name} / with cross_entropy", told, f"<= {STEP:g}", value <= STEP))
    for name in names:
        value, told = ratio(by_itself, name, f"floor of {name}")
        results.append(Result(f"{name} alone / its floor", told, f"<= {ARITHMETIC:g}", value <= ARITHMETIC))
    return results


def _step(
    student: torch.nn.Module, capture: Capture, images: Tensor, loss: Loss, said: Signals, target: dict[str, Tensor]
) -> Work:
    """Forward and backward through the student."""

    def work() -> None:
        signals = Signals(student(images), capture.features)
        loss(signals, {"teacher": said}, target, target)[0].backward()

    return work


def _alone(loss: Loss, own: Signals, said: Signals, target: dict[str, Tensor]) -> Work:
    """Forward and backward of the loss, from given signals."""
    wanting = Signals(_leaf(own.logits), {layer: _leaf(value) for layer, value in own.features.items()})

    def work() -> None:
        value, _ = loss(wanting, {"teacher": said}, target, target)
        torch.autograd.backward(value)

    return work


def _floor(own: Signals, said: Signals, *, pairs: bool, layers: bool) -> Work:
    """The cheapest that touches what is compared: squared differences of outputs or layers, or of all pairs of rows."""
    ours = list(own.features.values()) if layers else [own.logits]
    theirs = list(said.features.values()) if layers else [said.logits]
    leaves = [_leaf(value.flatten(1)) for value in ours]
    given = [value.flatten(1) for value in theirs]

    def work() -> None:
        if pairs:
            value = sum((a @ a.T - b @ b.T).square().mean() for a, b in zip(leaves[-1:], given[-1:], strict=True))
        else:
            value = sum(a.square().mean() + b.square().mean() for a, b in zip(leaves, given, strict=True))
        assert isinstance(value, Tensor)
        torch.autograd.backward(value)

    return work


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
