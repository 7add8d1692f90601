"""Writing soft targets against a bare forward pass, their size, shuffled reads, and features read against run."""

import shutil
import statistics
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.digits28 import SCHEMA, columns, main_job, teacher_model
from benchmarks.interleaved import Result, ratio, seconds
from distillery import models
from distillery.asking import write
from distillery.columns import Columns
from distillery.reuse import earlier
from distillery.sampling import batches, epoch_order
from distillery.saved import channels_last
from distillery.signals import Batch, LiveTeacher
from distillery.soft_targets import SoftTargets

ROWS = 200_000


def measure(folder: Path) -> list[Result]:
    """Teacher of the main job; the large store is written by a small model, since only its size matters."""
    return [*writing(folder), *growing(folder), *reading(folder), *features(folder)]


def writing(folder: Path) -> list[Result]:
    """The whole writing, checks and flushes included, against `model(batch)` in a loop."""
    rows = columns(folder / "rows")
    ours, bare = (models.build(teacher_model(), SCHEMA, seed=0).eval() for _ in range(2))
    (images,) = rows.gather(slice(None))

    def store() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        write(folder / "store", ours, "t", {"train": rows}, partial=folder / "partial")

    def forward() -> None:
        with torch.inference_mode():
            for batch in torch.split(images, 512):
                bare(batch)

    times = seconds({"bare": forward, "store": store}, rounds=7)
    speed, told = ratio(times, "bare", "store")
    return [Result("soft targets written / bare forward, speed", told, ">= 1.25", speed >= 1.25)]


def growing(folder: Path) -> list[Result]:
    """The whole writing where one row in twenty is new, against asking about all."""
    rows = columns(folder / "rows")
    known = np.flatnonzero(np.arange(len(rows)) % 20)
    before = Columns(SCHEMA, rows.keys[known], {"label": rows.target[known]}, {"image": rows.inputs["image"][known]})
    teacher = models.build(teacher_model(), SCHEMA, seed=0)
    write(folder / "earlier", teacher, "t", {"train": before}, partial=folder / "partial")

    def store(kept: Path) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        write(folder / "store", teacher, "t", {"train": rows}, partial=folder / "partial", known=earlier(kept))

    works = {"all": lambda: store(folder / "nowhere"), "new": lambda: store(folder / "earlier")}
    part, told = ratio(seconds(works, rounds=7), "new", "all")
    return [Result("soft targets with 5 % new rows / all asked", told, "<= 0.1", part <= 0.1)]


def reading(folder: Path) -> list[Result]:
    """200,000 rows: bytes a sample, and the cost of a shuffled batch of rows and soft targets together."""
    rows = columns(folder / "many", ROWS)
    student = models.build(main_job().student.model, SCHEMA, seed=0)
    shutil.rmtree(folder / "store", ignore_errors=True)
    before = _own_memory()
    write(folder / "store", student, "t", {"train": rows}, partial=folder / "partial")
    grown = (_own_memory() - before) / 2**20
    store = SoftTargets.open(folder / "store")
    size = sum(file.stat().st_size for file in (folder / "store").glob("logits*")) / ROWS / (2 * 10)
    everything = np.arange(ROWS)

    def read(row_bytes: int) -> None:
        for batch in batches(epoch_order(everything, 0, 0, row_bytes=row_bytes), 128):
            rows.gather(batch)
            store.logits[batch]

    times = seconds({"free": lambda: read(1), "blocks": lambda: read(2**30)}, rounds=5)
    free, blocks = (statistics.median(times[name]) / ROWS * 1e6 for name in ("free", "blocks"))
    return [
        Result("store, bytes a sample / (2 x classes)", f"{size:.4f}", "<= 1.01", size <= 1.01),
        Result("memory grown while writing 200,000 rows, MiB", f"{grown:.0f}", "flat", grown < 100),
        Result("shuffled read at 200,000 rows, microseconds a sample", f"{free:.1f}", "<= 10", free <= 10),
        Result("the same in blocks, as beyond memory", f"{blocks:.1f}", "<= 10", blocks <= 10),
    ]


def features(folder: Path) -> list[Result]:
    """A shuffled batch of features of every stage, read against run by the main job's teacher."""
    rows = columns(folder / "some", 512)
    teacher = models.build(teacher_model(), SCHEMA, seed=0)
    shutil.rmtree(folder / "store", ignore_errors=True)
    manifest, _ = write(folder / "store", teacher, "t", {"train": rows}, partial=folder / "partial", asked="stages")
    stored = SoftTargets.open(folder / "store").teacher("train", list(manifest.features))
    live = LiveTeacher(teacher, list(manifest.features))
    order = np.random.default_rng(0).permutation(512)[:128]
    (images,) = channels_last(rows.gather(order))
    batch = Batch(torch.from_numpy(order), {"image": images}, SCHEMA, torch.device("cpu"))
    times = seconds({"live": lambda: live.signals(batch), "stored": lambda: stored.signals(batch)}, rounds=15)
    part, told = ratio(times, "stored", "live")
    return [Result("a batch of stored features / the live teacher", told, "< 1", part < 1)]


def _own_memory() -> int:
    """Bytes that are this process's own: mapped files belong to the disk's cache and can go at any time."""
    used = psutil.Process().memory_info()
    return int(used.rss - getattr(used, "shared", 0))
