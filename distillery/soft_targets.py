"""What a teacher says about every row, stored once: a versioned, checked data set.

Files in the folder: `logits.npy` (N, C) in the order of the rows, training split first, then validation; `keys.npy`
(N,) uint64, the rows it speaks of; `contents.npy` (N,) uint64, a hash of the inputs of each; `manifest.json`. Logits
are stored without a temperature, so that one store serves every objective. Where layers were asked for,
`feature-<number>.npy` (N, ...) holds what each put out. Where training rows are shown in K views (`distillery.views`),
N counts each view of a row, one view of all rows after the other; `keys.npy` and `contents.npy` name a row once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from distillery.columns import Columns
from distillery.config import Config
from distillery.errors import UserError
from distillery.signals import Batch, Signals
from distillery.views import Viewed, Views

FORMAT = 1
DType = Literal["float16", "float32"]
Asked = tuple[str, ...] | Literal["stages"]


class Fidelity(Config):
    """How faithful the store is to what the teacher said exactly.

    Attributes:
        largest_difference: of any logit.
        equal_argmax: share of rows whose first class is the same.
    """

    largest_difference: float
    equal_argmax: float


class StoredFeature(Config):
    """What a layer put out for every row.

    Attributes:
        file: in the folder.
        shape: of one row.
        largest_difference: of any value to what was said exactly.
        largest_value: of any, without its sign.
    """

    file: str
    shape: tuple[int, ...]
    largest_difference: float
    largest_value: float


class Manifest(Config):
    """The content of `manifest.json`.

    Attributes:
        format: of this file.
        teacher: digest.
        rows: N, of all parts, each view of a row counted.
        outputs: O.
        dtype: of logits and features.
        parts: split -> its rows, each view counted, in the order of the store.
        checksums: file -> SHA-256.
        fidelity: of the logits.
        views: of the training rows; None: they are shown as they are.
        features: layer -> what was stored of it.
        asked: for which layers.
    """

    format: int = FORMAT
    teacher: str
    rows: int
    outputs: int
    dtype: DType
    parts: dict[str, int]
    checksums: dict[str, str]
    fidelity: Fidelity
    views: Views | None = None
    features: dict[str, StoredFeature] = Field(default_factory=dict)
    asked: Asked = ()


class SoftTargets:
    """A complete store, checked when opened.

    Attributes:
        logits: (N, C), memory-mapped.
        keys: (N,) uint64; of a row with several views once.
        contents: (N,) uint64, a hash of the inputs of each.
        manifest: where it came from.
        features: layer -> (N, ...), memory-mapped.
    """

    def __init__(
        self,
        logits: npt.NDArray[np.floating],
        keys: npt.NDArray[np.uint64],
        contents: npt.NDArray[np.uint64],
        manifest: Manifest,
        features: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        self.logits = logits
        self.keys = keys
        self.contents = contents
        self.manifest = manifest
        self.features = dict(features)

    @classmethod
    def open(
        cls,
        folder: Path,
        teacher: str | None = None,
        parts: Sequence[Columns] | None = None,
        asked: Asked | None = None,
    ) -> Self:
        """Maps a store and checks its files against the manifest.

        Args:
            folder: written by `distillery.asking.write`.
            teacher: digest that the store's teacher must have.
            parts: the splits whose rows it must hold, in order, and in the views in which it must hold them.
            asked: the layers for which it must have been asked.

        Raises:
            UserError: where a file is missing or damaged, rows are missing, strange, shuffled or have other inputs, or
                the teacher, the views or the layers are others.
        """
        again = f"run `python -m flows run soft_targets@{folder.name} --force`"
        try:
            manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
            logits = np.load(folder / "logits.npy", mmap_mode="r")
            keys, contents = (np.load(folder / f"{name}.npy") for name in ("keys", "contents"))
            features = {
                name: np.load(folder / stored.file, mmap_mode="r") for name, stored in manifest.features.items()
            }
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{folder} is no complete store of soft targets ({error}); {again}") from None
        for name, expected in manifest.checksums.items():
            if checksum(folder / name) != expected:
                raise UserError(f"{folder / name} was changed after it was written; {again}")
        if teacher is not None and manifest.teacher != teacher:
            raise UserError(f"{folder} holds the words of another teacher than the present one; {again}")
        if parts is not None:
            _check_rows(folder, keys, np.concatenate([part.keys for part in parts]), again)
            changed = np.count_nonzero(contents != np.concatenate([part.contents for part in parts]))
            if changed:
                raise UserError(f"{folder}: {changed} rows had other inputs when the teacher was asked; {again}")
            if manifest.views != views_of(parts):
                raise UserError(f"{folder} holds {_told(manifest.views)}, not {_told(views_of(parts))}; {again}")
        if asked is not None and manifest.asked != asked:
            raise UserError(
                f"{folder} was asked for the features {manifest.asked or 'none'}, not {asked or 'none'} "
                f"(soft_targets.features); {again}"
            )
        return cls(logits, keys, contents, manifest, features)

    def part(self, name: str) -> npt.NDArray[np.floating]:
        """(n, C) logits of one split, each view counted."""
        return self.logits[self._rows(name)]

    def once(self) -> npt.NDArray[np.floating]:
        """(len(keys), C) logits of every row, of its first view where it has several."""
        if self.manifest.views is None:
            return self.logits
        rest = self.manifest.rows - self.manifest.parts["train"]
        first = self.part("train")[: len(self.keys) - rest]
        return np.concatenate([first, *(self.part(name) for name in self.manifest.parts if name != "train")])

    def teacher(self, name: str, layers: Sequence[str] = ()) -> "StoredTeacher":
        """A teacher of one split, with some of the stored features."""
        rows = self._rows(name)
        return StoredTeacher(self.logits[rows], {layer: self.features[layer][rows] for layer in layers})

    def _rows(self, name: str) -> slice:
        """Where a split lies in the files."""
        start = 0
        for part, rows in self.manifest.parts.items():
            if part == name:
                return slice(start, start + rows)
            start += rows
        raise KeyError(name)


class StoredTeacher:
    """A teacher whose words lie on disk: a batch costs a gather.

    Attributes:
        logits: (N, C) in the row order of the training split.
        features: layer -> (N, ...), where they were stored.
    """

    inputs: tuple[str, ...] = ()

    def __init__(
        self, logits: npt.NDArray[np.floating], features: Mapping[str, npt.NDArray[np.floating]] | None = None
    ) -> None:
        self.logits = logits
        self.features = dict(features or {})

    def signals(self, batch: Batch) -> Signals:
        """What was stored for these rows, as float32 on the batch's device."""

        def gathered(stored: npt.NDArray[np.floating]) -> Tensor:
            return torch.from_numpy(stored[batch.rows.numpy()]).to(batch.device, non_blocking=True).float()

        return Signals(gathered(self.logits), {name: gathered(values) for name, values in self.features.items()})


def views_of(parts: Sequence[Columns]) -> Views | None:
    """In which views rows are shown; only training rows are."""
    return next((part.views for part in parts if isinstance(part, Viewed)), None)


def _told(views: Views | None) -> str:
    """Views in words."""
    return "no views" if views is None else f"{views.count} views by {views.augment}"


def _check_rows(folder: Path, stored: npt.NDArray[np.uint64], expected: npt.NDArray[np.uint64], again: str) -> None:
    """Identity goes by id: the same rows in the same order, or an error that tells which kind of difference."""
    if np.array_equal(stored, expected):
        return
    missing = np.setdiff1d(expected, stored).size
    strange = np.setdiff1d(stored, expected).size
    if missing or strange:
        raise UserError(f"{folder}: {missing} rows are missing and {strange} are not in the data; {again}")
    raise UserError(f"{folder}: the rows are in another order than the data; {again}")


def checksum(file: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
