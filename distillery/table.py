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

from distillery import targets
from distillery.arrow import as_text, is_number, is_string, missing, whole
from distillery.errors import UserError
from distillery.schema import Input, Kind, Schema

SPLITS = ("train", "validation", "test")
NUMERIC = "numeric"
RESERVED = ("id", "row_origin", "content", "partition", "split", "group", "target")  # and target.<name>
FILES = ("keys", "contents", "partitions")  # of prepared rows, beside one for each image or vector
BLOCK_BYTES = 1 << 24
IMAGE_DIMENSIONS = 3


@dataclass(frozen=True)
class Roles:
    """Which columns of the user's table are what.

    Attributes:
        inputs: what models read.
        targets: column -> what is predicted there.
        key: names a row; without one a row is named by a hash of its inputs.
        group: rows of one group share a split.
        split: holds train, validation or test; without one the split follows from the id or group.
    """

    inputs: tuple[str, ...]
    targets: Mapping[str, Kind]
    key: str | None = None
    group: str | None = None
    split: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that hold names, not quantities."""
        named = [name for name, kind in self.targets.items() if kind != "number"]
        return (*named, *filter(None, (self.key, self.group, self.split)))

    @property
    def columns(self) -> tuple[str, ...]:
        """All named columns."""
        return (*self.inputs, *self.targets, *filter(None, (self.key, self.group, self.split)))


@dataclass(frozen=True)
class Shares:
    """Shares of the rows in each split; they sum to one."""

    train: float
    validation: float
    test: float


def build(
    parts: Mapping[int, pa.Table], roles: Roles, shares: Shares, *, duplicates: Literal["refuse", "drop"] = "refuse"
) -> tuple[pa.Table, Schema]:
    """Turns the user's columns into the table that every later stage reads.

    A row of a later part whose inputs are known from an earlier one is that row again: it adds nothing but the labels
    that were missing. So what is sent twice counts once, a label may come later, and no row changes its split.

    Args:
        parts: number, ascending -> as a source loads it; 0 is the user's data, the others are what arrived since.
        roles: which columns are what.
        shares: of the splits; without effect where the user has a split column.
        duplicates: within one part: `drop` keeps the first of rows with equal inputs, with the first label that any of
            them has; `refuse` keeps all, for `validate` to name them.

    Returns:
        The table, in the order of the parts: `id`, `row_origin` (where the user finds the row), `content` (hash of all
        inputs), `partition` (which part brought the row), `split`, `group` if there is one, `target` (null
        where unlabelled; with several targets `target.<name>`) and for each its `.partition` (which part brought the
        label), and the inputs: an image as fixed_shape_tensor of uint8 (channels, height, width), a vector as that of
        float32, a number as float32, null where missing. And its schema: classes are the labels of training rows,
        integers in numeric order.

    Raises:
        UserError: where a column cannot have its role, a key stands twice, or copies of a row contradict each other.
    """
    if parts[0].num_rows == 0:
        raise UserError("the table has no row: put data there, or change data.path")
    read = {number: rows_of(part, roles, shares, number) for number, part in parts.items()}
    inputs = read[0][1]
    for number, (_, other) in read.items():
        if other != inputs:
            first = _origin(parts[number])[0]
            raise UserError(f"{first}: its inputs are {told(other)}, those of data.path {told(inputs)}")
    named = {name: targets.column_of(name, roles.targets) for name in roles.targets}
    rows = joined([rows for rows, _ in read.values()], roles, duplicates=duplicates)
    training = rows.filter(pc.equal(rows["split"], "train"))
    described = {}
    for name, column in named.items():
        if training[column].null_count == len(training):
            raise UserError(f"no training row has a label in column {name!r}: some must")
        described[name] = targets.describe(training[column], roles.targets[name])
        if not described[name].width:
            raise UserError(f"no training row has a label other than none in column {name!r}: some must")
    return rows, Schema(inputs=inputs, targets=described)


def rows_of(raw: pa.Table, roles: Roles, shares: Shares, partition: int = 0) -> tuple[pa.Table, dict[str, Input]]:
    """One part in the form of `build`, copies included, and what its inputs are.

    Raises:
        UserError: where a column cannot have its role, or a key stands twice.
    """
    origin = _origin(raw)
    inputs, columns = _inputs(raw, roles, origin)
    content = content_ids(columns)
    ids = content
    if roles.key is not None:
        ids = _filled(raw, roles.key, "key", origin)
        _check_keys(ids, roles.key, origin)
    number = pa.array(np.full(raw.num_rows, partition, np.int32))
    table = {"id": ids, "row_origin": origin, "content": content, "partition": number}
    if roles.group is not None:
        table["group"] = _filled(raw, roles.group, "group", origin)
    if roles.split is None:
        table["split"] = split_of(hash64(table.get("group", ids)), shares)
    else:
        table["split"] = _given_split(raw, roles.split, origin)
    own = {}
    for name in roles.targets:
        column = targets.column_of(name, roles.targets)
        own[column] = targets.read(raw[name], name, roles.targets[name], origin)
        own[since(column)] = number
    clash = sorted(set(own) & set(columns))
    if clash:
        raise UserError(f"data.columns.inputs: {clash[0]!r} is a column of the program's own; rename yours")
    return pa.table({name: table[name] for name in RESERVED if name in table} | own | columns), inputs


def joined(parts: Sequence[pa.Table], roles: Roles, *, duplicates: Literal["refuse", "drop"]) -> pa.Table:
    """Parts in the form of `rows_of`, one after another, without the copies that `build` leaves out.

    The inputs may be left out, since they are compared by their hash.

    Raises:
        UserError: where copies contradict each other, or a key is given to other inputs.
    """
    columns = [targets.column_of(name, roles.targets) for name in roles.targets]
    rows = _without_copies(pa.concat_tables(parts), columns, drop=duplicates == "drop")
    if roles.key is not None:
        # Copies are gone, so a key that is left twice was given to other inputs.
        _check_keys(whole(rows["id"]), roles.key, whole(rows["row_origin"]))
    return rows


def since(column: str) -> str:
    """The column that tells which part brought the labels of a target's column."""
    return f"{column}.partition"


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
    width = sum(_bytes(array[:1]).size for array in arrays)
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


def vectors(array: pa.Array) -> npt.NDArray[np.float32]:
    """(N, D) float32 of a vector column, without a copy."""
    size = array.type.list_size
    flat: npt.NDArray[np.float32] = array.values.to_numpy()
    return flat[array.offset * size : (array.offset + len(array)) * size].reshape(-1, size)


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


def values(rows: pa.RecordBatch | pa.Table, spec: Input) -> npt.NDArray[np.generic]:
    """(N, *shape) of one input, from columns in the table's types."""
    first = whole(rows[spec.columns[0]])
    if spec.kind == "image":
        return pixels(first)
    if is_vector(first.type):
        return vectors(first)
    return np.stack([numbers(rows[column]) for column in spec.columns], axis=1)


def unnamed(raw: pa.Table, roles: Roles) -> tuple[pa.Table, dict[str, Input]]:
    """Rows that need no target and take part in no split: `id` and `row_origin`, as `build` gives them, and the inputs.

    A key may stand twice here, since nothing is aligned by it.

    Raises:
        UserError: where a column cannot have its role.
    """
    origin = _origin(raw)
    inputs, columns = _inputs(raw, roles, origin)
    ids = content_ids(columns) if roles.key is None else _filled(raw, roles.key, "key", origin)
    return pa.table({"id": ids, "row_origin": origin} | columns), inputs


def _origin(raw: pa.Table) -> pa.Array:
    """Where the user finds each row: what the source says, else its number."""
    if "row_origin" in raw.column_names:
        return whole(raw["row_origin"])
    return pc.binary_join_element_wise("row", pc.cast(pa.array(np.arange(1, raw.num_rows + 1)), pa.string()), " ")


def _inputs(raw: pa.Table, roles: Roles, origin: pa.Array) -> tuple[dict[str, Input], dict[str, pa.Array]]:
    """The schema's inputs in the user's order, and the columns in the table's types."""
    inputs: dict[str, Input] = {}
    columns: dict[str, pa.Array] = {}
    scalars: list[str] = []
    for name in roles.inputs:
        if name in RESERVED:
            raise UserError(f"data.columns.inputs: {name!r} is a column of the program's own; rename yours")
        array = whole(raw[name])
        if is_vector(array.type):
            columns[name] = _vector(array, name, origin)
            inputs[name] = Input(kind="numeric", shape=(columns[name].type.list_size,), columns=(name,))
        elif _is_tensor(array.type):
            columns[name] = _image(array, name, origin)
            inputs[name] = Input(kind="image", shape=image_shape(columns[name].type), columns=(name,))
        else:
            columns[name] = _number(array, name, origin)
            scalars.append(name)
            # Takes its place among the inputs with its first column.
            inputs[NUMERIC] = Input(kind="numeric", shape=(len(scalars),), columns=tuple(scalars))
    return inputs, columns


def _image(array: pa.Array, name: str, origin: pa.Array) -> pa.Array:
    """An image column as tensors (channels, height, width), once it is known to hold images."""
    if array.null_count:
        # Parquet cannot give a tensor column with gaps back.
        row = int(np.flatnonzero(missing(array))[0])
        raise UserError(f"image column {name!r} is empty in {origin[row]} ({array.null_count} such rows): remove them")
    kind = array.type
    shape = tuple(kind.shape)
    _check_name(name, "image")
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
    # One type, whatever the names of its dimensions and whether a plane says that it has one channel: parts are joined.
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), image_shape(kind)), array.storage)


def _vector(array: pa.Array, name: str, origin: pa.Array) -> pa.Array:
    """A column of equally long lists of numbers as fixed_size_list of float32; an empty row becomes NaN."""
    _check_name(name, "vector")
    lists = array.storage if _is_tensor(array.type) else array
    gaps = missing(lists)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if gaps.all():
        raise UserError(f"vector column {name!r} is empty in every row: fill it or take it out of data.columns.inputs")
    size = int(lengths[~gaps][0])
    wrong = np.flatnonzero(~gaps & (lengths != size))
    if len(wrong) or size == 0:
        row = int(wrong[0]) if len(wrong) else int(np.flatnonzero(~gaps)[0])
        raise UserError(
            f"vector column {name!r} holds {int(lengths[row])} numbers in {origin[row]} and {size} in others: all rows "
            "must have the same, at least one"
        )
    filled = np.full((len(lists), size), np.nan, np.float32)
    filled[~gaps] = pc.cast(lists.drop_null().flatten(), pa.float32(), safe=False).to_numpy(False).reshape(-1, size)
    return pa.FixedSizeListArray.from_arrays(pa.array(filled.reshape(-1)), size)


def _check_name(name: str, what: str) -> None:
    """Images and vectors are files of their own, under their name."""
    if (
        not re.fullmatch(r"[A-Za-z_][\w-]*", name)
        or name in (*FILES, NUMERIC)
        or re.fullmatch(r"(target|hidden|since)-\d+", name)
    ):
        raise UserError(
            f"{what} column {name!r}: use letters, digits, _ and - (no {', '.join(FILES)}, {NUMERIC}, target-0, "
            "hidden-0, since-0); rename it"
        )


def _number(array: pa.Array, name: str, origin: pa.Array) -> pa.Array:
    """A scalar column as float32; nulls and NaN stay, for `validate` to name their rows."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if is_string(kind):
        row = int(np.flatnonzero(~missing(array))[0]) if array.null_count < len(array) else 0
        example = next((i for i, text in enumerate(array.to_pylist()) if text is not None and not is_number(text)), row)
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


def _check_keys(keys: pa.Array, name: str, origin: pa.Array) -> None:
    """Refuses a key that names two rows."""
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


def _filled(raw: pa.Table, name: str, role: str, origin: pa.Array) -> pa.Array:
    """A column of names without gaps."""
    texts = as_text(raw[name], f"{role} column {name!r}", origin)
    if texts.null_count:
        row = int(np.flatnonzero(missing(texts))[0])
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


def _without_copies(rows: pa.Table, columns: Sequence[str], *, drop: bool) -> pa.Table:
    """The first of rows with equal inputs, each target with the first that any of them has.

    Args:
        rows: of all parts, one part after another.
        columns: of the targets.
        drop: copies within a part too.
    """
    codes = whole(rows["content"]).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) == len(codes):
        return rows
    partition = rows["partition"].to_numpy()
    gone = first[codes] != np.arange(len(codes))
    if not drop:
        gone &= partition > partition[first[codes]]
    merged = np.unique(codes[gone])
    for column in columns:
        source = np.arange(len(codes))
        source[first[merged]] = _first_labelled(rows, column, codes, merged, first)
        for name in (column, since(column)):
            rows = rows.set_column(rows.column_names.index(name), name, whole(rows[name]).take(pa.array(source)))
    return rows.filter(pa.array(~gone))


def _first_labelled(
    rows: pa.Table,
    column: str,
    codes: npt.NDArray[np.int64],
    merged: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """For each distinct row among `merged` the number of its first copy with a label; where none has one, the first."""
    target = whole(rows[column])
    labelled = np.flatnonzero(~missing(target) & np.isin(codes, merged))
    compared = targets.comparable(target).dictionary_encode()
    labels = compared.indices.to_numpy(zero_copy_only=False)[labelled].astype(np.int64)
    seen, at = np.unique(codes[labelled], return_index=True)
    source = first.copy()
    source[seen] = labelled[at]
    # Each labelled row against the label that its copies get.
    contradicting = np.flatnonzero(labels != labels[at][np.searchsorted(seen, codes[labelled])])
    if len(contradicting):
        other = int(labelled[contradicting[0]])
        row = int(source[codes[other]])
        raise UserError(
            f"{_name(rows, row)} and {_name(rows, other)} have equal inputs but labels {target[row]} and "
            f"{target[other]}: correct or remove one"
        )
    return source[merged]


def told(inputs: Mapping[str, Input]) -> str:
    """Inputs in words, for messages."""
    return ", ".join(f"{name} {'x'.join(map(str, spec.shape))}" for name, spec in inputs.items())


def _name(rows: pa.Table, row: int) -> str:
    """A row's id and where it came from."""
    return f"{rows['id'][row]} ({rows['row_origin'][row]})"


def _bytes(array: pa.Array) -> npt.NDArray[np.uint8]:
    """(N, bytes) of a column, equal where the values are."""
    if _is_tensor(array.type):
        return pixels(array).reshape(len(array), -1)
    values = (vectors(array) if is_vector(array.type) else numbers(array)) + np.float32(0.0)  # -0.0 becomes 0.0
    values[np.isnan(values)] = np.nan
    return values.view(np.uint8).reshape(len(values), -1)


def _is_tensor(kind: Any) -> bool:
    """Whether a column holds arrays of one shape."""
    return isinstance(kind, pa.FixedShapeTensorType)


def is_vector(kind: Any) -> bool:
    """Whether a column holds lists of numbers."""
    if _is_tensor(kind):
        return len(kind.shape) == 1
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))
