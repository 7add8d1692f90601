"""A batch by itself: is it sound, what of it is new, and has something drifted?"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError
from tasks.params import Params

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.drift import Drift
    from distillery.schema import Schema
    from tasks.checks.expectations import Outcome

TABLE = Path("data") / "table"


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        rows: of the batch.
        new: rows whose inputs were not known.
        labels: of known rows, that were missing.
        problems: why it cannot be taken in; none: it can.
        drift: of the new rows against the present ones.
    """

    rows: int = 0
    new: int = 0
    labels: int = 0
    problems: tuple[str, ...] = ()
    drift: "tuple[Drift, ...]" = ()


def judge(root: Path, params: Params, files: Path, number: int, docs: Path) -> Verdict:
    """Reads a batch as `ingest` would, and holds it against the table as it is.

    Args:
        root: the project's folder, with an up-to-date table.
        params: how data are read and what they must show.
        files: the folder of the batch.
        number: that its partition would have.
        docs: folder for Great Expectations' pages.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from distillery import drift, partitions, table, targets
    from distillery.schema import Schema
    from distillery.sources import Options

    schema = Schema.read(root / TABLE / "schema.json")
    columns, duplicates = params.data.columns, params.ingest.duplicates
    roles = table.Roles(columns.inputs, columns.targets, columns.key, columns.group, columns.split)
    options = Options(params.ingest.image_size, params.ingest.image_mode, roles.names)
    count = 0
    try:
        raw = partitions.read(files, roles, options)
        count = raw.num_rows
        rows, inputs = table.rows_of(raw, roles, table.Shares(**params.data.split.model_dump()), number)
        if inputs != schema.inputs:
            raise UserError(f"its inputs are {table.told(inputs)}, those of the table {table.told(schema.inputs)}")
        rows = table.joined([rows], roles, duplicates=duplicates)
        failed = _failed(root, rows, schema, params, docs)
        names = [name for name in rows.column_names if name not in roles.inputs]
        present = [pq.read_table(root / TABLE / f"{name}.parquet", columns=names) for name in ("rows", "test")]
        after = table.joined([*present, rows.select(names)], roles, duplicates="refuse")
        _check_groups(after)
    except (UserError, pa.ArrowException, ValueError) as error:
        # Whatever cannot be read stays out; a batch that nobody foresaw must not stop those behind it.
        return Verdict(count, problems=(str(error).replace(f"{files}/", "").replace(str(files), "the batch"),))
    if failed:
        return Verdict(count, problems=tuple(map(_sentence, failed)))
    is_new = pc.equal(after["partition"], number)
    brought = [pc.equal(after[table.since(targets.column_of(name, roles.targets))], number) for name in roles.targets]
    fresh = rows.filter(pc.is_in(rows["content"], after.filter(is_new)["content"].combine_chunks()))
    late = pc.and_(functools.reduce(pc.or_, brought), pc.invert(is_new))
    limits = params.retraining.drift
    found = []
    if fresh.num_rows:
        before = pq.read_table(root / TABLE / "rows.parquet")
        found = drift.measure(before, fresh, schema, level=limits.level, effect=limits.effect)
    return Verdict(count, fresh.num_rows, pc.sum(late).as_py() or 0, drift=tuple(found))


def _failed(root: Path, rows: "pa.Table", schema: "Schema", params: Params, docs: Path) -> "list[Outcome]":
    """The expectations that the batch alone does not meet; the user's own are asked of the table with it, too."""
    import pyarrow.parquet as pq

    from tasks.checks.expectations import examine
    from tasks.validate import own_checks, read_frame, suite

    docs.mkdir(parents=True, exist_ok=True)
    file = docs / "batch.parquet"
    pq.write_table(rows, file)
    try:
        frame = read_frame([file], schema, params.validation)
        outcomes = examine(frame, suite(frame, schema, params.validation, whole=False), suite="batch", docs=docs)
        if together := own_checks(params.validation):
            present = [root / TABLE / f"{name}.parquet" for name in ("rows", "test")]
            whole = read_frame([*present, file], schema, params.validation).drop_duplicates("content")
            outcomes += examine(whole, together, suite="together", docs=docs)
    finally:
        file.unlink()
    return [outcome for outcome in outcomes if not outcome.success]


def _sentence(outcome: "Outcome") -> str:
    """A failed expectation in words, with an example."""
    said = outcome.check.message or f"{outcome.check.key}: {outcome.check.type} fails, observed {outcome.observed}"
    if outcome.failing_count:
        said += f" ({outcome.failing_count} rows"
        for example in outcome.examples[:1]:
            said += f", first {example['row_origin']}: {example['value']}"
        said += ")"
    return said


def _check_groups(rows: "pa.Table") -> None:
    """Refuses rows whose group stands in another split already.

    Raises:
        UserError: naming the group.
    """
    import pyarrow.compute as pc

    if "group" not in rows.column_names:
        return
    splits = rows.group_by("group").aggregate([("split", "count_distinct")])
    torn = splits.filter(pc.greater(splits["split_count_distinct"], 1))["group"]
    if len(torn):
        raise UserError(f"group {torn[0]} stands in two splits ({len(torn)} such groups): correct the split column")
