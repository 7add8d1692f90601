"""The table of all rows: names them by id, splits them by it, and holds inputs and target in one form."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distillery.errors import UserError
from distillery.schema import Input, Schema, Target

SPLITS = ("train", "validation", "test")
NUMERIC = "numeric"
RESERVED = ("id", "row_origin", "content", "split", "group", "target")
BLOCK_BYTES = 1 << 24
IMAGE_DIMENSIONS = 3


@dataclass(frozen=True)
class Roles:
    """Which columns of the user's table are what.

    Attributes:
        inputs: what models read.
        target: what they predict.
        key: names a row; without one a row is named by a hash of its inputs.
        group: rows of one group share a split.
        split: holds train, validation or test; without one the split follows from the id or group.
    """

    inputs: tuple[str, ...]
    target: str
    key: str | None = None
    group: str | None = None
    split: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All named columns."""
        return (*self.inputs, self.target, *filter(None, (self.key, self.group, self.split)))


@dataclass(frozen=True)
class Shares:
    """Shares of the rows in each split; they sum to one."""

    train: float
    validation: float
    test: float


def build(
    raw: pa.Table, roles: Roles, shares: Shares, *, duplicates: Literal["refuse", "drop"] = "refuse"
) -> tuple[pa.Table, Schema]:
    """Turns the user's columns into the table that every later stage reads.

    Args:
        raw: as a source loads it.
        roles: which columns are what.
        shares: of the splits; without effect where the user has a split column.
        duplicates: `drop` keeps the first of rows with equal inputs, with the first label that any of them has;
            `refuse` keeps all, for `validate` to name them.

    Returns:
        The table, in the order of `raw`: `id`, `row_origin` (where the user finds the row), `content` (hash of all
        inputs), `split`, `group` if there is one, `target` (text, null where unlabelled), and the inputs: an image as
        fixed_shape_tensor of uint8 (channels, height, width), a number as float32, null where missing. And its
        schema: classes are the labels of training rows, integers in numeric order.

    Raises:
        UserError: where a column cannot have its role, a key stands twice, or copies of a row contradict each other.
    """
    if raw.num_rows == 0:
        raise UserError("the table has no row: put data there, or change data.path")
    origin = _origin(raw)
    inputs, columns = _inputs(raw, roles, origin)
    content = content_ids(columns)
    ids = content if roles.key is None else _keys(raw, roles.key, origin)
    target = as_text(raw[roles.target], f"target column {roles.target!r}", origin)
    table = {"id": ids, "row_origin": origin, "content": content}
    if roles.group is not None:
        table["group"] = _filled(raw, roles.group, "group", origin)
    if roles.split is None:
        table["split"] = split_of(hash64(table.get("group", ids)), shares)
    else:
        table["split"] = _given_split(raw, roles.split, origin)
    table["target"] = target
    rows = pa.table({name: table[name] for name in RESERVED if name in table} | columns)
    if duplicates == "drop":
        rows = _without_copies(rows)
    training = pc.filter(rows["target"], pc.equal(rows["split"], "train"))
    classes = _sorted_labels(training.unique().drop_null().to_pylist())
    if not classes:
        raise UserError(f"no training row has a label in column {roles.target!r}: some must")
    return rows, Schema(inputs=inputs, targets={roles.target: Target(kind="classes", names=classes)})


def hash64(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """(N,) 64 bits of a hash of each text; equal everywhere and for ever."""
    hashes = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.to_pylist())
    return np.frombuffer(hashes, "<u8").astype(np.uint64)


def split_of(hashes: npt.NDArray[np.uint64], shares: Shares) -> pa.Array:
    """The split of each row: a pure function of its hash, so a row never moves when others come.

    Test comes first on the scale, then validation: moving the border between the other two leaves it alone.
    """
    position = hashes / 2.0**64
    number = np.searchsorted([shares.test, shares.test + shares.validation], position, side="right")
    return pa.array(["test", "validation", "train"]).take(pa.array(number))


def content_ids(columns: Mapping[str, pa.Array]) -> pa.Array:
    """A hash of each row's inputs, 32 hex digits; order of columns and sign of zero do not count."""
    arrays = [columns[name] for name in sorted(columns)]
    count = len(arrays[0])
    width = sum(array.type.storage_type.list_size if _is_tensor(array.type) else 4 for array in arrays)
    block = max(1, BLOCK_BYTES // width)
    digests: list[str] = []
    for start in range(0, count, block):
        rows = np.concatenate([_bytes(array.slice(start, block)) for array in arrays], axis=1)
        data = memoryview(rows.data).cast("B")
        size = rows.shape[1]
        digests += [
            hashlib.blake2b(data[at : at + size], digest_size=16).hexdigest() for at in range(0, len(data), size)
        ]
    return pa.array(digests, pa.string())


def numbers(array: pa.Array) -> npt.NDArray[np.float32]:
    """(N,) float32 of a scalar column; NaN where missing."""
    values: npt.NDArray[np.float32] = array.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return values


def pixels(array: pa.Array) -> npt.NDArray[np.uint8]:
    """(N, channels, height, width) uint8 of an image column, without a copy."""
    storage: Any = array.storage
    size = storage.type.list_size
    flat: npt.NDArray[np.uint8] = storage.values.to_numpy()
    return flat[storage.offset * size : (storage.offset + len(storage)) * size].reshape(-1, *image_shape(array.type))


def image_shape(kind: Any) -> tuple[int, ...]:
    """(channels, height, width) of a tensor type; a plane without channels has one."""
    shape = tuple(kind.shape)
    return shape if len(shape) == IMAGE_DIMENSIONS else (1, *shape)


def as_text(column: pa.ChunkedArray, what: str, origin: pa.Array) -> pa.Array:
    """Names (classes, keys, groups) as text: 3 and 3.0 are both '3'; empty text, NaN and null are null.

    Raises:
        UserError: where a value is a fraction, or nothing that can be a name.
    """
    array = _whole(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
        fractions = np.flatnonzero(~np.isnan(values) & (values != np.rint(values)))
        if len(fractions):
            row = int(fractions[0])
            raise UserError(
                f"{what} holds {values[row]:g} in {origin[row]}: names must be whole numbers or text "
                "(predicting quantities is not there yet)"
            )
        array = pa.array(np.where(np.isnan(values), 0, values).astype(np.int64), mask=np.isnan(values))
    elif not (_is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{what} holds {kind}: names must be text, whole numbers or booleans")
    texts = pc.cast(array, pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _origin(raw: pa.Table) -> pa.Array:
    """Where the user finds each row: what the source says, else its number."""
    if "row_origin" in raw.column_names:
        return _whole(raw["row_origin"])
    return pc.binary_join_element_wise("row", pc.cast(pa.array(np.arange(1, raw.num_rows + 1)), pa.string()), " ")


def _inputs(raw: pa.Table, roles: Roles, origin: pa.Array) -> tuple[dict[str, Input], dict[str, pa.Array]]:
    """The schema's inputs in the user's order, and the columns in the table's types."""
    inputs: dict[str, Input] = {}
    columns: dict[str, pa.Array] = {}
    scalars: list[str] = []
    for name in roles.inputs:
        if name in RESERVED:
            raise UserError(f"data.columns.inputs: {name!r} is a column of the program's own; rename yours")
        array = _whole(raw[name])
        if _is_tensor(array.type):
            columns[name] = _image(array, name, origin)
            inputs[name] = Input(kind="image", shape=image_shape(columns[name].type), columns=(name,))
        else:
            columns[name] = _number(array, name, origin)
            scalars.append(name)
            # Takes its place among the inputs with its first column.
            inputs[NUMERIC] = Input(kind="numeric", shape=(len(scalars),), columns=tuple(scalars))
    if scalars and inputs[NUMERIC].kind == "image":
        raise UserError(f"data.columns.inputs: an image column cannot be called {NUMERIC!r} beside numbers; rename it")
    return inputs, columns


def _image(array: pa.Array, name: str, origin: pa.Array) -> pa.Array:
    """An image column as it is, once it is known to be one."""
    if array.null_count:
        # Parquet cannot give a tensor column with gaps back.
        row = int(np.flatnonzero(_missing(array))[0])
        raise UserError(f"image column {name!r} is empty in {origin[row]} ({array.null_count} such rows): remove them")
    kind = array.type
    shape = tuple(kind.shape)
    if not re.fullmatch(r"[A-Za-z_][\w-]*", name) or name in ("keys", NUMERIC):
        raise UserError(f"image column {name!r}: use letters, digits, _ and - (not 'keys' or {NUMERIC!r}); rename it")
    if kind.value_type != pa.uint8():
        raise UserError(f"image column {name!r} holds {kind.value_type}: images must be uint8, 0 to 255")
    if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
        # PyArrow writes and reads permutations in ways that contradict each other: nothing is guessed here.
        raise UserError(
            f"image column {name!r} is stored permuted: write a copy in the order (channels, height, width)"
        )
    channels_last = len(shape) == IMAGE_DIMENSIONS and shape[2] in (1, 3) and shape[0] not in (1, 3)
    if channels_last or len(shape) not in (2, IMAGE_DIMENSIONS):
        raise UserError(f"image column {name!r} has shape {shape}: it must be (channels, height, width)")
    return array


def _number(array: pa.Array, name: str, origin: pa.Array) -> pa.Array:
    """A scalar column as float32; nulls and NaN stay, for `validate` to name their rows."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if _is_string(kind):
        row = int(np.flatnonzero(~_missing(array))[0]) if array.null_count < len(array) else 0
        example = next(
            (i for i, text in enumerate(array.to_pylist()) if text is not None and not _is_number(text)), row
        )
        raise UserError(
            f"column {name!r} holds text ({array[example]} in {origin[example]}): text inputs are not there yet, "
            "make it a number or take it out of data.columns.inputs"
        )
    if pa.types.is_decimal(kind):
        array = pc.cast(array, pa.float64())
    elif not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise UserError(
            f"column {name!r} holds {kind}, which is neither a number nor an image "
            "(fixed_shape_tensor of uint8, channels x height x width): convert it or take it out of data.columns.inputs"
        )
    if pa.types.is_boolean(kind):
        array = pc.cast(array, pa.uint8())
    return pc.cast(array, pa.float32(), safe=False)


def _keys(raw: pa.Table, name: str, origin: pa.Array) -> pa.Array:
    """The user's keys as text, each once."""
    keys = _filled(raw, name, "key", origin)
    codes = keys.dictionary_encode().indices.to_numpy()
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if len(twice):
        row = int(first[twice[0]])
        again = int(np.flatnonzero(codes == codes[row])[1])
        raise UserError(
            f"key column {name!r}: {keys[row]} stands in {origin[row]} and {origin[again]} "
            f"({len(twice)} such keys): a key names one row"
        )
    return keys


def _filled(raw: pa.Table, name: str, role: str, origin: pa.Array) -> pa.Array:
    """A column of names without gaps."""
    texts = as_text(raw[name], f"{role} column {name!r}", origin)
    if texts.null_count:
        row = int(np.flatnonzero(_missing(texts))[0])
        raise UserError(f"{role} column {name!r} is empty in {origin[row]} ({texts.null_count} such rows): fill it")
    return texts


def _given_split(raw: pa.Table, name: str, origin: pa.Array) -> pa.Array:
    """The user's own split."""
    split = _filled(raw, name, "split", origin)
    known = pc.is_in(split, pa.array(SPLITS)).to_numpy(zero_copy_only=False)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        bad = pc.filter(split, pa.array(~known)).unique().to_pylist()
        raise UserError(
            f"split column {name!r} holds {', '.join(map(repr, sorted(bad)))} (first in {origin[row]}): "
            f"only {', '.join(SPLITS)} are known"
        )
    return split


def _without_copies(rows: pa.Table) -> pa.Table:
    """The first of rows with equal inputs, with the first label that any of them has."""
    codes = _whole(rows["content"]).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) == len(codes):
        return rows
    target = _whole(rows["target"])
    labelled = np.flatnonzero(~_missing(target))
    labels = target.dictionary_encode().indices.to_numpy(zero_copy_only=False)[labelled].astype(np.int64)
    seen, first_label = np.unique(codes[labelled], return_index=True)
    source = np.full(len(first), -1)
    source[seen] = labelled[first_label]
    # Each labelled row against the label that its copies get.
    contradicting = np.flatnonzero(labels != labels[first_label][np.searchsorted(seen, codes[labelled])])
    if len(contradicting):
        other = int(labelled[contradicting[0]])
        row = int(source[codes[other]])
        raise UserError(
            f"{_name(rows, row)} and {_name(rows, other)} have equal inputs but labels {target[row]} and "
            f"{target[other]}: correct or remove one"
        )
    kept = rows.take(pa.array(first))
    merged = target.take(pa.array(source, mask=source < 0))
    return kept.set_column(kept.column_names.index("target"), "target", merged)


def _name(rows: pa.Table, row: int) -> str:
    """A row's id and where it came from."""
    return f"{rows['id'][row]} ({rows['row_origin'][row]})"


def _sorted_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Whole numbers in numeric order, else alphabetical."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _bytes(array: pa.Array) -> npt.NDArray[np.uint8]:
    """(N, bytes) of a column, equal where the values are."""
    if _is_tensor(array.type):
        return pixels(array).reshape(len(array), -1)
    values = numbers(array) + np.float32(0.0)  # -0.0 becomes 0.0
    values[np.isnan(values)] = np.nan
    return values.view(np.uint8).reshape(len(values), 4)


def _missing(array: pa.Array) -> npt.NDArray[np.bool_]:
    """(N,) where a column is null."""
    missing: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return missing


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One piece of memory."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _is_tensor(kind: Any) -> bool:
    """Whether a column holds arrays of one shape."""
    return isinstance(kind, pa.FixedShapeTensorType)


def _is_string(kind: Any) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(text: str) -> bool:
    """Whether text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
