"""What registered models say of the present test set, taken anew with ONNX Runtime."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distillery import timing
from distillery.columns import Columns
from distillery.errors import UserError
from distillery.inference import open_session, predict
from distillery.schema import Schema, Target

Outputs = npt.NDArray[np.floating[Any]]
# What a model that does not know a label answers about it: certainly not.
NEVER = -30.0


@dataclass(frozen=True)
class Subject:
    """A model with its answers.

    Attributes:
        title: for people.
        onnx: the file.
        columns: the rows as it reads them.
        outputs: (N, O) in the order of the test set's targets; a model that knows classes that the test set has no
            longer has more columns, at the end of the target's.
        answers: target name -> (N, width) of it.
    """

    title: str
    onnx: Path
    columns: Columns
    answers: Mapping[str, Outputs]

    @classmethod
    def measure(cls, title: str, onnx: Path, schema: Schema, columns: Columns) -> "Subject":
        """Asks a model about every row.

        Args:
            title: for people.
            onnx: the file.
            schema: of the model.
            columns: the test set.

        Raises:
            UserError: where it reads or predicts what the test set does not have, or its outputs are not finite.
        """
        try:
            reading = columns.select(schema)
        except UserError as error:
            raise UserError(f"{title} cannot be measured on the present test set: {error}") from None
        outputs = predict(open_session(onnx), reading)
        if not np.isfinite(outputs).all():
            raise UserError(f"{title}: outputs are not finite; it cannot be judged")
        answers = {
            name: aligned(outputs[:, schema.part(name)], schema.targets[name], spec)
            for name, spec in columns.schema.targets.items()
            if name in schema.targets and schema.targets[name].kind == spec.kind
        }
        return cls(title, onnx, reading, answers)

    def require_all(self, columns: Columns) -> "Subject":
        """Itself, where it predicts every target of the test set.

        Raises:
            UserError: where it does not.
        """
        missing = [name for name in columns.schema.targets if name not in self.answers]
        if missing:
            raise UserError(f"{self.title} does not predict {', '.join(missing)}, which the present data ask for")
        return self

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.onnx.stat().st_size


def aligned(outputs: Outputs, own: Target, asked: Target) -> Outputs:
    """Answers in the order of the test set's names: of a name the model lacks never, of one too many behind them."""
    if own.names == asked.names:
        return outputs
    too_many = [name for name in own.names if name not in asked.names] if asked.kind == "classes" else []
    order = [*asked.names, *too_many]
    found = np.full((len(outputs), len(order)), NEVER, outputs.dtype)
    for at, name in enumerate(order):
        if name in own.names:
            found[:, at] = outputs[:, own.names.index(name)]
    return found


def digest(columns: Columns) -> str:
    """SHA-256 of keys, targets and inputs of some rows."""
    total = hashlib.sha256()
    for column in (columns.keys, *columns.targets.values(), *columns.inputs.values()):
        total.update(np.ascontiguousarray(column).view(np.uint8).data if column.size else b"")
    return total.hexdigest()


def latencies(subjects: Mapping[str, Subject], seconds: float = 10.0) -> dict[str, float]:
    """Median milliseconds of one row, all measured in turns."""
    found = timing.measure({name: (each.onnx, each.columns) for name, each in subjects.items()}, seconds)
    return {name: each.latency_ms for name, each in found.items()}


def schema_of(description: Path) -> Schema:
    """The schema in a `model.json`."""
    return Schema.model_validate(json.loads(description.read_bytes())["schema_"])
