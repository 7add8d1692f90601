"""Trains the student on what others say about every row, labelled or not: teachers, peers, or itself."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from distillery.config import BornAgain, Exits, FromTeacher
from distillery.models import Network
from distillery.objectives.configs import needs_features
from distillery.objectives.loss import Loss
from distillery.objectives.registry import build
from distillery.saved import load_model
from distillery.signals import Teacher
from distillery.starts import from_teacher
from distillery.step import STUDENT
from tasks.params.sections import Distill
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits, balance, save, start, teach
from tasks.training.self_taught import born_again, teach_exits
from tasks.training.teaching import hear


def run(stage: Stage) -> Summary:
    """Writes `models/distilled`."""
    splits = Splits.open(stage, views=True)
    own = stage.params.distill.self
    if isinstance(own, BornAgain):
        return born_again(stage, splits, own.generations, lambda seed: new_student(stage, splits, seed))
    student = new_student(stage, splits, stage.params.seed)
    if isinstance(own, Exits):
        return teach_exits(stage, splits, student, keep=own.keep)
    return listen(stage, splits, student, stage.params.distill, stage.output("models/distilled"))


def new_student(stage: Stage, splits: Splits, seed: int) -> Network:
    """The student before its training."""
    config = stage.params.student
    student = start(stage, config, splits, seed)
    if isinstance(config.start, FromTeacher):
        teacher = load_model(stage.path(f"models/teachers/{config.start.teacher}"))
        from_teacher(student, teacher, config.start.layers)
    return student


def listen(
    stage: Stage,
    splits: Splits,
    student: Network,
    config: Distill,
    folder: Path,
    *,
    heard: Callable[[Teacher], Teacher] = lambda teacher: teacher,
    part: str = "",
) -> Summary:
    """Frozen teachers are heard by the student and by all peers, and these hear each other.

    Deep mutual learning (Zhang et al. 2018): every peer has a loss and an optimiser state of its own. In the paper
    (Algorithm 1) they take turns, and the second hears what the first says after its update; here all move at once, on
    what the others said in the same step, so that no forward pass is made twice. A teacher that is trained together
    with the student is a peer with a large model.

    Args:
        stage: tells where teachers are, and keeps the checkpoint.
        splits: training and validation rows.
        student: starting weights.
        config: whom it hears and how it is trained.
        folder: gets the saved model.
        heard: what the student hears of a frozen teacher; by default all.
        part: names one of several trainings of a stage.
    """
    comparing = any(needs_features(objective) for objective in config.all_objectives)
    frozen = {key: load_model(stage.path(f"models/teachers/{key}")) if comparing else None for key in config.teachers}
    peers = {
        # Two of the same architecture must not begin with the same weights: they would have nothing to say.
        name: start(stage, peer, splits, stage.params.seed + number)
        for number, (name, peer) in enumerate(config.peers.items(), 1)
    }
    trained = {STUDENT: student, **peers}
    weights = balance(splits, config.training)
    lessons = {
        name: build(
            config.objectives,
            network,
            {**frozen, **{other: each for other, each in trained.items() if other != name}},
            mixing=config.mixing,
            weighting=config.weighting,
            class_weights=weights,
        )
        for name, network in trained.items()
    }
    rows = np.arange(len(splits.train))
    outcome = teach(
        stage,
        student,
        splits,
        lessons[STUDENT],
        config.training,
        rows=rows,
        teachers={key: heard(each) for key, each in _teachers(stage, splits, frozen, lessons).items()},
        peers=peers,
        lessons={name: lessons[name] for name in peers},
        part=part,
    )
    reached = {f"score_{name}": outcome.history[-1][f"score_{name}"] for name in peers}
    for name, peer in peers.items():
        # As the last epoch left it: the student's validation score picks the student's epoch.
        save(folder / "peers" / name, peer, outcome, config.training, {"score": reached[f"score_{name}"]})
    return save(folder, student, outcome, config.training, {"rows": len(rows), **reached})


def _teachers(
    stage: Stage, splits: Splits, frozen: Mapping[str, Network | None], lessons: Mapping[str, Loss]
) -> dict[str, Teacher]:
    """Those who are not trained: as they were stored, or run in every step where their layers were not."""
    asked = {key: [layer for lesson in lessons.values() for layer in lesson.teacher_layers[key]] for key in frozen}
    return {key: hear(stage, key, splits, network, asked[key]) for key, network in frozen.items()}
