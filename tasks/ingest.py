"""ingest: reads the user's data into one table with an id and a split for each row."""

import functools
from typing import TYPE_CHECKING

from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

ROW_GROUP_BYTES = 1 << 23


def run(stage: Stage) -> Summary:
    """Writes `data/table`: rows of the training and validation splits, those of the test split, and the schema.

    Raises:
        UserError: where the source cannot be read, or a column cannot have the role it is given.
    """
    import pyarrow.compute as pc

    from distillery import partitions, table, targets
    from distillery.sources import Options, load

    data, ingest = stage.params.data, stage.params.ingest
    columns = data.columns
    roles = table.Roles(columns.inputs, columns.targets, columns.key, columns.group, columns.split)
    options = Options(ingest.image_size, ingest.image_mode, roles.names, stage.progress.track)
    arrived = partitions.found(stage.path("data/partitions"))
    parts = {0: load(data.source, stage.path(data.path), roles.columns, options)}
    parts |= {each.number: _named(partitions.read(each.folder, roles, options), each.name) for each in arrived}
    shares = table.Shares(**data.split.model_dump())
    rows, schema = table.build(parts, roles, shares, duplicates=ingest.duplicates)
    in_test = pc.equal(rows["split"], "test")
    _write(rows.filter(pc.invert(in_test)), stage.output("data/table/rows.parquet"))
    _write(rows.filter(in_test), stage.output("data/table/test.parquet"))
    schema.write(stage.output("data/table/schema.json"))
    counts = {split: pc.sum(pc.equal(rows["split"], split)).as_py() for split in table.SPLITS}
    dropped = sum(part.num_rows for part in parts.values()) - rows.num_rows
    if dropped:
        stage.progress.say(f"ingest: {dropped} copies of other rows were dropped")
    unknown = [rows[targets.column_of(name, schema.targets)].is_null() for name in schema.targets]
    return {
        "rows": rows.num_rows,
        **counts,
        "labelled": rows.num_rows - pc.sum(functools.reduce(pc.and_, unknown)).as_py(),
        "outputs": schema.outputs,
        "dropped": dropped,
        "partitions": len(arrived),
    }


def _named(raw: "pa.Table", partition: str) -> "pa.Table":
    """Rows whose origin tells the partition."""
    import pyarrow.compute as pc

    origin = pc.binary_join_element_wise(f"{partition}:", pc.cast(raw["row_origin"], "string"), " ")
    return raw.set_column(raw.column_names.index("row_origin"), "row_origin", origin)


def _write(rows: "pa.Table", file: "Path") -> None:
    """Writes Parquet in row groups that a later stage can hold one at a time."""
    import pyarrow.parquet as pq

    bytes_per_row = max(1, rows.nbytes // max(1, rows.num_rows))
    pq.write_table(rows, file, row_group_size=max(1, ROW_GROUP_BYTES // bytes_per_row), compression="zstd")
