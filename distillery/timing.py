"""How long ONNX files take on one thread, measured in turns so that a busy moment hits all models alike."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.inference import Feed, feed, logits, open_session

BATCH = 256
ROUNDS = 30
SINGLES_A_ROUND = 10
_FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """How fast one file answers.

    Attributes:
        latency_ms: median time of one row.
        latency_p95_ms: 95th percentile of it.
        throughput: rows a second in batches of `BATCH`, from the median batch.
    """

    latency_ms: float
    latency_p95_ms: float
    throughput: float


def measure(files: Mapping[str, tuple[Path, Columns]], seconds: float = 20.0) -> dict[str, Timing]:
    """Times every file with ONNX Runtime on one thread.

    Args:
        files: name -> ONNX file, and rows to ask it about, which are repeated where there are fewer than a batch.
        seconds: begin no further round after this long, once a few are done.

    Returns:
        For each name, over up to 30 rounds; in each, every model answers ten single rows and one batch.

    Raises:
        UserError: where there is no row.
    """
    if not all(len(columns) for _, columns in files.values()):
        raise UserError("there is no row to measure latency with: the split is empty")
    sessions = {name: open_session(file, threads=1) for name, (file, _) in files.items()}
    single = {name: feed(columns, slice(0, 1)) for name, (_, columns) in files.items()}
    batch = {name: feed(columns, np.arange(BATCH) % len(columns)) for name, (_, columns) in files.items()}
    for name, session in sessions.items():
        for _ in range(3):
            _clock(session, single[name])
        _clock(session, batch[name])
    singles: dict[str, list[float]] = {name: [] for name in sessions}
    batches: dict[str, list[float]] = {name: [] for name in sessions}
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, session in sessions.items():
            # The first call after another model has used the caches is not what a service sees.
            _clock(session, single[name])
            singles[name] += [_clock(session, single[name]) for _ in range(SINGLES_A_ROUND)]
            batches[name].append(_clock(session, batch[name]))
    return {
        name: Timing(
            float(np.median(singles[name]) * 1e3),
            float(np.quantile(singles[name], 0.95) * 1e3),
            float(BATCH / np.median(batches[name])),
        )
        for name in sessions
    }


def _clock(session: onnxruntime.InferenceSession, rows: Feed) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    logits(session, rows)
    return time.perf_counter() - start
