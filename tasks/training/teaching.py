"""Where a student hears a frozen teacher: on disk, or run in every step where its layers were not stored."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from distillery.features import feature_shapes
from distillery.models import Network
from distillery.saved import channels_last, device, digest
from distillery.signals import Batch, LiveTeacher, Teacher
from distillery.soft_targets import SoftTargets
from tasks.stage import Stage
from tasks.training.fitting import Splits


def hear(stage: Stage, key: str, splits: Splits, network: Network | None, layers: Sequence[str]) -> Teacher:
    """A teacher as it was stored, checked to speak of these rows; live where a layer was not stored.

    Args:
        stage: tells where the store is, and is told which of both it is and what that costs.
        key: of the teacher.
        splits: rows as the student sees them.
        network: the teacher itself; None where no objective compares layers.
        layers: of the teacher, that objectives compare.

    Raises:
        UserError: where the store is of another teacher, or of other rows, views or layers.
    """
    layers = tuple(dict.fromkeys(layers))
    store = SoftTargets.open(
        stage.path(f"data/soft_targets/{key}"),
        digest(stage.path(f"models/teachers/{key}")),
        [splits.shown, splits.validation],
        stage.params.soft_targets.features.get(key, ()),
    )
    if network is None or not layers:
        return store.teacher("train")
    live = LiveTeacher(network, layers)
    batch = _batch(splits, stage.params.distill.training.batch_size)
    missing = [layer for layer in layers if layer not in store.features]
    running = _milliseconds(lambda: live.signals(batch))
    if missing:
        numbers = sum(int(np.prod(shape)) for shape in feature_shapes(network, layers).values())
        size = numbers * splits.shown.shown * np.dtype(store.manifest.dtype).itemsize / 2**20
        stage.progress.note(
            f"distill: {key} is run in every step, {running:.1f} ms a batch: {', '.join(missing)} not stored; "
            f"soft_targets.features would take {size:.1f} MiB of training rows"
        )
        return live
    live.close()
    stored = store.teacher("train", layers)
    size = sum(stored.features[layer].nbytes for layer in layers) / 2**20
    reading = _milliseconds(lambda: stored.signals(batch))
    stage.progress.note(
        f"distill: {key} is read from disk with {', '.join(layers)}: {size:.1f} MiB of training rows, {reading:.1f} ms "
        f"a batch; run in every step it would take {running:.1f} ms"
    )
    return stored


def _batch(splits: Splits, size: int) -> Batch:
    """Some training rows, spread over the file as in training."""
    rows = np.random.default_rng(0).integers(0, splits.shown.shown, size)
    place = device()
    inputs = channels_last(tensor.to(place) for tensor in splits.shown.gather(rows))
    return Batch(
        torch.from_numpy(rows), dict(zip(splits.shown.inputs, inputs, strict=True)), splits.shown.schema, place
    )


def _milliseconds(work: Callable[[], object]) -> float:
    """Of the second time: the first one loads and reserves."""
    for _ in range(2):
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
    return 1000 * (time.perf_counter() - start)
