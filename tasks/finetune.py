"""Trains the distilled student a little further on the labels alone; the evaluation tells whether that helped."""

from distillery.config import CrossEntropy
from distillery.saved import load_model
from tasks.fitting import Splits, fit
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/finetuned`."""
    splits = Splits.open(stage)
    return fit(
        stage,
        load_model(stage.path("models/distilled")),
        splits,
        [CrossEntropy(name="cross_entropy")],
        stage.params.finetune.training,
        "models/finetuned",
        rows=splits.train.labelled,
    )
