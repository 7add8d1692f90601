"""What a teacher says about every row, stored once: a versioned, checked data set.

Files in the folder: `logits.npy` (N, C) in the order of the rows, training split first, then validation; `keys.npy`
(N,) uint64, the rows it speaks of; `manifest.json`. Logits are stored without a temperature, so that one store serves
every objective. Where layers were asked for, `feature-<number>.npy` (N, ...) holds what each put out. Where training
rows are shown in K views (`distillery.views`), N counts each view of a row, one view of all rows after the other;
`keys.npy` names a row once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from distillery.columns import Columns
from distillery.config import Config
from distillery.errors import UserError
from distillery.features import check_layers, default_layers, feature_shapes
from distillery.models import Network
from distillery.saved import signal_blocks
from distillery.signals import Batch, Signals
from distillery.views import Viewed, Views

FORMAT = 1
DType = Literal["float16", "float32"]
Asked = tuple[str, ...] | Literal["stages"]
OUTPUTS = ""  # what stands beside the names of layers
# Of the largest value: what half precision loses of a feature is 0.05 %, unless all of it is tiny.
FEATURE_TOLERANCE = 0.01


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
        manifest: where it came from.
        features: layer -> (N, ...), memory-mapped.
    """

    def __init__(
        self,
        logits: npt.NDArray[np.floating],
        keys: npt.NDArray[np.uint64],
        manifest: Manifest,
        features: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        self.logits = logits
        self.keys = keys
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
            folder: written by `write`.
            teacher: digest that the store's teacher must have.
            parts: the splits whose rows it must hold, in order, and in the views in which it must hold them.
            asked: the layers for which it must have been asked.

        Raises:
            UserError: where a file is missing or damaged, rows are missing, strange or shuffled, or the teacher, the
                views or the layers are others.
        """
        again = f"run `python -m flows run soft_targets@{folder.name} --force`"
        try:
            manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
            logits = np.load(folder / "logits.npy", mmap_mode="r")
            keys = np.load(folder / "keys.npy")
            features = {
                name: np.load(folder / stored.file, mmap_mode="r") for name, stored in manifest.features.items()
            }
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{folder} is no complete store of soft targets ({error}); {again}") from None
        for name, checksum in manifest.checksums.items():
            if _checksum(folder / name) != checksum:
                raise UserError(f"{folder / name} was changed after it was written; {again}")
        if teacher is not None and manifest.teacher != teacher:
            raise UserError(f"{folder} holds the words of another teacher than the present one; {again}")
        if parts is not None:
            _check_rows(folder, keys, np.concatenate([part.keys for part in parts]), again)
            if manifest.views != _views(parts):
                raise UserError(f"{folder} holds {_told(manifest.views)}, not {_told(_views(parts))}; {again}")
        if asked is not None and manifest.asked != asked:
            raise UserError(
                f"{folder} was asked for the features {manifest.asked or 'none'}, not {asked or 'none'} "
                f"(soft_targets.features); {again}"
            )
        return cls(logits, keys, manifest, features)

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


def write(
    folder: Path,
    network: Network,
    teacher: str,
    parts: dict[str, Columns],
    *,
    partial: Path,
    dtype: DType | Literal["auto"] = "auto",
    asked: Asked = (),
    batch_size: int = 512,
    advance: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Asks the teacher about every row, block by block, with flat memory.

    Args:
        folder: gets the finished store.
        network: the teacher.
        teacher: its digest.
        parts: the splits by name, in order; those named `train` may be shown in several views.
        partial: folder for the unfinished store; what an earlier, killed call left there for the same teacher and
            rows is continued.
        dtype: of the stored logits and features; auto: float16, and float32 where a target is a number, which is in its
            own unit and may be beyond 65,504.
        asked: layers whose features are stored too; stages: the last of each.
        batch_size: rows at once.
        advance: told the number of rows after every block.

    Raises:
        UserError: where a number is not finite or does not fit the dtype, or the teacher has no such layer.
    """
    if dtype == "auto":
        dtype = "float32" if any(each.kind == "number" for each in network.schema.targets.values()) else "float16"
    keys = np.concatenate([columns.keys for columns in parts.values()])
    shapes = feature_shapes(network, layers_asked(network, asked)) if asked else {}
    views = _views(list(parts.values()))
    rows = sum(columns.shown for columns in parts.values())
    identity: dict[str, object] = {
        "teacher": teacher,
        "keys": hashlib.sha256(keys.tobytes()).hexdigest(),
        "dtype": dtype,
        "outputs": network.schema.outputs,
        "views": None if views is None else views.model_dump(),
        "layers": list(shapes),
    }
    partial.mkdir(parents=True, exist_ok=True)
    files = {OUTPUTS: "logits.npy"} | {name: f"feature-{at}.npy" for at, name in enumerate(shapes)}
    position = _resume(partial, identity, list(files.values()))
    mode: Literal["r+", "w+"] = "r+" if position["rows"] else "w+"
    stores = {
        name: np.lib.format.open_memmap(
            partial / file,
            mode=mode,
            dtype=np.dtype(dtype),
            shape=(rows, *shapes.get(name, (network.schema.outputs,))),
        )
        for name, file in files.items()
    }
    advance(int(position["rows"]))
    for at, block, features in _blocks(network, list(parts.values()), int(position["rows"]), batch_size, list(shapes)):
        for name, exact in {OUTPUTS: block, **features}.items():
            stored = _narrowed(exact, dtype, at, f"output of layer {name}" if name else "output")
            stores[name][at : at + len(block)] = stored
            stores[name].flush()
            difference = float(np.abs(stored.astype(np.float32) - exact).max(initial=0.0))
            _raise(position, f"difference {name}", difference)
            _raise(position, f"value {name}", float(np.abs(exact).max(initial=0.0)))
        said = stores[OUTPUTS][at : at + len(block)]
        position["equal"] += int((said.argmax(1) == block.argmax(1)).sum())
        position["rows"] = at + len(block)
        _write_position(partial, identity, position)
        advance(len(block))
    described = {
        name: StoredFeature(
            file=files[name],
            shape=shape,
            largest_difference=position.get(f"difference {name}", 0.0),
            largest_value=position.get(f"value {name}", 0.0),
        )
        for name, shape in shapes.items()
    }
    for name, feature in described.items():
        if feature.largest_difference > FEATURE_TOLERANCE * feature.largest_value:
            raise UserError(f"layer {name} puts out numbers too small for float16: set soft_targets.dtype: float32")
    del stores
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "keys.npy", keys)
    for file in files.values():
        (partial / file).replace(folder / file)
    (partial / "position.json").unlink()
    manifest = Manifest(
        teacher=teacher,
        rows=rows,
        outputs=network.schema.outputs,
        dtype=dtype,
        parts={name: columns.shown for name, columns in parts.items()},
        checksums={name: _checksum(folder / name) for name in (*files.values(), "keys.npy")},
        fidelity=Fidelity(
            largest_difference=position.get(f"difference {OUTPUTS}", 0.0),
            equal_argmax=int(position["equal"]) / max(rows, 1),
        ),
        views=views,
        features=described,
        asked=asked,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def layers_asked(network: Network, asked: Asked) -> tuple[str, ...]:
    """Paths of the layers; `stages` stands for the last of each stage.

    Raises:
        UserError: where the network has no such layer.
    """
    layers = default_layers(network) if asked == "stages" else tuple(asked)
    check_layers(network, layers)
    return layers


def _narrowed(exact: npt.NDArray[np.float32], dtype: DType, at: int, what: str) -> npt.NDArray[np.floating]:
    """A block as it is stored; `at` is the number of its first row."""
    with np.errstate(over="ignore"):
        stored: npt.NDArray[np.floating] = exact.astype(dtype)
    wrong = (~np.isfinite(stored)).reshape(len(stored), -1).any(1)
    if not wrong.any():
        return stored
    row = at + int(wrong.argmax())
    if np.isfinite(exact).all():
        raise UserError(f"the teacher's {what} for row {row} is beyond float16: set soft_targets.dtype: float32")
    raise UserError(f"the teacher's {what} for row {row} is not finite: train it anew with a lower learning_rate")


def _views(parts: Sequence[Columns]) -> Views | None:
    """In which views rows are shown; only training rows are."""
    return next((part.views for part in parts if isinstance(part, Viewed)), None)


def _told(views: Views | None) -> str:
    """Views in words."""
    return "no views" if views is None else f"{views.count} views by {views.augment}"


def _raise(position: dict[str, float], name: str, value: float) -> None:
    """Keeps the largest."""
    position[name] = max(position.get(name, 0.0), value)


def _blocks(
    network: Network, parts: Sequence[Columns], start: int, batch_size: int, layers: Sequence[str]
) -> Iterator[tuple[int, npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]]:
    """Outputs and features of all parts in one numbering, from row `start` on."""
    offset = 0
    for columns in parts:
        for at, block, features in signal_blocks(network, columns, max(0, start - offset), batch_size, layers):
            yield offset + at, block, features
        offset += columns.shown


def _resume(partial: Path, identity: Mapping[str, object], files: Sequence[str]) -> dict[str, float]:
    """Where an earlier call for the same teacher and rows stopped; else the beginning."""
    file = partial / "position.json"
    if file.exists() and all((partial / each).exists() for each in files):
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["identity"] == identity:
            position: dict[str, float] = saved["position"]
            return position
    return {"rows": 0, "equal": 0}


def _write_position(partial: Path, identity: Mapping[str, object], position: Mapping[str, float]) -> None:
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
