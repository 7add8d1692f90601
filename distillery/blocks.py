"""Rows that somebody wants predictions for, block by block: memory stays flat however many there are."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distillery.errors import UserError
from distillery.partitions import is_of_images
from distillery.sources import Options, images
from distillery.sources.table import FORMATS, files_of

BLOCK_BYTES = 1 << 23
MOST_ROWS = 1 << 16
OF_IMAGES = ("image", "file")


@dataclass(frozen=True)
class Rows:
    """The columns of a file or folder that will be read.

    Attributes:
        path: a Parquet or CSV file, a folder of such files of one kind, or a folder of images.
        names: of the columns.
        count: of the rows.
    """

    path: Path
    names: tuple[str, ...]
    count: int
    _files: tuple[Path, ...]
    _options: Options
    _types: dict[str, pa.DataType] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, choose: Callable[[Sequence[str]], Sequence[str]], options: Options) -> "Rows":
        """Looks at a file or folder; a CSV is read through once, for its number of rows and what stands in them.

        Args:
            path: of the file or folder.
            choose: given the names of the columns that are there, says which to read.
            options: how pictures are read, and which columns of a CSV hold text.

        Raises:
            UserError: where it is missing, empty or damaged, lacks a column, or a CSV has no number where one must be.
        """
        if is_of_images(path):
            names = tuple(choose(OF_IMAGES))
            _require(names, OF_IMAGES, path)
            files = images.found(path)
            return cls(path, names, len(files), tuple(files), options)
        files = files_of(path)
        with _told(path):
            present = [name for name in _columns(files[0]) if all(name in _columns(file) for file in files[1:])]
        names = tuple(choose(present))
        _require(names, present, path)
        if _is_csv(files[0]):
            types, count = _read_through(files, names, options.texts)
            return cls(path, names, count, tuple(files), options, types)
        with _told(path):
            count = sum(pq.read_metadata(file).num_rows for file in files)
        return cls(path, names, count, tuple(files), options)

    def blocks(self, row_bytes: int) -> Iterator[pa.Table]:
        """The columns and `row_origin`, in order.

        Args:
            row_bytes: what one row takes in memory.

        Raises:
            UserError: where a file is damaged further on.
        """
        size = max(1, min(MOST_ROWS, BLOCK_BYTES // row_bytes))
        if self.names and self._files and is_of_images(self.path):
            yield from self._images(size)
            return
        base = self.path if self.path.is_dir() else self.path.parent
        for file in self._files:
            done = 0
            for batch in self._batches(file, size):
                numbers = pc.cast(pa.array(np.arange(done + 1, done + batch.num_rows + 1)), pa.string())
                origin = pc.binary_join_element_wise(f"{file.relative_to(base)} row", numbers, " ")
                done += batch.num_rows
                yield pa.Table.from_batches([batch]).append_column("row_origin", origin)

    def _images(self, size: int) -> Iterator[pa.Table]:
        """As the source `images` reads them; pictures that lie in no folder of a class are named by their path."""
        classed = all(file.parent != self.path for file in self._files)
        for at in range(0, len(self._files), size):
            files = self._files[at : at + size]
            places = [file.relative_to(self.path) for file in files]
            below = [Path(*place.parts[1:]) if classed else place for place in places]
            yield pa.table(
                {
                    "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images.decoded(files, self._options)),
                    "file": pa.array([name.as_posix() for name in below]),
                    "row_origin": pa.array([place.as_posix() for place in places]),
                }
            )

    def _batches(self, file: Path, size: int) -> Iterator[Any]:
        """Record batches of one file."""
        with _told(file):
            if _is_csv(file):
                with _open_csv(file, self.names, self._types) as reader:
                    yield from reader
                return
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(size, columns=list(self.names)):
                    yield batch.select(list(self.names))


def _require(names: Sequence[str], present: Sequence[str], path: Path) -> None:
    """Says which columns are missing."""
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(present)}")


def _read_through(
    files: Sequence[Path], names: Sequence[str], texts: Sequence[str]
) -> tuple[dict[str, pa.DataType], int]:
    """Types to read the columns of CSV files with, and the number of rows."""
    types = {name: pa.string() for name in names if name in texts}
    with _told(files[0]), _open_csv(files[0], names, types) as reader:
        for column in reader.schema:
            # Whole numbers at the top may have fractions below.
            is_flag = pa.types.is_boolean(column.type)
            types.setdefault(column.name, pa.bool_() if is_flag else pa.float64())
    count = 0
    for file in files:
        with _told(file), _open_csv(file, names, types) as reader:
            count += sum(batch.num_rows for batch in reader)
    return types, count


def _open_csv(file: Path, names: Sequence[str], types: dict[str, pa.DataType]) -> Any:
    """A reader of some columns, in the order of the names."""
    return pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(names), column_types=types, strings_can_be_null=True
        ),
    )


def _columns(file: Path) -> list[str]:
    """Names of the columns of a file."""
    if _is_csv(file):
        with pyarrow.csv.open_csv(file) as reader:
            return list(reader.schema.names)
    return list(pq.read_schema(file).names)


def _is_csv(file: Path) -> bool:
    return FORMATS[file.suffix.lower()] == "csv"


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Says which file is damaged, and which column of a CSV holds no number."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        if found := re.match(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+: (.*)", reason):
            column = _columns(file)[int(found[1])]
            row = f" in line {found[2]}" if found[2] else ""
            raise UserError(f"column {column!r} of {file} must hold numbers{row}: {found[3]}") from None
        raise UserError(f"{file} cannot be read: {reason}; mend or replace the file") from None
