"""prepare: turns the table into memory-mapped columns, and hides labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillery.errors import UserError
from distillery.schema import UNLABELLED
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from distillery.schema import Input, Schema

FILES = {"train": "rows", "validation": "rows", "test": "test"}
BATCH_BYTES = 1 << 22


def run(stage: Stage) -> Summary:
    """Writes `data/prepared/{train,validation,test}`, rows in the table's order.

    `data.labelled` training rows keep their label, spread over the classes; the others become unlabelled for
    everybody. Rows of validation and test without a label are left out: nothing can be measured on them.

    Raises:
        UserError: where `data.labelled` asks for more labels than there are.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from distillery.schema import Schema
    from distillery.table import hash64

    schema = Schema.read(stage.path("data/table/schema.json"))
    summary: Summary = {}
    for split, name in FILES.items():
        file = stage.path(f"data/table/{name}.parquet")
        head = pq.read_table(file, columns=["id", "split", "target"])
        chosen = head["split"].to_numpy() == split
        target = _class_numbers(head["target"], schema.classes)
        keys = hash64(head["id"])
        if split == "train":
            rows = np.flatnonzero(chosen)
            target = np.where(
                keep_labels(target, keys, rows, stage.params.data.labelled, len(schema.classes)), target, UNLABELLED
            )
            summary |= {"labelled": int((target[rows] != UNLABELLED).sum())}
        else:
            unlabelled = chosen & (target == UNLABELLED)
            if unlabelled.any():
                stage.progress.say(f"prepare: {unlabelled.sum()} {split} rows without a label are left out")
            chosen &= ~unlabelled
        folder = stage.output(f"data/prepared/{split}")
        folder.mkdir(parents=True)
        schema.write(folder / "schema.json")
        np.save(folder / "keys.npy", keys[chosen])
        np.save(folder / "target-0.npy", target[chosen])
        _write_inputs(file, chosen, schema, folder)
        summary[split] = int(chosen.sum())
    return summary


def keep_labels(
    target: "npt.NDArray[np.int64]",
    keys: "npt.NDArray[np.uint64]",
    rows: "npt.NDArray[np.int64]",
    labelled: int | Literal["all"],
    classes: int,
) -> "npt.NDArray[np.bool_]":
    """Chooses the training rows that keep their label.

    Classes share the labels in proportion to their rows (largest remainder), at least one each where there are
    enough; within a class the smallest hashes of the id win, so a choice stays when other rows come.

    Args:
        target: (N,) class numbers, -1 where unlabelled.
        keys: (N,) hashes of the ids.
        rows: numbers of the training rows.
        labelled: how many labels to keep.
        classes: the number of classes.

    Returns:
        (N,) true where the label stays.

    Raises:
        UserError: where there are fewer labels than asked for.
    """
    import numpy as np

    candidates = rows[target[rows] != UNLABELLED]
    keep = np.zeros(len(target), bool)
    if labelled == "all":
        keep[candidates] = True
        return keep
    counts = np.bincount(target[candidates], minlength=classes)
    if labelled > counts.sum():
        raise UserError(
            f"data.labelled: {labelled} is more than the {counts.sum()} labelled training rows; lower it, or say all"
        )
    shares = _shares(counts, labelled)
    # Sorted by class, then by hash: each class's winners are the head of its run.
    order = candidates[np.lexsort((keys[candidates], target[candidates]))]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep[order[rank < np.repeat(shares, counts)]] = True
    return keep


def _shares(counts: "npt.NDArray[np.int64]", total: int) -> "npt.NDArray[np.int64]":
    """Divides `total` in proportion to `counts`: largest remainder, one each first where it goes round."""
    import numpy as np

    floor = np.minimum(counts, 1) if total >= np.count_nonzero(counts) else np.zeros_like(counts)
    exact = counts * (total / max(1, counts.sum()))
    shares: npt.NDArray[np.int64] = np.maximum(np.floor(exact).astype(np.int64), floor)
    # The guaranteed ones may overshoot: the largest classes pay.
    while shares.sum() > total:
        shares[np.argmax(np.where(shares > floor, shares - exact, -np.inf))] -= 1
    remaining = total - shares.sum()
    order = np.argsort(-(exact - shares), kind="stable")
    order = order[counts[order] > shares[order]]
    shares[order[:remaining]] += 1
    return shares


def _class_numbers(labels: "pa.ChunkedArray", classes: tuple[str, ...]) -> "npt.NDArray[np.int64]":
    """(N,) class numbers, -1 where there is no label."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    numbers: npt.NDArray[np.int64] = pc.cast(pc.fill_null(found, UNLABELLED), pa.int64()).to_numpy()
    return numbers


def _write_inputs(file: Path, chosen: "npt.NDArray[np.bool_]", schema: "Schema", folder: Path) -> None:
    """Streams the inputs of the chosen rows into one array file each; memory stays flat."""
    import numpy as np
    import pyarrow.parquet as pq

    count = int(chosen.sum())
    arrays = {}
    for name, spec in schema.inputs.items():
        shape = (count, *spec.shape)
        if count:
            arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(spec.dtype), shape)
        else:  # nothing can be mapped in an empty file
            np.save(folder / f"{name}.npy", np.empty(shape, spec.dtype))
    if not count:
        return
    columns = [column for spec in schema.inputs.values() for column in spec.columns]
    bytes_per_row = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in schema.inputs.values())
    read, written = 0, 0
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(max(1, BATCH_BYTES // bytes_per_row), columns=columns):
            here = chosen[read : read + len(batch)]
            end = written + int(here.sum())
            for name, spec in schema.inputs.items():
                arrays[name][written:end] = _values(batch, spec)[here]
            read, written = read + len(batch), end


def _values(batch: "pa.RecordBatch", spec: "Input") -> "npt.NDArray[np.generic]":
    """(B, *shape) of one input."""
    import numpy as np

    from distillery.table import numbers, pixels

    if spec.kind == "image":
        return pixels(batch[spec.columns[0]])
    return np.stack([numbers(batch[column]) for column in spec.columns], axis=1)
