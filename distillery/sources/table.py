"""A Parquet or CSV file, or a folder of partitions of either."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from distillery.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from distillery.sources import Options

WHOLE_FILE = 2**30  # bytes; a larger CSV is read in blocks of this size
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}
BATCH_BYTES = 1 << 22
NOTHING = "__HIVE_DEFAULT_PARTITION__"  # a missing value in the name of a folder


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Reads the named columns, one file after another in the order of their paths.

    Folders named `column=value` add that column (Hive partitions). Hidden files and those of DVC are passed over.
    In CSV an empty field, `NA` or `null` is a missing value. `row_origin` is added: the file and row of each row.

    Raises:
        UserError: where a file is damaged, lacks a column or does not fit the others.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.dataset as ds

    from distillery.sources import require

    base = path if path.is_dir() else path.parent
    # Types follow from the first block; with the whole file in it, no late label or fraction comes as a surprise.
    csv = ds.CsvFileFormat(
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, column_types=dict.fromkeys(options.texts, pa.string())
        ),
        read_options=pyarrow.csv.ReadOptions(block_size=WHOLE_FILE),
    )
    tables = []
    for file in files_of(path):
        kind = FORMATS[file.suffix.lower()]
        form = ds.ParquetFileFormat() if kind == "parquet" else csv
        try:
            data = ds.dataset([str(file)], format=form, partitioning="hive", partition_base_dir=str(base))
            present = [name for name in columns if name in data.schema.names or name not in options.optional]
            require(present, data.schema.names, file)
            rows = _parquet(data, present) if kind == "parquet" else data.to_table(columns=present)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).split("\n", 1)[0].replace("Is this a 'csv' file?", "").strip()
            raise UserError(f"{file} cannot be read as {kind}: {reason}; mend or replace the file") from None
        for name, text in _texts_of_folders(file.relative_to(base), options.texts).items():
            column = pa.array([text] * rows.num_rows, pa.string())
            rows = rows.set_column(rows.column_names.index(name), name, column)
        numbers = pc.cast(pa.array(range(1, rows.num_rows + 1)), pa.string())
        origin = pc.binary_join_element_wise(f"{file.relative_to(base)} row", numbers, " ")
        for name in columns:
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(rows.num_rows))
        tables.append(rows.append_column("row_origin", origin))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"the files of {path} do not fit together: {error}; give each column one type") from None


def _parquet(data: "ds.FileSystemDataset", columns: Sequence[str]) -> "pa.Table":
    """Columns of one Parquet file, a batch at a time: whole row groups of images need twenty times their size."""
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    (fragment,) = data.get_fragments()
    partition = ds.get_partition_keys(fragment.partition_expression)
    stored = [name for name in columns if name not in partition]
    with pq.ParquetFile(fragment.path) as file:
        size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
        batch_rows = max(1, BATCH_BYTES * file.metadata.num_rows // max(1, size))
        batches = [batch.select(stored) for batch in file.iter_batches(batch_rows, columns=stored)]
        schema = pa.schema([file.schema_arrow.field(name) for name in stored])
    rows = pa.Table.from_batches(batches, schema)
    for name, value in partition.items():
        if name in columns:
            constant = pa.array([value], data.schema.field(name).type).take(pa.array([0] * rows.num_rows, pa.int64()))
            rows = rows.append_column(name, constant)
    return rows


def _texts_of_folders(file: Path, texts: Sequence[str]) -> dict[str, str | None]:
    """Names that stand in the names of folders, where 012 is not 12 either."""
    pairs = dict(part.split("=", 1) for part in file.parts[:-1] if "=" in part)
    return {name: None if pairs[name] == NOTHING else unquote(pairs[name]) for name in texts if name in pairs}


def files_of(path: Path) -> list[Path]:
    """The files of a table, all of one format."""
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise UserError(f"{path} must end in {', '.join(FORMATS)}; convert it, or change data.source")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; put your data there or change data.path")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix != ".dvc"
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    )
    strangers = [file for file in files if file.suffix.lower() not in FORMATS]
    if strangers:
        raise UserError(f"{strangers[0]} is neither Parquet nor CSV; remove it from {path}, or change data.source")
    if not files:
        raise UserError(f"{path} holds no Parquet or CSV file; put your data there or change data.path")
    kinds = {FORMATS[file.suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise UserError(f"{path} mixes Parquet and CSV files; keep one format")
    return files
