"""Trains a teacher on the labelled rows, or takes the user's checkpoint as it is where `epochs` is 0."""

from tasks.fitting import Splits, fit, labels_alone, start
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/teachers/<key>`."""
    config = stage.params.teachers[stage.item]
    splits = Splits.open(stage)
    network = start(stage, config, splits)
    loss = labels_alone(network, splits, config.training)
    output = f"models/teachers/{stage.item}"
    return fit(stage, network, splits, loss, config.training, output, rows=splits.train.labelled)
