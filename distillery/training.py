"""The one training loop, for teachers, baseline, students and fine-tuning."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from distillery.checkpoint import Checkpoint, TrainingState
from distillery.columns import Columns
from distillery.config import TrainingConfig
from distillery.errors import UserError
from distillery.models import Network
from distillery.objectives.loss import Loss
from distillery.sampling import Rows, balanced_order, batches, epoch_order
from distillery.saved import move, predict
from distillery.schema import UNLABELLED
from distillery.scores import scores
from distillery.signals import Teacher
from distillery.step import STUDENT, Cohort, Step


@dataclass(frozen=True)
class Outcome:
    """What a training led to; the network holds the weights of the best epoch.

    Attributes:
        history: one mapping an epoch: `epoch`, `learning_rate`, `loss`, `loss_<objective>`, and on the validation
            split what `distillery.scores` tells.
        best_epoch: from 1; 0 where the starting weights were kept.
        score: of the monitored metric at that epoch.
        steps: updates made.
        trained_parameters: numbers that moved: the network's, its peers', and those of objectives and discriminators.
        warnings: what went wrong without ending the training, such as an adversary that collapsed.
    """

    history: list[dict[str, float]]
    best_epoch: int
    score: float
    steps: int
    trained_parameters: int
    warnings: list[str] = field(default_factory=list)


def train(
    network: Network,
    loss: Loss,
    train: Columns,
    validation: Columns,
    config: TrainingConfig,
    *,
    seed: int,
    rows: Rows,
    teachers: Mapping[str, Teacher] | None = None,
    peers: Mapping[str, Network] | None = None,
    lessons: Mapping[str, Loss] | None = None,
    steps_per_epoch: int | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Mapping[str, float]], None] = lambda _: None,
) -> Outcome:
    """Trains a network in place.

    The validation split picks the epoch. Everything random is a function of seed, epoch, step and process, so a run
    that resumes from a checkpoint ends with the same weights, bit for bit, on the same machine.

    Args:
        network: starting weights.
        loss: what is minimised; its own parameters are trained too.
        train: rows to learn from.
        validation: labelled rows that pick the epoch.
        config: how.
        seed: of order, augmentation and dropout.
        rows: (n,) which training rows take part.
        teachers: frozen ones whom the objectives listen to, by name.
        peers: networks that are trained beside it, by name; the losses may listen to them and to `student`. They end
            with the weights of the last epoch.
        lessons: the loss of each peer, and of each of the network's exits (`exit_1`, ...).
        steps_per_epoch: by default one pass over the rows; more go over them again.
        checkpoint: file to resume from and to write; none is written where it is None.
        on_step: called after every step of this call, and once for each step that was already done.
        on_epoch: called with the new entry of the history, and once for each that was already there.

    Raises:
        UserError: where no rows take part, a label is needed and there is none, two who are heard share a name, the
            loss is no longer finite, or the precision does not exist on this device.
    """
    taught = {STUDENT: loss, **(lessons or {})}
    _check(list(taught.values()), train, validation, rows, config)
    accelerator = _accelerator(config)
    cohort = Cohort({STUDENT: network, **(peers or {})})
    for each in cohort.networks.values():
        move(each, accelerator.device)
    objectives = nn.ModuleList(taught.values()).to(accelerator.device)
    critics = [parameter for each in taught.values() for parameter in each.critic_parameters()]
    judged = {id(parameter) for parameter in critics}
    moving = [*cohort.parameters(), *(p for p in objectives.parameters() if id(p) not in judged)]
    optimizer = _optimizer(config, moving)
    rate = max(each.critic_learning_rate for each in taught.values())
    critic_optimizer = torch.optim.AdamW(critics, lr=rate) if critics else None
    length = None if steps_per_epoch is None else steps_per_epoch * config.batch_size
    steps = steps_per_epoch or len(batches(rows, config.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(config, steps))
    model, optimizer = accelerator.prepare(cohort, optimizer)

    step_of = Step(cohort, model, taught, optimizer, critic_optimizer, train, teachers or {}, config, accelerator)

    file = Checkpoint(checkpoint, accelerator, cohort, objectives, step_of, schedule)
    done = file.load() or TrainingState()
    for _ in range(done.epoch * steps + done.step):
        on_step()
    for entry in done.history:
        on_epoch(entry)
    if not done.history:
        done.keep(network, _validate(network, validation), config.monitor, epoch=0)

    warnings: list[str] = []
    while done.epoch < config.epochs and not _stops_early(done, config):
        order = _order(train, rows, config, seed, done.epoch, length)
        for step, indices in enumerate(batches(order, config.batch_size)):
            if step < done.step:
                continue
            rank = accelerator.process_index
            torch.manual_seed(_mix(seed, done.epoch, step, rank))
            done.add(step_of(indices, (done.epoch * steps + step) / (config.epochs * steps)))
            schedule.step()
            done.step = step + 1
            on_step()
            file.save_when_due(done, config.checkpoint_seconds)
        told = [each for lesson in taught.values() for each in lesson.collapses()]
        warnings += [each for each in told if each not in warnings]
        entry = {
            "epoch": done.epoch + 1,
            "learning_rate": float(schedule.get_last_lr()[0]),
            **done.mean_losses(_share_losses(accelerator)),
            **loss.critic_accuracy(),
            **_validate(network, validation),
            **{f"score_{name}": _validate(each, validation)["score"] for name, each in (peers or {}).items()},
        }
        if not math.isfinite(entry["loss"]):
            raise UserError(f"the loss is {entry['loss']} in epoch {done.epoch + 1}: lower training.learning_rate")
        done.finish_epoch(network, entry, config.monitor)
        on_epoch(entry)
        file.save_when_due(done, config.checkpoint_seconds)

    step_of.close()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    network.load_state_dict(done.best_weights)
    for each in cohort.networks.values():
        each.to("cpu").eval()
    trained = sum(parameter.numel() for parameter in [*moving, *critics] if parameter.requires_grad)
    return Outcome(done.history, done.best_epoch, done.best_score, len(done.history) * steps, trained, warnings)


def class_weights(target: np.ndarray[tuple[int], np.dtype[np.int64]], classes: int) -> Tensor:
    """Factors that give every class the same part in the loss, 1 on average over the labelled rows.

    Args:
        target: (N,) class numbers, -1 where unlabelled.
        classes: their number C.

    Returns:
        (C,) float32; 0 for a class without rows.
    """
    counts = np.bincount(target[target != UNLABELLED], minlength=classes)
    present = counts > 0
    weights = np.zeros(classes, dtype=np.float32)
    weights[present] = counts.sum() / present.sum() / counts[present]
    return torch.from_numpy(weights)


def _check(losses: Sequence[Loss], train: Columns, validation: Columns, rows: Rows, config: TrainingConfig) -> None:
    """Tells before the first step what would fail in it."""
    if any(loss.over_batch for loss in losses) and config.accumulate > 1:
        raise UserError("training.accumulate must be 1: an objective compares all rows of a batch with each other")
    if not len(rows):
        raise UserError("no training row takes part; label some rows (data.labelled) or add data")
    if not len(validation.labelled):
        raise UserError("the validation split has no labelled row; give it some (data.split, or your split column)")
    if all(loss.needs_label for loss in losses) and not np.isin(rows, train.labelled).any():
        raise UserError("every objective needs labels, and no training row has one")


def _accelerator(config: TrainingConfig) -> Accelerator:
    """Device, precision and processes."""
    # Accelerate keeps one precision a process; the next training of the same process may want another.
    AcceleratorState._reset_state()
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[config.precision]
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise UserError(f"training.precision: {config.precision} does not work on this device: {error}") from None
    torch.backends.cudnn.deterministic = True
    return accelerator


def _optimizer(config: TrainingConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Only matrices and kernels decay; biases and normalisation do not."""
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in moving if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in moving if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _learning_rate(config: TrainingConfig, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step: a linear rise, then constant or half a cosine down to 0."""
    total = max(1, config.epochs * steps)
    rise = round(config.warmup * total)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    return factor


def _order(train: Columns, rows: Rows, config: TrainingConfig, seed: int, epoch: int, length: int | None) -> Rows:
    """The rows of one epoch, in the view that is its turn."""
    view = epoch % (train.shown // len(train))
    if config.balance == "sampling":
        order = balanced_order(train.target, rows, seed, epoch, length)
    else:
        row_bytes = sum(column[:1].nbytes for column in train.inputs.values())
        order = epoch_order(rows, seed, epoch, length, row_bytes)
    return order + view * len(train)


def _mix(*numbers: int) -> int:
    """One 63-bit seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _share_losses(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """Sums a loss over processes, each of which has seen its own rows."""
    return lambda loss: accelerator.reduce(loss, reduction="sum") if accelerator.num_processes > 1 else loss


def _validate(network: Network, validation: Columns) -> dict[str, float]:
    """Scores on the labelled validation rows."""
    return scores(predict(network, validation), validation.targets, validation.schema)


def _stops_early(done: TrainingState, config: TrainingConfig) -> bool:
    return config.early_stopping is not None and done.epoch - done.best_epoch >= config.early_stopping
