"""Where a training stands, kept in a file that a killed run resumes from."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillery.step import Step


@dataclass
class TrainingState:
    """Position, losses so far, history, and the best weights yet.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch in progress.
        sums: name -> sum of the losses of those steps.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    best_nll: float = math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the losses of a step; they stay on the device until the epoch ends."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean_losses(self, share: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Averages over the steps of the epoch; `share` sums over processes."""
        return {name: float(share(total)) / self.step for name, total in self.sums.items()}

    def keep(self, network: nn.Module, scores: Mapping[str, float], monitor: str, epoch: int) -> None:
        """Remembers the weights where they are the best so far."""
        score = -scores["nll"] if monitor == "nll" else scores[monitor]
        # Where scores are equal, which is common on a small validation split, the likelihood decides.
        if (score, -scores["nll"]) > (self.best_score, -self.best_nll):
            self.best_epoch, self.best_score, self.best_nll = epoch, score, scores["nll"]
            self.best_weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def finish_epoch(self, network: nn.Module, entry: dict[str, float], monitor: str) -> None:
        """Enters an epoch into the history."""
        self.history.append(entry)
        self.epoch += 1
        self.step = 0
        self.sums = {}
        self.keep(network, entry, monitor, self.epoch)


class Checkpoint:
    """A file with everything a training needs to go on."""

    def __init__(
        self,
        file: Path | None,
        accelerator: Accelerator,
        network: nn.Module,
        objectives: nn.Module,
        step: Step,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.file = file
        self._accelerator = accelerator
        self._saved = time.monotonic()
        # Whatever has a state of its own; all of it is restored in place.
        self._parts: dict[str, Any] = {
            "network": network,
            "objectives": objectives,
            "optimizer": step.optimizer,
            "schedule": schedule,
        }
        if step.critic_optimizer is not None:
            self._parts["critic_optimizer"] = step.critic_optimizer
        if accelerator.scaler is not None:
            self._parts["scaler"] = accelerator.scaler

    def load(self) -> TrainingState | None:
        """Restores everything in place; None where there is no file."""
        if self.file is None or not self.file.exists():
            return None
        state: dict[str, Any] = torch.load(self.file, map_location=self._accelerator.device, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return TrainingState(**state["training"])

    def save_when_due(self, training: TrainingState, seconds: float) -> None:
        """Writes the file where the last writing is long enough ago; a kill leaves the old file or the new one."""
        if self.file is None or time.monotonic() - self._saved < seconds or not self._accelerator.is_main_process:
            return
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state["training"] = {name: getattr(training, name) for name in TrainingState.__dataclass_fields__}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.file)
        self._saved = time.monotonic()
