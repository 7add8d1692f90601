"""What is predicted, from the user's columns to arrays: one function of each kind."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distillery.arrow import as_text, is_number, is_string, missing, whole
from distillery.errors import UserError
from distillery.schema import UNLABELLED, Kind, Target

SEPARATOR = "|"  # of several labels in one cell of text


def column_of(name: str, targets: Mapping[str, Any]) -> str:
    """What the table calls a target: `target`, with its name behind where there are several."""
    return "target" if len(targets) == 1 else f"target.{name}"


def read(column: pa.ChunkedArray, name: str, kind: Kind, origin: pa.Array) -> pa.Array:
    """The user's column in the table's type, null where nothing is known.

    Args:
        column: the user's.
        name: its name, for messages.
        kind: what it holds.
        origin: where the user finds each row.

    Returns:
        Classes as text, a number as float64, labels as lists of text; an empty list says that none applies.

    Raises:
        UserError: where a value is none of that kind.
    """
    what = f"target column {name!r}"
    if kind == "number":
        return _numbers(whole(column), what, origin)
    if kind == "labels":
        return _labels(whole(column), what, origin)
    return as_text(column, what, origin, f"; to predict a quantity say `target: {{{name}: number}}`")


def describe(column: pa.ChunkedArray, kind: Kind) -> Target:
    """What training rows say of a target: the names of its classes or labels."""
    if kind == "number":
        return Target(kind=kind)
    known = whole(column).drop_null()
    names = (known.flatten() if kind == "labels" else known).unique().to_pylist()
    return Target(kind=kind, names=_sorted_names(names))


def values(column: pa.ChunkedArray, target: Target) -> npt.NDArray[Any]:
    """The table's column as training reads it.

    Returns:
        (N,) int64 class numbers, -1 where unknown; (N, L) float32 of labels or (N,) of a number, NaN where unknown.
        Names that the target does not know count as unknown classes, and as labels for nothing.
    """
    array = whole(column)
    if target.kind == "number":
        return np.array(array.to_numpy(zero_copy_only=False), np.float32)
    names = pa.array(target.names, pa.string())
    if target.kind == "classes":
        found = pc.fill_null(pc.index_in(array, value_set=names), UNLABELLED)
        return np.array(pc.cast(found, pa.int64()))
    hot = np.zeros((len(array), len(target.names)), np.float32)
    hot[missing(array)] = np.nan
    rows = pc.list_parent_indices(array).to_numpy()
    places = pc.index_in(array.flatten(), value_set=names)
    known = ~missing(places)
    hot[rows[known], places.drop_null().to_numpy()] = 1.0
    return hot


def comparable(column: pa.ChunkedArray) -> pa.Array:
    """One value for each row that is equal where two rows say the same."""
    array = whole(column)
    return pc.binary_join(array, "\x1f") if pa.types.is_list(array.type) else array


def _numbers(array: pa.Array, what: str, origin: pa.Array) -> pa.Array:
    """A quantity as float64; NaN is null."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if is_string(kind):
        texts = [(text or "").strip() for text in array.to_pylist()]
        for row, text in enumerate(texts):
            if text and not is_number(text):
                raise UserError(
                    f"{what} holds {text!r} in {origin[row]}: write a number, or say `classes` in data.columns.target"
                )
        array = pa.array([float(text) if text else None for text in texts], pa.float64())
    elif not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    ):
        raise UserError(f"{what} holds {kind}: it must hold numbers")
    if pa.types.is_boolean(kind):
        array = pc.cast(array, pa.uint8())
    numbers = pc.cast(array, pa.float64(), safe=False)
    return pc.if_else(pc.fill_null(pc.is_nan(numbers), False), pa.scalar(None, pa.float64()), numbers)


def _labels(array: pa.Array, what: str, origin: pa.Array) -> pa.Array:
    """Any number of names as a sorted list without repetition, from lists or from text with `|` between them.

    A cell that holds nothing but `|` says that none applies.
    """
    kind = array.type
    if is_string(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        texts = as_text(array, what, origin).to_pylist()
        lists = [None if text is None else [part.strip() for part in text.split(SEPARATOR)] for text in texts]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        parents = pc.list_parent_indices(array)
        names = as_text(array.flatten(), what, origin.take(parents)).to_pylist()
        lists = [None if gap else [] for gap in missing(array)]
        for row, label in zip(parents.to_pylist(), names, strict=True):
            _check_label(label, lists[row], kind.value_type, f"{what} holds {label!r} in {origin[row]}")
            lists[row].append(label)
    else:
        raise UserError(f"{what} holds {kind}: labels are a list of names, or text with {SEPARATOR} between them")
    return pa.array([None if each is None else sorted({*each} - {None, ""}) for each in lists], pa.list_(pa.string()))


def _check_label(label: str | None, before: list[str | None], kind: Any, where: str) -> None:
    """Refuses what is no name of a label."""
    if label is not None and SEPARATOR in label:
        raise UserError(f"{where}: {SEPARATOR} stands between labels in text, so no name may hold it; rename the label")
    if label in before and not is_string(kind):
        raise UserError(f"{where} twice: write the names of the labels that apply, not a row of zeros and ones")


def _sorted_names(names: Sequence[str]) -> tuple[str, ...]:
    """Whole numbers in numeric order, else alphabetical."""
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
