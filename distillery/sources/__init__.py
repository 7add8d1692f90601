"""Where rows come from: each source is one file with one function `load`, imported on use."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distillery.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES = {
    "mnist5k": "distillery.sources.mnist5k",
    "digits": "distillery.sources.digits",
    "diabetes": "distillery.sources.diabetes",
    "multifeat": "distillery.sources.multifeat",
    "table": "distillery.sources.table",
    "images": "distillery.sources.images",
}

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def _silently(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Shows no progress."""
    return items


@dataclass(frozen=True)
class Options:
    """How a source reads.

    Attributes:
        image_size: height and width that pictures of a folder are resized to; without it all must be of one size.
        image_mode: one or three channels.
        texts: columns of names, whose values in a CSV are text even where they look like numbers: 01 is not 1.
        track: wraps a long loop, given its items, a description and their number; draws a bar.
        optional: columns that files may lack; their values are missing then.
    """

    image_size: tuple[int, int] | None = None
    image_mode: Literal["grey", "rgb"] = "rgb"
    texts: tuple[str, ...] = ()
    track: Track = _silently
    optional: tuple[str, ...] = ()


def load(source: str, path: Path, columns: Sequence[str], options: Options | None = None) -> "pa.Table":
    """Reads the named columns of a source.

    Args:
        source: one of `SOURCES`.
        path: the user's file or folder; built-in sources ignore it.
        columns: names of inputs, target, and key, group and split where there are any.
        options: how to read.

    Returns:
        A table with at least these columns. An image is a fixed_shape_tensor of uint8, (channels, height, width).
        A source that reads files adds `row_origin`, which names a row's file.

    Raises:
        UserError: where the source cannot be read, lacks a column or has no row.
    """
    if source not in SOURCES:
        raise UserError(f"data.source: {source!r} is no source; there are {', '.join(SOURCES)}")
    table: pa.Table = importlib.import_module(SOURCES[source]).load(path, columns, options or Options())
    require(columns, table.column_names, f"source {source}")
    if table.num_rows == 0:
        raise UserError(f"{path} has no row: put data there, or change data.path")
    return table


def require(columns: Sequence[str], present: Sequence[str], where: object) -> None:
    """Checks that columns are there.

    Raises:
        UserError: naming what is missing and what is present.
    """
    missing = [name for name in columns if name not in present]
    if missing:
        raise UserError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(present)}: correct data.columns"
        )
