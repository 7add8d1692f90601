"""Trains the distilled student a little further on the labels alone; the evaluation tells whether that helped."""

from distillery.saved import load_model
from tasks.fitting import Splits, fit, labels_alone
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `models/finetuned`."""
    splits = Splits.open(stage)
    config = stage.params.finetune.training
    network = load_model(stage.path("models/distilled"))
    loss = labels_alone(network, splits, config)
    return fit(stage, network, splits, loss, config, "models/finetuned", rows=splits.train.labelled)
