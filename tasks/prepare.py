"""prepare: turns the table into memory-mapped columns, and hides labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distillery.errors import UserError
from distillery.schema import UNLABELLED
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from distillery.schema import Schema

FILES = {"train": "rows", "validation": "rows", "test": "test"}
BATCH_BYTES = 1 << 22


def run(stage: Stage) -> Summary:
    """Writes `data/prepared/{train,validation,test}`, rows in the table's order.

    Of the training rows of `data.path` `data.labelled` keep their label, spread over the classes; the others become
    unlabelled for everybody. Labels that arrived later stay, so that new rows hide none of the old ones. Rows of
    validation and test without a label are left out: nothing can be measured on them.

    Raises:
        UserError: where `data.labelled` asks for more labels than there are.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distillery import targets
    from distillery.schema import Schema
    from distillery.table import hash64, since

    schema = Schema.read(stage.path("data/table/schema.json"))
    columns = {name: targets.column_of(name, schema.targets) for name in schema.targets}
    heads = {
        name: pq.read_table(
            stage.path(f"data/table/{name}.parquet"),
            columns=["id", "content", "partition", "split", *columns.values(), *map(since, columns.values())],
        )
        for name in dict.fromkeys(FILES.values())
    }
    summary: Summary = {}
    for split, name in FILES.items():
        head = heads[name]
        chosen = head["split"].to_numpy() == split
        known = {target: targets.values(head[columns[target]], spec) for target, spec in schema.targets.items()}
        keys = hash64(head["id"])
        brought = {target: head[since(columns[target])].to_numpy() for target in schema.targets}
        any_known = np.logical_or.reduce([spec.known(known[target]) for target, spec in schema.targets.items()])
        if split == "train":
            rows = np.flatnonzero(chosen)
            _check_number(stage.params.data.labelled, schema)
            original = {target: without(values, brought[target] > 0) for target, values in known.items()}
            strata = _strata(schema, original)
            kept = keep_labels(strata, keys, rows, stage.params.data.labelled, int(strata.max()) + 1)
            hidden = [values[chosen] for values in known.values()]
            known = {
                target: without(values, ~chosen | (~kept & (brought[target] == 0))) for target, values in known.items()
            }
            schema = with_scale(schema, known)
            left = [spec.known(known[target][chosen]) for target, spec in schema.targets.items()]
            summary |= {"labelled": int(np.logical_or.reduce(left).sum())}
        else:
            unlabelled = chosen & ~any_known
            if unlabelled.any():
                stage.progress.say(f"prepare: {unlabelled.sum()} {split} rows without a label are left out")
            chosen &= any_known
        folder = stage.output(f"data/prepared/{split}")
        folder.mkdir(parents=True)
        schema.write(folder / "schema.json")
        np.save(folder / "keys.npy", keys[chosen])
        np.save(folder / "contents.npy", hash64(head["content"].filter(pa.array(chosen))))
        np.save(folder / "partitions.npy", head["partition"].to_numpy()[chosen])
        for at, (target, values) in enumerate(known.items()):
            np.save(folder / f"target-{at}.npy", values[chosen])
            np.save(folder / f"since-{at}.npy", brought[target][chosen])
        if split == "train":
            for at, values in enumerate(hidden):
                np.save(folder / f"hidden-{at}.npy", values)
        _write_inputs(stage.path(f"data/table/{name}.parquet"), chosen, schema, folder)
        summary[split] = int(chosen.sum())
    return summary


def _check_number(labelled: int | Literal["all"], schema: "Schema") -> None:
    """Tells now what would fail when a model is asked for a class that nobody has shown it.

    Raises:
        UserError: where there are fewer labels than classes.
    """
    first = schema.targets[schema.target]
    if labelled != "all" and first.kind == "classes" and labelled < first.width:
        raise UserError(f"data.labelled: {labelled} labels cannot show all {first.width} classes; raise it")


def without(values: "npt.NDArray[Any]", unknown: "npt.NDArray[np.bool_]") -> "npt.NDArray[Any]":
    """A target's values with some taken away."""
    import numpy as np

    left = values.copy()
    left[unknown] = UNLABELLED if values.dtype == np.int64 else np.nan
    return left


def _strata(schema: "Schema", known: "Mapping[str, npt.NDArray[Any]]") -> "npt.NDArray[np.int64]":
    """(N,) groups over which the labels that stay are spread: the classes of the first target, where it has some.

    A row of which only other targets are known forms a group with its like; -1 where nothing is known.
    """
    import numpy as np

    first = schema.targets[schema.target]
    any_known = np.logical_or.reduce([spec.known(known[target]) for target, spec in schema.targets.items()])
    if first.kind == "classes":
        number = known[schema.target]
        return np.where(number != UNLABELLED, number, np.where(any_known, first.width, UNLABELLED))
    return np.where(any_known, 0, UNLABELLED)


def with_scale(schema: "Schema", known: "Mapping[str, npt.NDArray[Any]]") -> "Schema":
    """The schema with mean and deviation of every number over the labelled training rows.

    Raises:
        UserError: where they are all equal, or there is none.
    """
    import numpy as np

    scaled = {}
    for name, target in schema.targets.items():
        if target.kind == "number":
            values = known[name][~np.isnan(known[name])].astype(np.float64)
            if len(values) == 0 or values.min() == values.max():
                what = f"are all {values[0]:g}" if len(values) else "are all unknown"
                raise UserError(
                    f"target {name!r}: the labelled training rows {what}, so there is nothing to learn; raise "
                    "data.labelled, or take it out of data.columns.target"
                )
            target = target.model_copy(update={"mean": float(values.mean()), "deviation": float(values.std())})  # noqa: PLW2901
        scaled[name] = target
    return schema.model_copy(update={"targets": scaled})


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
        target: (N,) class numbers (or other groups), -1 where unlabelled.
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


def _write_inputs(file: Path, chosen: "npt.NDArray[np.bool_]", schema: "Schema", folder: Path) -> None:
    """Streams the inputs of the chosen rows into one array file each; memory stays flat."""
    import numpy as np
    import pyarrow.parquet as pq

    from distillery.table import values

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
                arrays[name][written:end] = values(batch, spec)[here]
            read, written = read + len(batch), end
