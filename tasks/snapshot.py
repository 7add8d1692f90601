"""snapshot: the rows that teachers learn from, so that new rows do not make teachers stale before they should."""

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from distillery.schema import Schema

SPLITS = ("train", "validation")
TARGETS = r"(target|hidden)-\d+"
OF_PARTITIONS = r"partitions|since-\d+"
BLOCK_BYTES = 1 << 24


def run(stage: Stage) -> Summary:
    """Writes `data/snapshot/{train,validation}`: what the first `retraining.snapshot` partitions brought, as prepared.

    A label that a later partition brought for an older row is left out, as later rows are. Where nothing is left out,
    files are links to the prepared ones.
    """
    from distillery.schema import Schema
    from tasks.prepare import with_scale

    last = stage.params.retraining.snapshot
    schema: Schema | None = None
    summary: Summary = {}
    for split in SPLITS:
        source, folder = stage.path(f"data/prepared/{split}"), stage.output(f"data/snapshot/{split}")
        folder.mkdir(parents=True)
        prepared = Schema.read(source / "schema.json")
        chosen = _chosen(source, prepared, last, split)
        for file in source.glob("*.npy"):
            if re.fullmatch(OF_PARTITIONS, file.stem):
                continue  # what came when is no business of a teacher
            if re.fullmatch(TARGETS, file.stem):
                _copy_target(file, folder / file.name, chosen, last)
            elif chosen.all():
                _link(file, folder / file.name)
            else:
                _copy(file, folder / file.name, chosen)
        # Mean and deviation of a number are those of these rows; training rows come first.
        schema = schema or with_scale(prepared, _targets(folder, prepared))
        schema.write(folder / "schema.json")
        summary[split] = int(chosen.sum())
    return summary


def _chosen(source: Path, schema: "Schema", last: int, split: str) -> "npt.NDArray[np.bool_]":
    """(N,) rows that were there; for validation they had a label, too."""
    import numpy as np

    chosen: npt.NDArray[np.bool_] = np.load(source / "partitions.npy") <= last
    if split != "train":
        since = [np.load(source / f"since-{at}.npy") <= last for at in range(len(schema.targets))]
        known = [schema.targets[name].known(values) for name, values in _targets(source, schema).items()]
        chosen &= np.logical_or.reduce([before & there for before, there in zip(since, known, strict=True)])
    return chosen


def _targets(folder: Path, schema: "Schema") -> "dict[str, npt.NDArray[Any]]":
    """Target name -> (N,) or (N, L) of the rows in a folder."""
    import numpy as np

    return {name: np.load(folder / f"target-{at}.npy") for at, name in enumerate(schema.targets)}


def _copy_target(source: Path, target: Path, chosen: "npt.NDArray[np.bool_]", last: int) -> None:
    """Some rows of a target, without what came later."""
    import numpy as np

    from tasks.prepare import without

    since = np.load(source.with_name(f"since-{source.stem.rpartition('-')[2]}.npy"))
    np.save(target, without(np.load(source), since > last)[chosen])


def _copy(source: Path, target: Path, chosen: "npt.NDArray[np.bool_]") -> None:
    """Some rows of an array, block by block."""
    import numpy as np

    rows, values = np.flatnonzero(chosen), np.load(source, mmap_mode="r")
    written = np.lib.format.open_memmap(target, "w+", values.dtype, (len(rows), *values.shape[1:]))
    block = max(1, BLOCK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(rows), block):
        written[start : start + block] = values[rows[start : start + block]]


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
