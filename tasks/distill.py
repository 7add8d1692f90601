"""Trains the student on what its teacher said about every row, labelled or not."""

import numpy as np

from distillery.saved import digest
from distillery.soft_targets import SoftTargets, StoredTeacher
from tasks.fitting import Splits, fit, start
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/distilled`."""
    splits = Splits.open(stage)
    config = stage.params.distill
    (key,) = config.teachers
    store = SoftTargets.open(
        stage.path(f"data/soft_targets/{key}"),
        digest(stage.path(f"models/teachers/{key}")),
        [splits.train, splits.validation],
    )
    return fit(
        stage,
        start(stage, stage.params.student.model, splits),
        splits,
        config.objectives,
        config.training,
        "models/distilled",
        rows=np.arange(len(splits.train)),
        teacher=StoredTeacher(store.part("train")),
    )
