"""Trains a teacher on the labelled rows, or takes the user's checkpoint as it is where `epochs` is 0."""

from distillery.api import ApiNetwork
from distillery.config import Api
from distillery.saved import save_model
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits, fit, labels_alone, start


def run(stage: Stage) -> Summary:
    """Writes `models/teachers/<key>`; of an api only whom to ask, and it is not asked yet."""
    config = stage.params.teachers[stage.item]
    splits = Splits.open(stage, folder="data/snapshot", hidden=config.labels == "all")
    output = f"models/teachers/{stage.item}"
    if isinstance(config.model, Api):
        schema = splits.train.schema
        schema = schema if config.inputs is None else schema.select(config.inputs, "inputs")
        save_model(stage.output(output), ApiNetwork(config.model, schema), [], {"steps": 0})
        return {"steps": 0}
    network = start(stage, config, splits)
    loss = labels_alone(network, splits, config.training)
    return fit(stage, network, splits, loss, config.training, output, rows=splits.train.labelled)
