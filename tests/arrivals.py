"""Digits as a user's table, and batches of them that arrive."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from tests.projects import Project

Pixels = npt.NDArray[np.uint8]


class Digits:
    """1,797 pictures in an order of no meaning: those of one writer do not lie together, as in the original."""

    def __init__(self) -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        self.images: Pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)[order]
        self.labels: list[str] = [str(label) for label in digits.target[order]]

    def table(
        self,
        rows: range,
        change: Callable[[Pixels], Pixels] = lambda pixels: pixels,
        labels: Sequence[str | None] | None = None,
    ) -> pa.Table:
        """Some of them, with other pictures or labels where asked for."""
        pixels = np.ascontiguousarray(change(self.images[rows.start : rows.stop]))
        own = self.labels[rows.start : rows.stop] if labels is None else labels
        return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels), "label": pa.array(own)})


def put(project: Project, name: str, table: pa.Table) -> Path:
    """Lets a batch arrive, as somebody would who writes it under another name first."""
    file = project.root / "data" / "incoming" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{name}.part")
    (pyarrow.csv.write_csv if name.endswith(".csv") else pq.write_table)(table, unfinished)
    unfinished.rename(file)
    return file


def set_up(project: Project, digits: Digits, rows: int, **changes: Any) -> None:
    """A project on a table of its own, with every label and models that learn in seconds."""
    pq.write_table(digits.table(range(rows)), project.root / "data" / "raw.parquet")
    project.set_params(data__source="table", data__path="data/raw.parquet", data__labelled="all", **changes)
