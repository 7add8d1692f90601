"""Small readings of Arrow columns that the table and its targets share."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distillery.errors import UserError

EXACT = 2.0**53


def whole(column: pa.ChunkedArray) -> pa.Array:
    """One piece of memory."""
    joined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def missing(array: pa.Array) -> npt.NDArray[np.bool_]:
    """(N,) where a column is null."""
    gaps: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return gaps


def is_string(kind: Any) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def as_text(column: pa.ChunkedArray, what: str, origin: pa.Array, hint: str = "") -> pa.Array:
    """Names (classes, keys, groups) as text: 3 and 3.0 are both '3'; empty text, NaN and null are null.

    Args:
        column: of names.
        what: the column, for messages.
        origin: where the user finds each row.
        hint: what else the user of a fraction may have meant.

    Raises:
        UserError: where a value is a fraction, or nothing that can be a name.
    """
    array = whole(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
        # Beyond EXACT floats skip whole numbers, so two names could become one.
        strange = np.flatnonzero(~np.isnan(values) & ((values != np.rint(values)) | (np.abs(values) > EXACT)))
        if len(strange):
            row = int(strange[0])
            raise UserError(f"{what} holds {values[row]:g} in {origin[row]}: names must be whole numbers or text{hint}")
        array = pa.array(np.where(np.isnan(values), 0, values).astype(np.int64), mask=np.isnan(values))
    elif not (is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{what} holds {kind}: names must be text, whole numbers or booleans")
    texts = pc.cast(array, pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def is_number(text: str) -> bool:
    """Whether text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
