"""Trains a teacher on the labelled rows, or takes the user's checkpoint as it is where `epochs` is 0."""

from distillery.config import CrossEntropy
from tasks.fitting import Splits, fit, start
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/teachers/<key>`."""
    config = stage.params.teachers[stage.item]
    splits = Splits.open(stage)
    return fit(
        stage,
        start(stage, config.model, splits),
        splits,
        [CrossEntropy(name="cross_entropy")],
        config.training,
        f"models/teachers/{stage.item}",
        rows=splits.train.labelled,
    )
