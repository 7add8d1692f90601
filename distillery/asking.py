"""Asks a teacher about every row and stores what it says; of rows that an earlier store knows it is not asked again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.features import check_layers, default_layers, feature_shapes
from distillery.models import Network
from distillery.reuse import Rows, copy, find, identities
from distillery.saved import signal_blocks
from distillery.soft_targets import Asked, DType, Fidelity, Manifest, SoftTargets, StoredFeature, checksum, views_of

OUTPUTS = ""  # what stands beside the names of layers
# Of the largest value: what half precision loses of a feature is 0.05 %, unless all of it is tiny.
FEATURE_TOLERANCE = 0.01


def write(
    folder: Path,
    network: Network,
    teacher: str,
    parts: dict[str, Columns],
    *,
    partial: Path,
    known: SoftTargets | None = None,
    dtype: DType | Literal["auto"] = "auto",
    asked: Asked = (),
    batch_size: int = 512,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Manifest, int]:
    """Asks the teacher about every row of which no earlier store speaks, block by block, with flat memory.

    What the earlier store says of a row is copied bit for bit. How faithful that is was measured when the teacher was
    asked, and the manifest carries it on: the larger of the differences, and the shares of equal classes weighted by
    the rows that were copied and asked.

    Args:
        folder: gets the finished store.
        network: the teacher.
        teacher: its digest.
        parts: the splits by name, in order; those named `train` may be shown in several views.
        partial: folder for the unfinished store; what an earlier, killed call left there for the same teacher and
            rows is continued.
        known: an earlier store; of another teacher or dtype, or without one of the layers, it says nothing.
        dtype: of the stored logits and features; auto: float16, and float32 where a target is a number, which is in its
            own unit and may be beyond 65,504.
        asked: layers whose features are stored too; stages: the last of each.
        batch_size: rows at once.
        advance: told how many rows are there already, then the number of rows after every block.

    Returns:
        The manifest; and about how many rows, each view counted, the teacher was asked.

    Raises:
        UserError: where a number is not finite or does not fit the dtype, or the teacher has no such layer.
    """
    if dtype == "auto":
        dtype = "float32" if any(each.kind == "number" for each in network.schema.targets.values()) else "float16"
    keys = np.concatenate([columns.keys for columns in parts.values()])
    contents = np.concatenate([columns.contents for columns in parts.values()])
    shapes = feature_shapes(network, layers_asked(network, asked)) if asked else {}
    views = views_of(list(parts.values()))
    shown = {name: columns.shown for name, columns in parts.items()}
    rows = sum(shown.values())
    found = find(known, teacher, dtype, list(shapes), identities(keys, contents, views, shown))
    unknown = np.flatnonzero(found < 0)
    source = known if len(unknown) < rows else None
    identity: dict[str, object] = {
        "teacher": teacher,
        "keys": hashlib.sha256(keys.tobytes()).hexdigest(),
        "contents": hashlib.sha256(contents.tobytes()).hexdigest(),
        "dtype": dtype,
        "outputs": network.schema.outputs,
        "views": None if views is None else views.model_dump(),
        "layers": list(shapes),
        "known": source.manifest.checksums if source else None,
    }
    partial.mkdir(parents=True, exist_ok=True)
    files = {OUTPUTS: "logits.npy"} | {name: f"feature-{at}.npy" for at, name in enumerate(shapes)}
    position = _resume(partial, identity, list(files.values()))
    mode: Literal["r+", "w+"] = "r+" if position else "w+"
    stores = {
        name: np.lib.format.open_memmap(
            partial / file,
            mode=mode,
            dtype=np.dtype(dtype),
            shape=(rows, *shapes.get(name, (network.schema.outputs,))),
        )
        for name, file in files.items()
    }
    if position is None:
        position = {"rows": 0, "equal": 0}
        if source:
            for name, store in stores.items():
                copy(source.features[name] if name else source.logits, found, store)
                store.flush()
            position |= _carried(source.manifest, rows - len(unknown), list(shapes))
    advance(rows - len(unknown) + int(position["rows"]))
    left = unknown[int(position["rows"]) :]
    for at, block, features in _blocks(network, list(parts.values()), left, batch_size, list(shapes)):
        for name, exact in {OUTPUTS: block, **features}.items():
            stored = _narrowed(exact, dtype, at, f"output of layer {name}" if name else "output")
            stores[name][at] = stored
            stores[name].flush()
            difference = float(np.abs(stored.astype(np.float32) - exact).max(initial=0.0))
            _raise(position, f"difference {name}", difference)
            _raise(position, f"value {name}", float(np.abs(exact).max(initial=0.0)))
        said = stores[OUTPUTS][at]
        position["equal"] += int((said.argmax(1) == block.argmax(1)).sum())
        position["rows"] += len(block)
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
    np.save(folder / "contents.npy", contents)
    for file in files.values():
        (partial / file).replace(folder / file)
    (partial / "position.json").unlink(missing_ok=True)
    manifest = Manifest(
        teacher=teacher,
        rows=rows,
        outputs=network.schema.outputs,
        dtype=dtype,
        parts=shown,
        checksums={name: checksum(folder / name) for name in (*files.values(), "keys.npy", "contents.npy")},
        fidelity=Fidelity(
            largest_difference=position.get(f"difference {OUTPUTS}", 0.0),
            equal_argmax=int(position["equal"]) / max(rows, 1),
        ),
        views=views,
        features=described,
        asked=asked,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest, len(unknown)


def layers_asked(network: Network, asked: Asked) -> tuple[str, ...]:
    """Paths of the layers; `stages` stands for the last of each stage.

    Raises:
        UserError: where the network has no such layer.
    """
    layers = default_layers(network) if asked == "stages" else tuple(asked)
    check_layers(network, layers)
    return layers


def _narrowed(exact: npt.NDArray[np.float32], dtype: DType, rows: Rows, what: str) -> npt.NDArray[np.floating]:
    """A block as it is stored; `rows` are the numbers of its rows."""
    with np.errstate(over="ignore"):
        stored: npt.NDArray[np.floating] = exact.astype(dtype)
    wrong = (~np.isfinite(stored)).reshape(len(stored), -1).any(1)
    if not wrong.any():
        return stored
    row = rows[wrong.argmax()]
    if np.isfinite(exact).all():
        raise UserError(f"the teacher's {what} for row {row} is beyond float16: set soft_targets.dtype: float32")
    raise UserError(f"the teacher's {what} for row {row} is not finite: train it anew with a lower learning_rate")


def _raise(position: dict[str, float], name: str, value: float) -> None:
    """Keeps the largest."""
    position[name] = max(position.get(name, 0.0), value)


def _carried(manifest: Manifest, rows: int, layers: Sequence[str]) -> dict[str, float]:
    """How faithful some copied rows are, as far as their own manifest tells."""
    # A whole number, so that a store that is copied as a whole carries the very same share.
    carried: dict[str, float] = {"equal": round(manifest.fidelity.equal_argmax * rows)}
    carried[f"difference {OUTPUTS}"] = manifest.fidelity.largest_difference
    for name in layers:
        carried[f"difference {name}"] = manifest.features[name].largest_difference
        carried[f"value {name}"] = manifest.features[name].largest_value
    return carried


def _blocks(
    network: Network, parts: Sequence[Columns], rows: Rows, batch_size: int, layers: Sequence[str]
) -> Iterator[tuple[Rows, npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]]:
    """Outputs and features of some rows, which are numbered through all parts."""
    start = 0
    for columns in parts:
        own = rows[(rows >= start) & (rows < start + columns.shown)]
        for at, block, features in signal_blocks(network, columns, own - start, batch_size, layers):
            yield start + at, block, features
        start += columns.shown


def _resume(partial: Path, identity: Mapping[str, object], files: Sequence[str]) -> dict[str, float] | None:
    """Where an earlier call for the same teacher and rows stopped; None: at the beginning."""
    file = partial / "position.json"
    if file.exists() and all((partial / each).exists() for each in files):
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["identity"] == identity:
            position: dict[str, float] = saved["position"]
            return position
    return None


def _write_position(partial: Path, identity: Mapping[str, object], position: Mapping[str, float]) -> None:
    """Renamed into place, so that a kill leaves the old position or the new one."""
    fresh = partial / "position.json.new"
    fresh.write_text(json.dumps({"identity": identity, "position": position}), encoding="utf-8")
    fresh.replace(partial / "position.json")
