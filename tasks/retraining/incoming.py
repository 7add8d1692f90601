"""Files on their way: from `data/incoming` to `data/partitions`, or to `data/quarantine`.

A batch is copied first, and looked at there. The copy gets its place by one rename, and only then do the files that
arrived go; the journal lists them by then. So a kill at any point loses no row and doubles none: a batch that has its
place is in, and one that has none arrives again.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from distillery.errors import UserError
from distillery.sources.table import FORMATS
from tasks.alone import alone
from tasks.document import Document
from tasks.folders import STATE
from tasks.retraining.results import Batch

INCOMING = Path("data") / "incoming"
QUARANTINE = Path("data") / "quarantine"
STAGED = STATE / "arriving"
FILES = "files"  # of a batch, in `STAGED` and in quarantine, beside its report
JOURNAL = STATE / "retraining.json"
UNFINISHED = (".part", ".tmp")

Sign = tuple[str, int, int]  # path, size in bytes and time of change in nanoseconds
Signs = tuple[Sign, ...]


class LeftError(UserError):
    """A batch that stays where it is until the next time; `signs` is what its files looked like."""

    def __init__(self, name: str, why: str, signs: Signs) -> None:
        super().__init__(f"{INCOMING / name} {why}; it is left for the next time")
        self.signs = signs


class Journal(Document):
    """What a retraining that has not come to its end has done; the file goes when it has.

    Attributes:
        taken: folder that a batch gets -> the files that arrived.
        batches: those looked at so far.
    """

    taken: dict[str, Signs] = Field(default_factory=dict)
    batches: tuple[Batch, ...] = ()

    @classmethod
    def left(cls, root: Path) -> "Journal | None":
        """The journal of a retraining that was interrupted."""
        file = root / JOURNAL
        return cls.read(file) if file.exists() else None

    def keep(self, root: Path) -> None:
        """Replaces that of the project."""
        self.write(root / JOURNAL)

    @staticmethod
    def remove(root: Path) -> None:
        """The retraining has come to its end."""
        (root / JOURNAL).unlink(missing_ok=True)


def locked(root: Path, wait: Callable[[str], None] | None) -> AbstractContextManager[None]:
    """One retraining at a time; see `tasks.alone.alone`."""
    busy = "another retraining of this project is running" + ("; it is waited for" if wait else "; or give --wait")
    return alone(root, "retraining", busy, wait)


@dataclass(frozen=True)
class Arrival:
    """What is taken as one batch.

    Attributes:
        name: for people.
        base: the folder whose structure its files keep.
        paths: its files and folders.
    """

    name: str
    base: Path
    paths: tuple[Path, ...]

    def signs(self) -> Signs:
        """What its files look like from outside; another answer later: somebody still writes them."""
        return tuple(sign for path in self.paths for sign in signs(path))


def signs(path: Path) -> Iterator[Sign]:
    """Those of a file, or of every file below a folder.

    What is hidden, unfinished, or left by the program that wrote a table (`_SUCCESS`) is passed over.
    """
    # Unlike `rglob`, a walk passes over a folder that is taken away meanwhile.
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in [path, *sorted(below)]:
        parts = file.relative_to(path.parent).parts
        if any(part.startswith(".") or part.endswith(UNFINISHED) for part in parts):
            continue
        if file.name.startswith("_") and not file.suffix:
            continue
        try:
            if file.is_file():
                status = file.stat()
                yield str(file), status.st_size, status.st_mtime_ns
        except FileNotFoundError:
            continue  # taken away between the two calls


def waiting(root: Path) -> list[Arrival]:
    """The batches in `data/incoming`: each table, each folder, and all folders that hold images as one."""
    folder = root / INCOMING
    found, classes = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        files = [Path(name) for name, _, _ in signs(path)]
        if not files:
            continue
        if any(file.parent == path and file.suffix.lower() not in FORMATS for file in files):
            classes.append(path)
        else:
            found.append(Arrival(path.name, path if path.is_dir() else folder, (path,)))
    return [*found, *([Arrival("images", folder, tuple(classes))] if classes else [])]


def staged(root: Path, arrival: Arrival) -> tuple[Path, Signs]:
    """Copies a batch; returns the folder of the copy, and what the files looked like.

    Raises:
        LeftError: where somebody still writes them, or they may not be read or removed.
    """
    shutil.rmtree(root / STAGED, ignore_errors=True)
    place = root / STAGED / FILES
    before = arrival.signs()
    for name, _, _ in before:
        target = place / Path(name).relative_to(arrival.base)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(name, target)
        except FileNotFoundError:
            break  # and told below
        except PermissionError:
            raise LeftError(arrival.name, f"may not be read ({name}): give this user the right to", before) from None
        if not os.access(Path(name).parent, os.W_OK):
            raise LeftError(arrival.name, "may not be removed once it is taken in: give this user the right to", before)
    if arrival.signs() != before:
        raise LeftError(arrival.name, "is still being written", before)
    return place, before


def forget(root: Path, taken: Collection[Sign]) -> None:
    """Removes files that arrived and have their place now, but those that were changed since, and their folders."""
    for name, size, time in taken:
        file = Path(name)
        try:
            status = file.stat()
            if (status.st_size, status.st_mtime_ns) == (size, time):
                file.unlink()
        except FileNotFoundError:
            continue
    above = {folder for name, _, _ in taken for folder in Path(name).parents}
    for folder in sorted(above & set((root / INCOMING).rglob("*")), reverse=True):
        with suppress(OSError):  # something else lies there
            folder.rmdir()
