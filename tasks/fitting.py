"""What the training stages share: data, the loop, logging, and the saved model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillery import models
from distillery.columns import Columns
from distillery.config import ModelConfig, ObjectiveConfig, TrainingConfig
from distillery.models import Network
from distillery.objectives import build
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


def fit(
    stage: Stage,
    network: Network,
    splits: Splits,
    objectives: Sequence[ObjectiveConfig],
    config: TrainingConfig,
    output: str,
    *,
    rows: Rows,
    teacher: Teacher | None = None,
    steps_per_epoch: int | None = None,
) -> Summary:
    """Trains a network and writes it as an output of the stage.

    Args:
        stage: gets bars, metrics of every epoch, and keeps the checkpoint.
        network: starting weights.
        splits: training and validation rows.
        objectives: what is minimised.
        config: how.
        output: the folder of the saved model.
        rows: which training rows take part.
        teacher: whom the objectives listen to.
        steps_per_epoch: by default one pass over the rows.
    """
    balanced = config.balance == "class_weights"
    weights = class_weights(splits.train.target, len(splits.train.schema.classes)) if balanced else None
    loss = build(objectives, weights)
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
            teacher=teacher,
            steps_per_epoch=steps_per_epoch,
            checkpoint=stage.state / "training.pt",
            on_step=lambda: bar.advance(note=shown["note"]),
            on_epoch=on_epoch,
        )
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
