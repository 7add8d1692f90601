"""Data that arrived after `data.path` was set up: `data/partitions/<number>-<digest>/`, each a batch as it came.

A partition is never changed. Its number tells the order, so no clock is needed, and the digest of its files that a
batch is in already.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.sources import Options, images, load
from distillery.sources.table import FORMATS

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.table import Roles

FOLDER = Path("data") / "partitions"
NAME = re.compile(r"(\d{4,})-([0-9a-f]{12})")


@dataclass(frozen=True)
class Partition:
    """One batch that was taken in.

    Attributes:
        number: from 1, in the order of arrival.
        digest: of its files, 12 hex digits.
        folder: where they lie.
    """

    number: int
    digest: str
    folder: Path

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name


def found(folder: Path) -> list[Partition]:
    """The partitions in a folder, in their order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    names = [(NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((Partition(int(name[1]), name[2], path) for name, path in names if name), key=lambda one: one.number)


def next_number(folder: Path, snapshot: int) -> int:
    """That of the next one: beyond all there are, checked out or not, and beyond what teachers have learned from."""
    names = [NAME.fullmatch(path.name.removesuffix(".dvc")) for path in folder.glob("*-*")]
    last = max((int(name[1]) for name in names if name), default=0)
    return max(last, snapshot) + 1


def read(path: Path, roles: "Roles", options: Options) -> "pa.Table":
    """The columns of a batch: a file or folder of tables, or a folder with a folder of images for each class.

    The targets may be missing.

    Raises:
        UserError: see `distillery.sources.load`.
    """
    is_classed = any(file.parent != path for file in images.found(path))
    kind = "images" if is_classed and is_of_images(path) else "table"
    return load(kind, path, roles.columns, replace(options, optional=tuple(roles.targets)))


def is_of_images(path: Path) -> bool:
    """Whether a folder holds anything but tables."""
    return path.is_dir() and any(file.suffix.lower() not in FORMATS for file in images.found(path))


def digest(path: Path) -> str:
    """Of the names and contents of the files below a folder, or of one file; 12 hex digits."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.name if file == path else file.relative_to(path).as_posix()
        total.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:12]
