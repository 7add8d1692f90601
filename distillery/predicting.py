"""What an exported model says of a user's rows, from file to file; no PyTorch takes part in the answer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

from distillery.blocks import Rows
from distillery.errors import UserError
from distillery.inference import logits, open_session
from distillery.schema import Input, Schema, Target
from distillery.table import Roles, unnamed, values

BATCH = 512
LABEL_THRESHOLD = 0.5


@dataclass(frozen=True)
class Model:
    """A model and what it reads and says.

    Attributes:
        session: of ONNX Runtime.
        schema: inputs and targets, which travel with the model.
    """

    session: onnxruntime.InferenceSession
    schema: Schema

    @classmethod
    def open(cls, onnx: Path, description: Path) -> "Model":
        """Loads `model.onnx` and the `model.json` that belongs to it.

        Raises:
            UserError: where one of them is missing or damaged.
        """
        try:
            schema = Schema.model_validate(json.loads(description.read_bytes())["schema_"])
        except FileNotFoundError:
            raise UserError(f"{description} is missing: it says what the model reads") from None
        except (ValueError, KeyError) as error:
            raise UserError(f"{description} describes no model: {error}") from None
        return cls(open_session(onnx), schema)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the user's table that it reads."""
        return tuple(column for spec in self.schema.inputs.values() for column in spec.columns)

    @property
    def row_bytes(self) -> int:
        """What the inputs and outputs of one row take."""
        sizes = (int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in self.schema.inputs.values())
        return sum(sizes) + 4 * self.schema.outputs

    def outputs(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        """(N, O) logits, and numbers in their own unit; NaN where an input is missing or infinite."""
        inputs = {name: values(rows, spec) for name, spec in self.schema.inputs.items()}
        whole = np.logical_and.reduce(
            [np.isfinite(each).reshape(len(each), -1).all(axis=1) for each in inputs.values()]
        )
        found = np.full((len(rows), self.schema.outputs), np.nan, np.float32)
        for at in range(0, len(rows), BATCH):
            here = np.flatnonzero(whole[at : at + BATCH]) + at
            if len(here):
                found[here] = logits(self.session, {name: each[here] for name, each in inputs.items()})
        return found


def naming(model: Model, inputs: Sequence[str], key: str | None, present: Sequence[str]) -> Roles:
    """What names a row: the key, else a hash of all inputs of the data, as `ingest` does.

    A model may read fewer columns than the data have, and a user may have only those: then they alone are hashed.

    Args:
        model: what reads the rows.
        inputs: of the data, `data.columns.inputs`.
        key: `data.columns.key`.
        present: the columns that are there.
    """
    if key is not None or not set(inputs) <= set(present) or not set(model.columns) <= set(inputs):
        return Roles(model.columns, {}, key)
    return Roles(tuple(inputs), {}, None)


def predict(model: Model, rows: Rows, roles: Roles, output: Path, advance: Callable[[int], None]) -> int:
    """Writes a Parquet file with a row for each row, in their order.

    Columns: `id`, `row_origin` (where the user finds the row), and for each target its name with what is predicted
    (null where an input is missing). For classes also `<target>_probability` of that class, and for classes and labels
    `<target>_probabilities`, a struct with a float32 for each name; a label is predicted from 0.5 on.

    Args:
        model: what predicts.
        rows: what it reads.
        roles: see `naming`.
        output: the file; it appears when all rows are in it.
        advance: told the number of rows of each block.

    Returns:
        How many rows have no prediction.

    Raises:
        UserError: where a column does not hold what the model reads, or a file is damaged.
    """
    blocks = rows.blocks(model.row_bytes)
    first = next(blocks, None)
    if first is None or not rows.count:
        raise UserError(f"{rows.path} has no row")
    # Before the output is begun: the types of a file are those of its first block.
    _check(model, unnamed(first[:1], roles)[1], rows.path)
    beside = output.with_name(f".{output.name}.part")
    unknown = 0
    try:
        with pq.ParquetWriter(beside, _form(model.schema), compression="zstd") as writer:
            block: pa.Table | None = first
            while block is not None:
                named, _ = unnamed(block, roles)
                found = model.outputs(named)
                unknown += int(np.isnan(found[:, 0]).sum())
                writer.write_table(_answers(named, found, model.schema))
                advance(len(named))
                block = next(blocks, None)
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)
    return unknown


def _check(model: Model, found: dict[str, Input], path: Path) -> None:
    """Compares what a file holds with what the model was trained on."""
    shapes = {column: spec for spec in found.values() for column in spec.columns}
    for name, spec in model.schema.inputs.items():
        for column in spec.columns:
            held = shapes[column]
            alone = len(spec.columns) == 1 and name == column
            if held.kind != spec.kind or (alone and held.shape != spec.shape):
                raise UserError(
                    f"column {column!r} of {path} holds {_words(held)}; the model reads {_words(spec)}"
                    + (": set ingest.image_size to resize pictures" if held.kind == spec.kind == "image" else "")
                )


def _words(spec: Input) -> str:
    size = " x ".join(map(str, spec.shape))
    if spec.kind == "image":
        return f"images of {size} (channels, height, width)"
    return "numbers" if len(spec.columns) > 1 or spec.shape == (1,) else f"vectors of {size}"


def _form(schema: Schema) -> pa.Schema:
    """The columns of the answer."""
    fields = [pa.field("id", pa.string()), pa.field("row_origin", pa.string())]
    for name, target in schema.targets.items():
        each = pa.struct([pa.field(label, pa.float32()) for label in target.names])
        if target.kind == "classes":
            fields += [pa.field(name, pa.string()), pa.field(f"{name}_probability", pa.float32())]
        elif target.kind == "labels":
            fields.append(pa.field(name, pa.list_(pa.string())))
        else:
            fields.append(pa.field(name, pa.float32()))
        if target.kind != "number":
            fields.append(pa.field(f"{name}_probabilities", each))
    return pa.schema(fields)


def _answers(rows: pa.Table, found: npt.NDArray[np.float32], schema: Schema) -> pa.Table:
    """(N, O) outputs as columns beside the names of the rows."""
    columns: list[Any] = [rows["id"], rows["row_origin"]]
    for name, target in schema.targets.items():
        columns += _of_target(found[:, schema.part(name)], target)
    return pa.Table.from_arrays(columns, schema=_form(schema))


def _of_target(found: npt.NDArray[np.float32], target: Target) -> list[Any]:
    """The columns of one target."""
    unknown = np.isnan(found[:, 0])
    if target.kind == "number":
        return [pa.array(found[:, 0], mask=unknown)]
    if target.kind == "classes":
        shifted = np.exp(found - found.max(axis=1, keepdims=True))
        chances = shifted / shifted.sum(axis=1, keepdims=True)
        best = np.where(unknown, 0, found.argmax(axis=1))
        names = pa.array(target.names, pa.string()).take(pa.array(best, mask=unknown))
        said = [names, pa.array(np.take_along_axis(chances, best[:, None], axis=1)[:, 0], mask=unknown)]
    else:
        chances = 1 / (1 + np.exp(-found))
        listed = [[target.names[at] for at in np.flatnonzero(row >= LABEL_THRESHOLD)] for row in chances]
        said = [pa.array(listed, pa.list_(pa.string()), mask=unknown)]
    columns = [pa.array(np.ascontiguousarray(column)) for column in chances.T]
    return [*said, pa.StructArray.from_arrays(columns, list(target.names), mask=pa.array(unknown))]
