"""validate: the gate before anything is trained on the data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.checks.expectations import Check, conclude, examine
from tasks.checks.targets import SPLITS, class_names, extended, of_targets, with_figures
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import pandas as pd

    from distillery.schema import Input, Schema
    from tasks.params.sections import Validation

NUMERIC = "numeric"  # the input that all scalar columns make together
BATCH_BYTES = 1 << 22
# Expectations that a row meets or fails, by the first words of Great Expectations' names.
OF_ROWS = (
    "expect_column_values_",
    "expect_column_value_lengths_",
    "expect_column_pair_values_",
    "expect_multicolumn_",
    "expect_select_column_values_",
)
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
    files = [stage.path("data/table/rows.parquet"), stage.path("data/table/test.parquet")]
    frame = read_frame(files, schema, validation)
    checks = suite(frame, schema, validation)
    outcomes = examine(frame, checks, suite="data", docs=stage.path("reports/data_docs"))
    conclude(stage, "validation", outcomes, _counts(frame, schema, validation))
    return {"rows": len(frame), "expectations": len(outcomes)}


def suite(frame: "pd.DataFrame", schema: "Schema", validation: "Validation", *, whole: bool = True) -> list[Check]:
    """The expectations that schema and parameters imply, then the user's own.

    Args:
        frame: of `read_frame`.
        schema: of the table.
        validation: the parameters.
        whole: the frame is all there is; else it is a batch, of which nothing is asked that a part need not have: every
            class, labels in every split, what the user expects of the rows together.
    """
    from distillery.targets import column_of

    columns = [column_of(name, schema.targets) for name in schema.targets]
    table = ["id", "content", "split", *columns, *_numbers(schema)]
    checks = [
        Check(
            "expect_table_columns_to_match_set",
            {"column_set": table, "exact_match": False},
            "columns are missing; run `python -m flows run ingest --force`",
        ),
        *(_type(column, "str") for column in ("id", "content", "split")),
        *(_type(column, "float32") for column in _numbers(schema)),
        Check("expect_column_values_to_not_be_null", {"column": "id"}, "a row has no id"),
        Check(
            "expect_column_values_to_be_in_set",
            {"column": "split", "value_set": SPLITS},
            "a row belongs to no known split",
        ),
        *of_targets(schema, validation, whole=whole),
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
        if spec.kind == "image":
            checks += _image(name, spec)
        elif name == NUMERIC:
            checks += _numeric(frame[list(spec.columns)])
        else:
            checks += _vector(name)
    return [*checks, *(own for own in own_checks(validation) if whole or own.type.startswith(OF_ROWS))]


def own_checks(validation: "Validation") -> list[Check]:
    """The user's own expectations."""
    return [
        Check(own.type, own.arguments, key=f"validation.expectations[{number}]")
        for number, own in enumerate(validation.expectations)
    ]


def read_frame(files: list[Path], schema: "Schema", validation: "Validation") -> "pd.DataFrame":
    """All rows with scalar columns only; images and vectors are summed up batch by batch.

    Columns: `id`, `row_origin`, `content`, `split`, `group` if there is one, every target, every number, and what the
    suite looks at: see `tasks.checks.targets.with_figures`; `content.splits`, `group.splits`, `numeric.missing`,
    `numeric.infinite`, the same for each vector, and for each image `.shape`, `.min`, `.max`, `.contrast`.
    """
    import numpy as np
    import pandas as pd

    frame = pd.concat([_read(file, schema) for file in files], ignore_index=True)
    own = {}
    for column in ("content", "group"):
        if column in frame:
            own[f"{column}.splits"] = frame.groupby(column)["split"].transform("nunique")
    if numbers := _numbers(schema):
        values = frame[numbers].to_numpy(np.float32)
        own["numeric.missing"] = np.isnan(values).sum(axis=1)
        own["numeric.infinite"] = np.isinf(values).sum(axis=1)
    return with_figures(extended(frame, own), schema, validation)


def _numbers(schema: "Schema") -> list[str]:
    """The scalar columns."""
    return list(schema.inputs[NUMERIC].columns) if NUMERIC in schema.inputs else []


def _read(file: Path, schema: "Schema") -> "pd.DataFrame":
    """The scalar columns of one file, and what can be said about its images."""
    import numpy as np
    import pandas as pd
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from distillery.table import pixels, vectors
    from distillery.targets import SEPARATOR, column_of

    images = {name: spec for name, spec in schema.inputs.items() if spec.kind == "image"}
    wide = {name: spec for name, spec in schema.inputs.items() if name not in (*images, NUMERIC)}
    targets = {column_of(name, schema.targets): spec for name, spec in schema.targets.items()}
    bytes_per_row = sum(int(np.prod(spec.shape)) * (4 if name in wide else 1) for name, spec in (images | wide).items())
    pieces: dict[str, list[Any]] = {f"{name}.{what}": [] for name in images for what in ("min", "max")}
    pieces |= {f"{name}.{what}": [] for name in wide for what in ("missing", "infinite")}
    with pq.ParquetFile(file) as table:
        wanted = ("id", "row_origin", "content", "split", "group", *targets, *_numbers(schema))
        names = [name for name in wanted if name in table.schema_arrow.names]
        shapes = {name: "x".join(map(str, table.schema_arrow.field(name).type.shape)) for name in images}
        blocks = table.iter_batches(max(1, BATCH_BYTES // max(1, bytes_per_row)), columns=[*images, *wide])
        for batch in blocks if images or wide else ():
            for name in wide:
                pieces[f"{name}.missing"].append(np.isnan(vectors(batch[name])).sum(axis=1))
                pieces[f"{name}.infinite"].append(np.isinf(vectors(batch[name])).sum(axis=1))
            for name in images:
                flat = pixels(batch[name]).reshape(len(batch), -1)
                pieces[f"{name}.min"].append(flat.min(axis=1).astype(np.int64))
                pieces[f"{name}.max"].append(flat.max(axis=1).astype(np.int64))
    rows = pq.read_table(file, columns=names)
    for name, target in targets.items():
        if target.kind == "labels":  # a list is no value that an expectation can look at
            rows = rows.set_column(names.index(name), name, pc.binary_join(rows[name], SEPARATOR))
    frame: pd.DataFrame = rows.to_pandas()
    own: dict[str, Any] = {key: np.concatenate(values) if values else [] for key, values in pieces.items()}
    for name, shape in shapes.items():
        own[f"{name}.contrast"] = np.subtract(own[f"{name}.max"], own[f"{name}.min"])
        own[f"{name}.shape"] = pd.Series([shape] * len(frame), dtype="str")
    return extended(frame, own)


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


def _vector(name: str) -> list[Check]:
    """What must hold for the numbers of a vector."""
    return [
        Check(
            "expect_column_values_to_be_between",
            {"column": f"{name}.{what}", "max_value": 0},
            f"the vector {name} has {what} values; correct or remove the rows",
        )
        for what in ("missing", "infinite")
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


def _counts(frame: "pd.DataFrame", schema: "Schema", validation: "Validation") -> dict[str, Any]:
    """Rows, rows of which a target is known, and labelled rows of each class of the first target, in each split."""
    from distillery.targets import column_of

    columns = {name: column_of(name, schema.targets) for name in schema.targets}
    first = schema.targets[schema.target]
    splits = {}
    for split in SPLITS:
        rows = frame[frame["split"] == split]
        classes: dict[str, int] = {}
        if first.kind == "classes":
            labels = rows[columns[schema.target]].value_counts()
            known = class_names(schema.target, schema, validation)
            classes = {name: int(labels.get(name, 0)) for name in [*known, *sorted(set(labels.index) - set(known))]}
        splits[split] = {
            "rows": len(rows),
            "labelled": int(rows[list(columns.values())].notna().any(axis=1).sum()),
            "classes": classes,
        }
    return {"splits": splits}
