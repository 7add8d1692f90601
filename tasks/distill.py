"""Trains the student on what its teachers said about every row, labelled or not."""

import numpy as np

from distillery.objectives.configs import needs_features
from distillery.objectives.registry import build
from distillery.saved import digest, load_model
from distillery.signals import LiveTeacher, Teacher
from distillery.soft_targets import SoftTargets, StoredTeacher
from tasks.fitting import Splits, balance, fit, start
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/distilled`."""
    splits = Splits.open(stage)
    config = stage.params.distill
    student = start(stage, stage.params.student, splits)
    live = [objective.name for objective in config.all_objectives if needs_features(objective)]
    networks = {key: load_model(stage.path(f"models/teachers/{key}")) if live else None for key in config.teachers}
    weights = balance(splits, config.training)
    loss = build(
        config.objectives, student, networks, mixing=config.mixing, weighting=config.weighting, class_weights=weights
    )
    if live:
        stage.progress.say(f"distill: {', '.join(live)} compare layers, so the teacher is run in every step")
    teachers: dict[str, Teacher] = {
        key: _stored(stage, key, splits) if network is None else LiveTeacher(network, loss.teacher_layers[key])
        for key, network in networks.items()
    }
    return fit(
        stage,
        student,
        splits,
        loss,
        config.training,
        "models/distilled",
        rows=np.arange(len(splits.train)),
        teachers=teachers,
    )


def _stored(stage: Stage, key: str, splits: Splits) -> StoredTeacher:
    """What a teacher said, checked to be about these rows and by the present teacher."""
    store = SoftTargets.open(
        stage.path(f"data/soft_targets/{key}"),
        digest(stage.path(f"models/teachers/{key}")),
        [splits.train, splits.validation],
    )
    return StoredTeacher(store.part("train"))
