"""Features of two small networks, for tests of objectives that compare rows or layers."""

import torch

from distillery.objectives.objective import Objective, Setting
from distillery.signals import Signals

# Other widths and sizes on each side, and a vector at the end of one.
UNEQUAL = Setting(
    classes=3,
    student={"s1": (3, 4, 4), "s2": (4, 2, 2), "s3": (5,)},
    teacher={"t1": (4, 6, 6), "t2": (6, 3, 3), "t3": (7, 2, 2)},
)
# Equal widths; sizes differ from layer to layer and from side to side.
EQUAL = Setting(
    classes=3,
    student={"s1": (3, 4, 4), "s2": (4, 2, 2), "s3": (5,)},
    teacher={"t1": (3, 6, 6), "t2": (4, 3, 2), "t3": (5, 1, 1)},
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signals(setting: Setting, rows: int, seed: int = 0) -> tuple[Signals, Signals]:
    """Random logits and features of both sides, each a leaf that takes a gradient."""
    sides = []
    for number, shapes in enumerate((setting.student, setting.teacher)):
        start = 2 * seed + number
        features = {name: random(rows, *shape, seed=start).requires_grad_() for name, shape in shapes.items()}
        sides.append(Signals(random(rows, setting.classes, seed=start).requires_grad_(), features))
    return sides[0], sides[1]


def filled(setting: Setting, rows: int, value: float) -> tuple[Signals, Signals]:
    """The same number everywhere, in float32."""
    sides = []
    for shapes in (setting.student, setting.teacher):
        features = {name: torch.full((rows, *shape), value, requires_grad=True) for name, shape in shapes.items()}
        sides.append(Signals(torch.full((rows, setting.classes), value, requires_grad=True), features))
    return sides[0], sides[1]


def twins(setting: Setting, rows: int, seed: int = 0) -> tuple[Setting, Signals, Signals]:
    """A student that is the teacher's equal, and the setting that goes with it."""
    student, _ = signals(setting, rows, seed)
    same = Signals(student.logits.detach(), {name: each.detach() for name, each in student.features.items()})
    return Setting(setting.classes, student=setting.student, teacher=setting.student), student, same


def shuffled(said: Signals, order: torch.Tensor) -> Signals:
    """The rows in another order."""
    return Signals(said.logits[order], {name: each[order] for name, each in said.features.items()})


def loss_of(objective: Objective, student: Signals, teacher: Signals) -> torch.Tensor:
    """What the objective says of unlabelled rows."""
    return objective(student, teacher, torch.full((len(student.logits),), -1))


def leaves(said: Signals) -> list[torch.Tensor]:
    return [said.logits, *said.features.values()]


def gradients(loss: torch.Tensor, said: Signals) -> torch.Tensor:
    """All gradients in one row of numbers, 0 where the loss does not depend on it."""
    found = torch.autograd.grad(loss.sum(), leaves(said), allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])
