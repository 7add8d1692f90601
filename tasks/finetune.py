"""Trains the distilled student a little further on the labels alone; the evaluation tells whether that helped."""

from distillery.saved import load_model
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits, fit, labels_alone


def run(stage: Stage) -> Summary:
    """Writes `models/finetuned`."""
    splits = Splits.open(stage)
    config = stage.params.finetune.training
    network = load_model(stage.path("models/distilled"))
    loss = labels_alone(network, splits, config)
    # Exits that were kept stand on layers that move now, so they go on learning too.
    lessons = {f"exit_{number}": labels_alone(network, splits, config) for number, _ in enumerate(network.exits, 1)}
    return fit(stage, network, splits, loss, config, "models/finetuned", rows=splits.train.labelled, lessons=lessons)
