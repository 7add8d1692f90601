"""What the training stages share: data, the loop, logging, and the saved model."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distillery import models
from distillery.columns import Columns
from distillery.config import ModelConfig, TrainingConfig
from distillery.models import Network
from distillery.objectives.configs import CrossEntropy
from distillery.objectives.registry import build
from distillery.objectives.weighted_sum import WeightedSum
from distillery.sampling import Rows, batches
from distillery.saved import save_model
from distillery.signals import Teacher
from distillery.training import class_weights, train
from tasks.progress import Bar
from tasks.stage import Stage, Summary


@dataclass(frozen=True)
class Splits:
    """The prepared rows that training may see; the test split is none of them."""

    train: Columns
    validation: Columns

    @classmethod
    def open(cls, stage: Stage) -> "Splits":
        """Maps the prepared columns."""
        return cls(
            Columns.open(stage.path("data/prepared/train")), Columns.open(stage.path("data/prepared/validation"))
        )


def start(stage: Stage, config: ModelConfig, splits: Splits) -> Network:
    """A model with starting weights and the normalisation of the training rows."""
    network = models.build(config, splits.train.schema, stage.params.seed, stage.root)
    network.fit_normalisation(splits.train)
    return network


def steps_an_epoch(rows: Rows, config: TrainingConfig) -> int:
    """Updates in one pass over the rows."""
    return len(batches(rows, config.batch_size))


def balance(splits: Splits, config: TrainingConfig) -> Tensor | None:
    """(C,) factors on the loss of labelled rows, where `balance: class_weights` asks for them."""
    if config.balance != "class_weights":
        return None
    return class_weights(splits.train.target, len(splits.train.schema.classes))


def labels_alone(network: Network, splits: Splits, config: TrainingConfig) -> WeightedSum:
    """Plain training: cross-entropy with the labels."""
    return build([CrossEntropy(name="cross_entropy")], network, class_weights=balance(splits, config))


def fit(
    stage: Stage,
    network: Network,
    splits: Splits,
    loss: WeightedSum,
    config: TrainingConfig,
    output: str,
    *,
    rows: Rows,
    teachers: Mapping[str, Teacher] | None = None,
    steps_per_epoch: int | None = None,
) -> Summary:
    """Trains a network and writes it as an output of the stage.

    Args:
        stage: gets bars, metrics of every epoch, and keeps the checkpoint.
        network: starting weights.
        splits: training and validation rows.
        loss: what is minimised.
        config: how.
        output: the folder of the saved model.
        rows: which training rows take part.
        teachers: whom the objectives listen to.
        steps_per_epoch: by default one pass over the rows.
    """
    steps = steps_per_epoch or steps_an_epoch(rows, config)
    shown: dict[str, str] = {"note": ""}
    with Bar(stage.progress, stage.name, config.epochs * steps) as bar:

        def on_epoch(entry: Mapping[str, float]) -> None:
            shown["note"] = f"epoch {entry['epoch']:.0f}, validation accuracy {entry['accuracy']:.3f}"
            stage.run.log_metrics({k: v for k, v in entry.items() if k != "epoch"}, step=int(entry["epoch"]))

        outcome = train(
            network,
            loss,
            splits.train,
            splits.validation,
            config,
            seed=stage.params.seed,
            rows=rows,
            teachers=teachers,
            steps_per_epoch=steps_per_epoch,
            checkpoint=stage.state / "training.pt",
            on_step=lambda: bar.advance(note=shown["note"]),
            on_epoch=on_epoch,
        )
    for warning in outcome.warnings:
        stage.progress.say(f"{stage.name}: {warning}")
    facts: Summary = {
        "best_epoch": outcome.best_epoch,
        "epochs": len(outcome.history),
        "steps": outcome.steps,
        "rows": len(rows),
        "parameters": network.parameter_count,
        f"best_{config.monitor}": outcome.score,
    }
    save_model(stage.output(output), network, outcome.history, facts)
    return facts
