"""What the targets of a table must show before anything is trained on them."""

from typing import TYPE_CHECKING, Any

from distillery.errors import UserError
from tasks.checks.expectations import Check

if TYPE_CHECKING:
    import pandas as pd

    from distillery.schema import Schema, Target
    from tasks.params.sections import Validation

SPLITS = ["train", "validation", "test"]


def with_figures(frame: "pd.DataFrame", schema: "Schema", validation: "Validation") -> "pd.DataFrame":
    """Adds what the checks look at, and every target under the user's own name.

    For each target `labelled.split` (null where unlabelled); of classes `train.target` (null where unlabelled or
    strange) and `class.rows`; of labels `unknown.labels`, how many a row has that no training row has; of a number
    `infinite.target`. With several targets their names stand behind.
    """
    import numpy as np

    from distillery.targets import SEPARATOR, column_of

    own: dict[str, Any] = {}
    for name, spec in schema.targets.items():
        values = frame[column_of(name, schema.targets)]
        own[_column("labelled.split", name, schema)] = frame["split"].where(values.notna())
        if spec.kind == "classes":
            allowed = (frame["split"] == "train") & values.isin(class_names(name, schema, validation))
            training = values.where(allowed)
            own[_column("train.target", name, schema)] = training
            own[_column("class.rows", name, schema)] = training.groupby(training).transform("size")
        elif spec.kind == "labels":
            known = {*spec.names, ""}
            own[_column("unknown.labels", name, schema)] = [
                len(set(text.split(SEPARATOR)) - known) if isinstance(text, str) else 0 for text in values
            ]
        else:
            own[_column("infinite.target", name, schema)] = (
                values.astype(float).abs() > np.finfo(np.float32).max
            ).astype(int)
        if name not in frame:
            own[name] = values
    return extended(frame, own)


def extended(frame: "pd.DataFrame", own: dict[str, Any]) -> "pd.DataFrame":
    """The frame with columns of the program's own.

    Raises:
        UserError: where one of the user's has such a name.
    """
    clash = sorted(set(own) & set(frame))
    if clash:
        raise UserError(f"data.columns.inputs: {clash[0]!r} is a column of the program's own; rename yours")
    return frame.assign(**own)


def class_names(name: str, schema: "Schema", validation: "Validation") -> list[str]:
    """The classes that a target may have."""
    only = len(schema.targets) == 1
    return list((validation.classes if only else None) or schema.targets[name].names)


def of_targets(schema: "Schema", validation: "Validation", *, whole: bool) -> list[Check]:
    """The checks of every target; of a batch those that every row must pass by itself."""
    from distillery.targets import column_of

    checks: list[Check] = []
    for name, spec in schema.targets.items():
        if whole:
            checks.append(
                Check(
                    "expect_column_distinct_values_to_contain_set",
                    {"column": _column("labelled.split", name, schema), "value_set": SPLITS},
                    "every split needs labelled rows; add rows, or change data.split",
                )
            )
        if spec.kind != "classes":
            checks.append(_of_row(name, spec, schema))
            continue
        of_rows, of_table = _of_classes(name, column_of(name, schema.targets), schema, validation)
        checks += of_rows + (of_table if whole else [])
    return checks


def _of_classes(name: str, column: str, schema: "Schema", validation: "Validation") -> tuple[list[Check], list[Check]]:
    """Known names, in every row; each often enough, in the table."""
    from distillery.arrow import is_number

    least, classes = validation.min_rows_per_class, class_names(name, schema, validation)
    training = _column("train.target", name, schema)
    # In CSV a quantity arrives as text, and would make a class of each value.
    hint = f"; to predict a quantity say `target: {{{name}: number}}`" if all(map(is_number, classes)) else ""
    of_rows = [
        Check("expect_column_values_to_be_of_type", {"column": column, "type_": "str"}, f"{name} must be text"),
        Check(
            "expect_column_values_to_be_in_set",
            {"column": column, "value_set": classes},
            f"the label is none of the classes; correct it, or name all classes in validation.classes{hint}",
        ),
    ]
    of_table = [
        Check(
            "expect_column_unique_value_count_to_be_between",
            {"column": training, "min_value": 2},
            "training needs at least two classes",
        ),
        Check(
            "expect_column_distinct_values_to_contain_set",
            {"column": training, "value_set": classes},
            "a class has no labelled training row; add some, or correct validation.classes",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": _column("class.rows", name, schema), "min_value": least},
            f"the row's class has fewer than {least} labelled training rows; add some, or lower "
            f"validation.min_rows_per_class{hint}",
        ),
    ]
    return of_rows, of_table


def _of_row(name: str, spec: "Target", schema: "Schema") -> Check:
    """What must hold for the labels or the number of a row."""
    if spec.kind == "labels":
        figure, message = "unknown.labels", f"a label of {name} stands in no training row; correct it, or add some"
    else:
        figure, message = "infinite.target", f"{name} is infinite, or beyond float32; correct it, or leave it empty"
    return Check(
        "expect_column_values_to_be_between", {"column": _column(figure, name, schema), "max_value": 0}, message
    )


def _column(what: str, name: str, schema: "Schema") -> str:
    """What the frame calls a figure of a target."""
    return what if len(schema.targets) == 1 else f"{what}.{name}"
