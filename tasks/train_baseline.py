"""Trains the student alone, on the labels and for as many steps as the distilled one: what distillation is held to."""

import numpy as np

from distillery.config import CrossEntropy
from tasks.fitting import Splits, fit, start, steps_an_epoch
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/baseline`."""
    splits = Splits.open(stage)
    config = stage.params.distill.training
    return fit(
        stage,
        start(stage, stage.params.student.model, splits),
        splits,
        [CrossEntropy(name="cross_entropy")],
        config,
        "models/baseline",
        rows=splits.train.labelled,
        steps_per_epoch=steps_an_epoch(np.arange(len(splits.train)), config),
    )
