"""validate: the gate before anything is trained on the data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery.errors import UserError
from tasks.expectations import Check, conclude, examine
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import pandas as pd

    from distillery.schema import Input, Schema
    from tasks.params import Validation

SPLITS = ["train", "validation", "test"]
BATCH_BYTES = 1 << 22
MOST_COLUMNS = 10


def run(stage: Stage) -> Summary:
    """Checks the table against a suite made of schema and parameters; writes `reports/validation.json`.

    Beside it, for reading only: Data Docs, and what a failed run found in `reports/failed`.

    Raises:
        UserError: where the data fail, or an expectation of the user's is none.
    """
    from distillery.schema import Schema

    validation = stage.params.validation
    schema = Schema.read(stage.path("data/table/schema.json"))
    classes = list(validation.classes or schema.classes)
    files = [stage.path("data/table/rows.parquet"), stage.path("data/table/test.parquet")]
    frame = read_frame(files, schema, classes)
    checks = suite(frame, schema, classes, validation)
    outcomes = examine(frame, checks, suite="data", docs=stage.path("reports/data_docs"))
    conclude(stage, "validation", outcomes, _counts(frame, classes))
    return {"rows": len(frame), "expectations": len(outcomes), "classes": len(classes)}


def suite(frame: "pd.DataFrame", schema: "Schema", classes: list[str], validation: "Validation") -> list[Check]:
    """The expectations that schema and parameters imply, then the user's own."""
    least = validation.min_rows_per_class
    table = ["id", "content", "split", "target", *_numbers(schema)]
    checks = [
        Check(
            "expect_table_columns_to_match_set",
            {"column_set": table, "exact_match": False},
            "columns are missing; run `python -m flows run ingest --force`",
        ),
        *(_type(column, "str") for column in ("id", "content", "split", "target")),
        *(_type(column, "float32") for column in _numbers(schema)),
        Check("expect_column_values_to_not_be_null", {"column": "id"}, "a row has no id"),
        Check(
            "expect_column_values_to_be_in_set",
            {"column": "split", "value_set": SPLITS},
            "a row belongs to no known split",
        ),
        Check(
            "expect_column_distinct_values_to_contain_set",
            {"column": "labelled.split", "value_set": SPLITS},
            "every split needs labelled rows; add rows, or change data.split",
        ),
        Check(
            "expect_column_values_to_be_in_set",
            {"column": "target", "value_set": classes},
            "the label is none of the classes; correct it, or name all classes in validation.classes",
        ),
        Check(
            "expect_column_unique_value_count_to_be_between",
            {"column": "train.target", "min_value": 2},
            "training needs at least two classes",
        ),
        Check(
            "expect_column_distinct_values_to_contain_set",
            {"column": "train.target", "value_set": classes},
            "a class has no labelled training row; add some, or correct validation.classes",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "class.rows", "min_value": least},
            f"the row's class has fewer than {least} labelled training rows; add some, or lower "
            "validation.min_rows_per_class",
        ),
        Check(
            "expect_column_values_to_be_unique",
            {"column": "content"},
            "another row has the same inputs; remove one, or set ingest.duplicates: drop",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "content.splits", "max_value": 1},
            "the same inputs stand in two splits, which makes the measured accuracy too good; remove one",
        ),
    ]
    if "group" in frame:
        checks.append(
            Check(
                "expect_column_values_to_be_between",
                {"column": "group.splits", "max_value": 1},
                "the row's group stands in two splits; correct the split column",
            )
        )
    for name, spec in schema.inputs.items():
        checks += _image(name, spec) if spec.kind == "image" else _numeric(frame[list(spec.columns)])
    checks += [
        Check(own.type, own.arguments, key=f"validation.expectations[{number}]")
        for number, own in enumerate(validation.expectations)
    ]
    return checks


def read_frame(files: list[Path], schema: "Schema", classes: list[str]) -> "pd.DataFrame":
    """All rows with scalar columns only; images are summed up batch by batch.

    Columns: `id`, `row_origin`, `content`, `split`, `group` if there is one, `target` (and the same under the user's
    name), every number, and what the suite looks at: `labelled.split` and `train.target` (null where unlabelled),
    `class.rows`, `content.splits`, `group.splits`, `numeric.missing`, `numeric.infinite`, and for each image
    `.shape`, `.min`, `.max`, `.contrast`.
    """
    import numpy as np
    import pandas as pd

    frame = pd.concat([_read(file, schema) for file in files], ignore_index=True)
    labelled = frame["target"].notna()
    in_training = frame["target"].where((frame["split"] == "train") & frame["target"].isin(classes))
    own = {
        "labelled.split": frame["split"].where(labelled),
        "train.target": in_training,
        "class.rows": in_training.groupby(in_training).transform("size"),
    }
    for column in ("content", "group"):
        if column in frame:
            own[f"{column}.splits"] = frame.groupby(column)["split"].transform("nunique")
    if numbers := _numbers(schema):
        values = frame[numbers].to_numpy(np.float32)
        own["numeric.missing"] = np.isnan(values).sum(axis=1)
        own["numeric.infinite"] = np.isinf(values).sum(axis=1)
    clash = sorted(set(own) & set(frame))
    if clash:
        raise UserError(f"data.columns.inputs: {clash[0]!r} is a column of the program's own; rename yours")
    if schema.target not in frame:
        own[schema.target] = frame["target"]
    return frame.assign(**own)


def _numbers(schema: "Schema") -> list[str]:
    """The scalar columns."""
    return [column for spec in schema.inputs.values() if spec.kind == "numeric" for column in spec.columns]


def _read(file: Path, schema: "Schema") -> "pd.DataFrame":
    """The scalar columns of one file, and what can be said about its images."""
    import numpy as np
    import pandas as pd
    import pyarrow.parquet as pq

    from distillery.table import RESERVED, pixels

    images = {name: spec for name, spec in schema.inputs.items() if spec.kind == "image"}
    bytes_per_row = sum(int(np.prod(spec.shape)) for spec in images.values()) or 1
    pieces: dict[str, list[Any]] = {f"{name}.{what}": [] for name in images for what in ("min", "max")}
    with pq.ParquetFile(file) as table:
        names = [name for name in (*RESERVED, *_numbers(schema)) if name in table.schema_arrow.names]
        shapes = {name: "x".join(map(str, table.schema_arrow.field(name).type.shape)) for name in images}
        for batch in table.iter_batches(max(1, BATCH_BYTES // bytes_per_row), columns=list(images)) if images else ():
            for name in images:
                flat = pixels(batch[name]).reshape(len(batch), -1)
                pieces[f"{name}.min"].append(flat.min(axis=1).astype(np.int64))
                pieces[f"{name}.max"].append(flat.max(axis=1).astype(np.int64))
    frame: pd.DataFrame = pq.read_table(file, columns=names).to_pandas()
    own: dict[str, Any] = {key: np.concatenate(values) if values else [] for key, values in pieces.items()}
    for name, shape in shapes.items():
        own[f"{name}.contrast"] = np.subtract(own[f"{name}.max"], own[f"{name}.min"])
        own[f"{name}.shape"] = pd.Series([shape] * len(frame), dtype="str")
    clash = sorted(set(own) & set(frame))
    if clash:
        raise UserError(f"data.columns.inputs: {clash[0]!r} is a column of the program's own; rename yours")
    return frame.assign(**own)


def _type(column: str, kind: str) -> Check:
    """A column has its type."""
    return Check(
        "expect_column_values_to_be_of_type",
        {"column": column, "type_": kind},
        f"the column must be {kind}; run `python -m flows run ingest --force`",
    )


def _numeric(values: "pd.DataFrame") -> list[Check]:
    """What must hold for the numbers of a row, whatever their count: two checks, not two for each column."""
    import numpy as np

    missing = _worst(values.isna().sum())
    infinite = _worst(np.isinf(values).sum())
    return [
        Check(
            "expect_column_values_to_be_between",
            {"column": "numeric.missing", "max_value": 0},
            f"missing or NaN values in {missing}; fill or remove the rows",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "numeric.infinite", "max_value": 0},
            f"infinite values, or beyond float32, in {infinite}; correct or remove the rows",
        ),
    ]


def _worst(counts: "pd.Series[int]") -> str:
    """The columns concerned, most affected first."""
    concerned = counts[counts > 0].sort_values(ascending=False, kind="stable")
    names = [f"{name} ({count} rows)" for name, count in concerned.head(MOST_COLUMNS).items()]
    return ", ".join([*names, *(["..."] if len(concerned) > MOST_COLUMNS else [])]) or "no column"


def _image(name: str, spec: "Input") -> list[Check]:
    """What must hold for an image."""
    shape = "x".join(map(str, spec.shape))
    plane = "x".join(map(str, spec.shape[1:]))
    return [
        Check(
            "expect_column_values_to_be_in_set",
            # A plane without channels is read as one channel.
            {"column": f"{name}.shape", "value_set": [shape, plane] if spec.shape[0] == 1 else [shape]},
            f"the image is not {shape}; run `python -m flows run ingest --force`",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": f"{name}.min", "min_value": 0},
            "pixels must lie in 0 to 255",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": f"{name}.max", "max_value": 255},
            "pixels must lie in 0 to 255",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": f"{name}.contrast", "min_value": 1},
            "all pixels of the image are equal; replace or remove it",
        ),
    ]


def _counts(frame: "pd.DataFrame", classes: list[str]) -> dict[str, Any]:
    """Rows, labelled rows and labelled rows of each class in each split."""
    splits = {}
    for split in SPLITS:
        rows = frame[frame["split"] == split]
        labels = rows["target"].value_counts()
        names = [*classes, *sorted(set(labels.index) - set(classes))]
        splits[split] = {
            "rows": len(rows),
            "labelled": int(labels.sum()),
            "classes": {name: int(labels.get(name, 0)) for name in names},
        }
    return {"splits": splits}
