"""Small projects for tests of the data layer: a folder with params.yaml and data, and stages run in it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tasks.stage import Summary, execute
from tasks.tracking.tracker import NoRun

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


def project(root: Path, *, path: str = "data/raw.parquet", **sections: Any) -> Path:
    """Writes `params.yaml` for a table with inputs a and b, target label and split part, changed by `sections`."""
    data: dict[str, Any] = {
        "source": "table",
        "path": path,
        "columns": {"inputs": ["a", "b"], "target": "label", "key": "key", "split": "part"},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "labelled": "all",
    }
    params: dict[str, Any] = {
        "seed": 1,
        "data": data | dict(sections.pop("data", {})),
        "ingest": {},
        "validation": {"soft_targets": {}} | dict(sections.pop("validation", {})),
        "teachers": {"small": {"model": {"name": "mlp"}}},
        "soft_targets": {},
        "student": {"model": {"name": "mlp"}},
        "distill": {"teachers": ["small"], "objectives": [{"name": "kd"}], "training": {}},
        "finetune": {},
        "export": {},
        "evaluate": {},
        "registry": {},
        "retraining": {"snapshot": 0},
    } | sections
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return root


def rows(count: int = 30) -> dict[str, list[Any]]:
    """Columns of a sound table: three rows in five train, two classes in every split."""
    parts = ["train", "train", "train", "validation", "test"]
    return {
        "key": [f"k{number}" for number in range(count)],
        "a": [float(number) for number in range(count)],
        "b": [number % 7 / 2 for number in range(count)],
        "label": ["yes" if number // 5 % 2 else "no" for number in range(count)],
        "part": [parts[number % 5] for number in range(count)],
    }


def write_table(root: Path, columns: Mapping[str, Any], path: str = "data/raw.parquet") -> None:
    """Writes the user's table."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), root / path)


def images(count: int, shape: Sequence[int] = (1, 4, 4)) -> pa.Array:
    """Random images as a tensor column."""
    return tensor(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def tensor(pixels: npt.NDArray[np.uint8]) -> pa.Array:
    """(N, channels, height, width) as a column."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)


def write_image(file: Path, size: tuple[int, int] = (6, 5), seed: int = 0, channels: int = 3) -> None:
    """A random picture, size as (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(file)


def stage(root: Path, name: str) -> Summary:
    """Runs one stage as either door would, without tracking."""
    return execute(name, root, run=NoRun(), key="test")


def stages(root: Path, *names: str) -> None:
    """Runs some stages, one after another."""
    for name in names:
        stage(root, name)


def table_of(root: Path) -> pa.Table:
    """What ingest wrote, training and validation rows before test rows."""
    return pa.concat_tables([pq.read_table(root / f"data/table/{name}.parquet") for name in ("rows", "test")])
