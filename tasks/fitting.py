"""What the training stages share: data, the loop, logging, and the saved model."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distillery import models
from distillery.columns import Columns
from distillery.config import TrainingConfig
from distillery.models import Network
from distillery.objectives.configs import label_loss
from distillery.objectives.loss import Loss
from distillery.objectives.registry import build
from distillery.sampling import Rows, batches
from distillery.saved import save_model
from distillery.scores import MAIN
from distillery.signals import Teacher
from distillery.training import class_weights, train
from tasks.params import StudentConfig, TeacherConfig
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


def start(stage: Stage, config: TeacherConfig | StudentConfig, splits: Splits) -> Network:
    """A model with starting weights and the normalisation of the training rows, on the inputs that it reads."""
    schema = splits.train.schema
    if config.inputs is not None:
        schema = schema.select(config.inputs, "inputs")
    network = models.build(config.model, schema, stage.params.seed, stage.root)
    network.fit_normalisation(splits.train)
    return network


def steps_an_epoch(rows: Rows, config: TrainingConfig) -> int:
    """Updates in one pass over the rows."""
    return len(batches(rows, config.batch_size))


def balance(splits: Splits, config: TrainingConfig) -> dict[str, Tensor]:
    """Target -> (C,) factors on the loss of labelled rows, where `balance: class_weights` asks for them."""
    if config.balance != "class_weights":
        return {}
    train = splits.train
    return {
        name: class_weights(train.targets[name], target.width)
        for name, target in train.schema.targets.items()
        if target.kind == "classes"
    }


def labels_alone(network: Network, splits: Splits, config: TrainingConfig) -> Loss:
    """Plain training: the labels of every target."""
    objectives = {name: [label_loss(target.kind)] for name, target in network.schema.targets.items()}
    return build(objectives, network, class_weights=balance(splits, config))


def fit(
    stage: Stage,
    network: Network,
    splits: Splits,
    loss: Loss,
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
    only = next(iter(network.schema.targets.values()))
    monitored = MAIN[only.kind] if len(network.schema.targets) == 1 else "score"
    with Bar(stage.progress, stage.name, config.epochs * steps) as bar:

        def on_epoch(entry: Mapping[str, float]) -> None:
            shown["note"] = f"epoch {entry['epoch']:.0f}, validation {monitored} {entry[monitored]:.3f}"
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
