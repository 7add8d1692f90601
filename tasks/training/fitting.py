"""What the training stages share: data, the loop, logging, and the saved model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distillery import models
from distillery.columns import Columns
from distillery.config import Api, Augmentation, FromCheckpoint, SavedModel, TaskWeighting, TrainingConfig
from distillery.models import Network
from distillery.objectives.configs import label_loss
from distillery.objectives.loss import Loss
from distillery.objectives.registry import build
from distillery.sampling import Rows, batches
from distillery.saved import save_model
from distillery.schema import MAIN
from distillery.signals import Teacher
from distillery.starts import from_checkpoint, from_run
from distillery.training import Outcome, class_weights, train
from distillery.views import Viewed, Views, check_images
from tasks.params.sections import PeerConfig, StudentConfig, TeacherConfig
from tasks.progress import Bar
from tasks.stage import Stage, Summary


@dataclass(frozen=True)
class Splits:
    """The prepared rows that training may see; the test split is none of them.

    Attributes:
        train: training rows as they are.
        validation: those that pick the epoch.
        shown: training rows as the student sees them, in views where `soft_targets.views` asks for them.
    """

    train: Columns
    validation: Columns
    shown: Columns

    @classmethod
    def open(
        cls, stage: Stage, *, folder: str = "data/prepared", hidden: bool = False, views: bool = False
    ) -> "Splits":
        """Maps the prepared columns.

        Args:
            stage: tells where the project is, and its parameters.
            folder: holds the splits.
            hidden: with the training labels that `data.labelled` hides.
            views: in the views of `soft_targets`, where there are any.

        Raises:
            UserError: where views are asked for and no input is an image.
        """
        train = Columns.open(stage.path(f"{folder}/train"), hidden=hidden)
        validation = Columns.open(stage.path(f"{folder}/validation"))
        store = stage.params.soft_targets
        if not (views and store.views):
            return cls(train, validation, train)
        check_images(train.schema, "soft_targets.views")
        return cls(train, validation, Viewed(train, Views(count=store.views, augment=store.augment)))


def start(
    stage: Stage, config: TeacherConfig | StudentConfig | PeerConfig, splits: Splits, seed: int | None = None
) -> Network:
    """A model with starting weights and the normalisation of the training rows, on the inputs that it reads.

    Args:
        stage: tells the project's folder.
        config: which model, and where its weights begin; a teacher's layers are not copied here.
        splits: training rows.
        seed: of random weights; by default that of the parameters.
    """
    schema = splits.train.schema
    if config.inputs is not None:
        schema = schema.select(config.inputs, "inputs")
    assert not isinstance(config.model, Api), "an api is asked, not trained"
    if isinstance(config.model, SavedModel):
        return from_run(stage.root / config.model.folder, schema, "model.folder")
    network = models.build(config.model, schema, stage.params.seed if seed is None else seed, stage.root)
    network.fit_normalisation(splits.train)
    if isinstance(config, StudentConfig) and isinstance(config.start, FromCheckpoint):
        from_checkpoint(network, stage.root / config.start.file)
    return network


def section(stage: str) -> str:
    """Where the training of a stage stands in the parameters."""
    name, _, item = stage.partition("@")
    if name == "train_teacher":
        return f"teachers.{item}"
    return "finetune" if name == "finetune" else "distill"


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


def labels_alone(
    network: Network, splits: Splits, config: TrainingConfig, weighting: TaskWeighting | None = None
) -> Loss:
    """Plain training: the labels of every target."""
    objectives = {name: [label_loss(target.kind)] for name, target in network.schema.targets.items()}
    return build(objectives, network, weighting=weighting, class_weights=balance(splits, config))


def teach(
    stage: Stage,
    network: Network,
    splits: Splits,
    loss: Loss,
    config: TrainingConfig,
    *,
    rows: Rows,
    teachers: Mapping[str, Teacher] | None = None,
    peers: Mapping[str, Network] | None = None,
    lessons: Mapping[str, Loss] | None = None,
    steps_per_epoch: int | None = None,
    seed: int | None = None,
    part: str = "",
) -> Outcome:
    """Trains a network in place.

    Args:
        stage: gets bars, metrics of every epoch, and keeps the checkpoint.
        network: starting weights.
        splits: training and validation rows.
        loss: what is minimised.
        config: how.
        rows: which training rows take part.
        teachers: whom the objectives listen to.
        peers: networks that are trained beside it.
        lessons: the loss of each peer, and of each exit.
        steps_per_epoch: by default one pass over the rows.
        seed: by default that of the parameters.
        part: names one of several trainings of a stage.

    Raises:
        UserError: where images are to be changed and there are none, and as `distillery.training.train` tells.
    """
    if config.augment != Augmentation():
        check_images(splits.train.schema, f"{section(stage.name)}.training.augment")
    steps = steps_per_epoch or steps_an_epoch(rows, config)
    shown: dict[str, str] = {"note": ""}
    only = next(iter(network.schema.targets.values()))
    monitored = MAIN[only.kind] if len(network.schema.targets) == 1 else "score"
    with Bar(stage.progress, f"{stage.name} {part}".strip(), config.epochs * steps) as bar:

        def on_epoch(entry: Mapping[str, float]) -> None:
            shown["note"] = f"epoch {entry['epoch']:.0f}, validation {monitored} {entry[monitored]:.3f}"
            named = {f"{part}.{name}" if part else name: value for name, value in entry.items() if name != "epoch"}
            stage.run.log_metrics(named, step=int(entry["epoch"]))

        outcome = train(
            network,
            loss,
            splits.shown,
            splits.validation,
            config,
            seed=stage.params.seed if seed is None else seed,
            rows=rows,
            teachers=teachers,
            peers=peers,
            lessons=lessons,
            steps_per_epoch=steps_per_epoch,
            checkpoint=stage.state / f"{part or 'training'}.pt",
            on_step=lambda: bar.advance(note=shown["note"]),
            on_epoch=on_epoch,
        )
    for warning in outcome.warnings:
        stage.progress.say(f"{stage.name}: {warning}")
    return outcome


def save(folder: Path, network: Network, outcome: Outcome, config: TrainingConfig, more: Summary) -> Summary:
    """Writes a trained network and the facts about its training.

    Args:
        folder: gets the saved model.
        network: as the training left it.
        outcome: of the training.
        config: of the training.
        more: facts that only the caller knows.

    Returns:
        All facts.
    """
    facts: Summary = {
        "best_epoch": outcome.best_epoch,
        "epochs": len(outcome.history),
        "steps": outcome.steps,
        "parameters": network.parameter_count,
        "trained_parameters": outcome.trained_parameters,
        f"best_{config.monitor}": outcome.score,
        **more,
    }
    save_model(folder, network, outcome.history, facts)
    return facts


def fit(
    stage: Stage,
    network: Network,
    splits: Splits,
    loss: Loss,
    config: TrainingConfig,
    output: str,
    *,
    rows: Rows,
    lessons: Mapping[str, Loss] | None = None,
    steps_per_epoch: int | None = None,
) -> Summary:
    """Trains a network and writes it as an output of the stage; see `teach` and `save`."""
    outcome = teach(stage, network, splits, loss, config, rows=rows, lessons=lessons, steps_per_epoch=steps_per_epoch)
    return save(stage.output(output), network, outcome, config, {"rows": len(rows)})
