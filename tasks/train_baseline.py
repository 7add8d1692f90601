"""Trains the student alone, on the labels: what distillation is held to.

It makes as many steps as the distilled student, and sees its rows in the same views (`soft_targets.views`).
"""

import numpy as np

from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits, fit, labels_alone, start, steps_an_epoch


def run(stage: Stage) -> Summary:
    """Writes `models/baseline`."""
    splits = Splits.open(stage, views=True)
    config = stage.params.distill.training
    network = start(stage, stage.params.student, splits)
    return fit(
        stage,
        network,
        splits,
        labels_alone(network, splits, config),
        config,
        "models/baseline",
        rows=splits.train.labelled,
        steps_per_epoch=steps_an_epoch(np.arange(len(splits.train)), config),
    )
