"""What a teacher says about every row, stored once: a versioned, checked data set.

Files in the folder: `logits.npy` (N, C) in the order of the rows, training split first, then validation; `keys.npy`
(N,) uint64, the rows it speaks of; `manifest.json`. Logits are stored without a temperature, so that one store serves
every objective.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from distillery.columns import Columns
from distillery.config import Config
from distillery.errors import UserError
from distillery.models import Network
from distillery.saved import predict_blocks
from distillery.signals import Batch, Signals

FORMAT = 1
DType = Literal["float16", "float32"]


class Fidelity(Config):
    """How faithful the store is to what the teacher said exactly.

    Attributes:
        largest_difference: of any logit.
        equal_argmax: share of rows whose first class is the same.
    """

    largest_difference: float
    equal_argmax: float


class Manifest(Config):
    """The content of `manifest.json`."""

    format: int = FORMAT
    teacher: str
    rows: int
    outputs: int
    dtype: DType
    parts: dict[str, int]
    checksums: dict[str, str]
    fidelity: Fidelity


class SoftTargets:
    """A complete store, checked when opened.

    Attributes:
        logits: (N, C), memory-mapped.
        keys: (N,) uint64.
        manifest: where it came from.
    """

    def __init__(self, logits: npt.NDArray[np.floating], keys: npt.NDArray[np.uint64], manifest: Manifest) -> None:
        self.logits = logits
        self.keys = keys
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, teacher: str | None = None, parts: Sequence[Columns] | None = None) -> Self:
        """Maps a store and checks its files against the manifest.

        Args:
            folder: written by `write`.
            teacher: digest that the store's teacher must have.
            parts: the splits whose rows it must hold, in order.

        Raises:
            UserError: where a file is missing or damaged, rows are missing, strange or shuffled, or the teacher is
                another one.
        """
        again = f"run `python -m flows run soft_targets@{folder.name} --force`"
        try:
            manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
            logits = np.load(folder / "logits.npy", mmap_mode="r")
            keys = np.load(folder / "keys.npy")
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{folder} is no complete store of soft targets ({error}); {again}") from None
        for name, checksum in manifest.checksums.items():
            if _checksum(folder / name) != checksum:
                raise UserError(f"{folder / name} was changed after it was written; {again}")
        if teacher is not None and manifest.teacher != teacher:
            raise UserError(f"{folder} holds the words of another teacher than the present one; {again}")
        if parts is not None:
            _check_rows(folder, keys, np.concatenate([part.keys for part in parts]), again)
        return cls(logits, keys, manifest)

    def part(self, name: str) -> npt.NDArray[np.floating]:
        """(n, C) logits of one split."""
        start = 0
        for part, rows in self.manifest.parts.items():
            if part == name:
                return self.logits[start : start + rows]
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


def write(
    folder: Path,
    network: Network,
    teacher: str,
    parts: dict[str, Columns],
    *,
    partial: Path,
    dtype: DType = "float16",
    batch_size: int = 512,
    advance: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Asks the teacher about every row, block by block, with flat memory.

    Args:
        folder: gets the finished store.
        network: the teacher.
        teacher: its digest.
        parts: the splits by name, in order.
        partial: folder for the unfinished store; what an earlier, killed call left there for the same teacher and
            rows is continued.
        dtype: of the stored logits.
        batch_size: rows at once.
        advance: told the number of rows after every block.

    Raises:
        UserError: where a logit is not finite or does not fit the dtype.
    """
    keys = np.concatenate([columns.keys for columns in parts.values()])
    identity: dict[str, str | int] = {
        "teacher": teacher,
        "keys": hashlib.sha256(keys.tobytes()).hexdigest(),
        "dtype": dtype,
        "outputs": network.schema.outputs,
    }
    partial.mkdir(parents=True, exist_ok=True)
    unfinished = partial / "logits.npy"
    position = _resume(partial, identity)
    shape = (len(keys), network.schema.outputs)
    mode: Literal["r+", "w+"] = "r+" if position["rows"] else "w+"
    store = np.lib.format.open_memmap(unfinished, mode=mode, dtype=np.dtype(dtype), shape=shape)
    advance(int(position["rows"]))
    for at, block in _blocks(network, list(parts.values()), int(position["rows"]), batch_size):
        with np.errstate(over="ignore"):
            stored = block.astype(dtype)
        if not np.isfinite(stored).all():
            row = at + int((~np.isfinite(stored)).any(1).argmax())
            if np.isfinite(block).all():
                raise UserError(
                    f"the teacher's output for row {row} is beyond float16: set soft_targets.dtype: float32"
                )
            raise UserError(
                f"the teacher's output for row {row} is not finite: train it anew with a lower learning_rate"
            )
        store[at : at + len(block)] = stored
        difference = float(np.abs(stored.astype(np.float32) - block).max())
        position["difference"] = max(float(position["difference"]), difference)
        position["equal"] = int(position["equal"]) + int((stored.argmax(1) == block.argmax(1)).sum())
        position["rows"] = at + len(block)
        store.flush()
        _write_position(partial, identity, position)
        advance(len(block))
    del store
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "keys.npy", keys)
    unfinished.replace(folder / "logits.npy")
    (partial / "position.json").unlink()
    manifest = Manifest(
        teacher=teacher,
        rows=shape[0],
        outputs=shape[1],
        dtype=dtype,
        parts={name: len(columns) for name, columns in parts.items()},
        checksums={name: _checksum(folder / name) for name in ("logits.npy", "keys.npy")},
        fidelity=Fidelity(
            largest_difference=float(position["difference"]), equal_argmax=int(position["equal"]) / max(shape[0], 1)
        ),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _blocks(
    network: Network, parts: Sequence[Columns], start: int, batch_size: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Logits of all parts in one numbering, from row `start` on."""
    offset = 0
    for columns in parts:
        for at, block in predict_blocks(network, columns, max(0, start - offset), batch_size):
            yield offset + at, block
        offset += len(columns)


def _resume(partial: Path, identity: dict[str, str | int]) -> dict[str, float | int]:
    """Where an earlier call for the same teacher and rows stopped; else the beginning."""
    file = partial / "position.json"
    if file.exists() and (partial / "logits.npy").exists():
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["identity"] == identity:
            position: dict[str, float | int] = saved["position"]
            return position
    return {"rows": 0, "difference": 0.0, "equal": 0}


def _write_position(partial: Path, identity: dict[str, str | int], position: dict[str, float | int]) -> None:
    """Renamed into place, so that a kill leaves the old position or the new one."""
    fresh = partial / "position.json.new"
    fresh.write_text(json.dumps({"identity": identity, "position": position}), encoding="utf-8")
    fresh.replace(partial / "position.json")


def _check_rows(folder: Path, stored: npt.NDArray[np.uint64], expected: npt.NDArray[np.uint64], again: str) -> None:
    """Identity goes by id: the same rows in the same order, or an error that tells which kind of difference."""
    if np.array_equal(stored, expected):
        return
    missing = np.setdiff1d(expected, stored).size
    strange = np.setdiff1d(stored, expected).size
    if missing or strange:
        raise UserError(f"{folder}: {missing} rows are missing and {strange} are not in the data; {again}")
    raise UserError(f"{folder}: the rows are in another order than the data; {again}")


def _checksum(file: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
