"""What a table holds: its inputs, and what is predicted."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from distillery.config import Config
from distillery.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

UNLABELLED = -1  # the class number of a row without a label; elsewhere NaN stands for what is not known

Kind = Literal["classes", "labels", "number"]
# How good a model is at a target of some kind, higher is better; the first is the main figure.
METRICS: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "macro_f1"),
    "labels": ("micro_f1", "macro_f1"),
    "number": ("r2",),
}
MAIN: dict[Kind, str] = {kind: figures[0] for kind, figures in METRICS.items()}


class Input(Config):
    """One tensor that a model reads for each row.

    Attributes:
        kind: `image` (channels, height, width) as uint8, or `numeric` as float32: all scalar columns together, or one
            column that holds a vector.
        shape: of one row, without the batch.
        columns: of the table; an image or a vector has one, all scalar columns together make the input `numeric`.
    """

    kind: Literal["image", "numeric"]
    shape: tuple[int, ...]
    columns: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """NumPy's name for the stored type."""
        return "uint8" if self.kind == "image" else "float32"


class Target(Config):
    """One thing that is predicted: a group of neighbours among a model's outputs.

    | kind | outputs | a row's target | unknown |
    | --- | --- | --- | --- |
    | classes | C logits, softmax | int64 class number | -1 |
    | labels | L logits, sigmoid each | (L,) float32, 0 or 1 | NaN |
    | number | 1, in the target's own unit | float32 | NaN |

    Attributes:
        kind: one class of several, any number of labels, or a quantity.
        names: of the classes or labels; none for a number.
        mean: of a number over labelled training rows.
        deviation: likewise; losses of a number are in units of it.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = Field(1.0, gt=0.0)

    @property
    def width(self) -> int:
        """How many outputs of a model speak of it."""
        return 1 if self.kind == "number" else len(self.names)

    @property
    def dtype(self) -> str:
        """NumPy's name for the stored type."""
        return "int64" if self.kind == "classes" else "float32"

    def known(self, values: "npt.NDArray[Any]") -> "npt.NDArray[np.bool_]":
        """(N,) or (N, L) targets to (N,): the rows of which something is known."""
        import numpy as np

        if self.kind == "classes":
            return np.asarray(values != UNLABELLED)
        return np.asarray(~np.isnan(values).reshape(len(values), -1).all(axis=1))


class Schema(Config):
    """Inputs in the order in which models read them, and targets in the order of a model's outputs."""

    inputs: dict[str, Input]
    targets: dict[str, Target] = Field(min_length=1)

    @property
    def outputs(self) -> int:
        """The number of a model's outputs: those of all targets, side by side."""
        return sum(target.width for target in self.targets.values())

    def part(self, name: str) -> slice:
        """Which of the outputs speak of a target."""
        start = 0
        for each, target in self.targets.items():
            if each == name:
                return slice(start, start + target.width)
            start += target.width
        raise KeyError(name)

    def select(self, columns: Collection[str], where: str) -> Self:
        """The same targets, and only the inputs that come from some columns of the table.

        Args:
            columns: names of image, vector and scalar columns.
            where: the parameter that names them, for the message.

        Raises:
            UserError: for a column that is no input.
        """
        known = [column for spec in self.inputs.values() for column in spec.columns]
        for column in columns:
            if column not in known:
                raise UserError(f"{where}: {column!r} is no input of the data; there are {', '.join(known)}")
        inputs = {}
        for name, spec in self.inputs.items():
            kept = tuple(column for column in spec.columns if column in columns)
            if kept:
                shape = spec.shape if kept == spec.columns else (len(kept),)
                inputs[name] = Input(kind=spec.kind, shape=shape, columns=kept)
        return self.model_copy(update={"inputs": inputs})

    def picks(self, wanted: "Schema") -> dict[str, list[int] | None]:
        """Input name -> which of its stored scalar columns a model with the schema `wanted` reads; None: all."""
        found: dict[str, list[int] | None] = {}
        for name, spec in wanted.inputs.items():
            if name not in self.inputs or not set(spec.columns) <= set(self.inputs[name].columns):
                raise UserError(f"the model reads {', '.join(spec.columns)}, which the data lack")
            stored = self.inputs[name].columns
            found[name] = None if spec.columns == stored else [stored.index(column) for column in spec.columns]
        return found

    @property
    def target(self) -> str:
        """The name of the first target."""
        return next(iter(self.targets))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the first target's classes or labels."""
        return self.targets[self.target].names

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads `schema.json`.

        Raises:
            UserError: where it is missing or no schema.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file} is missing; run `python -m flows run prepare`") from None
        except ValueError as error:
            raise UserError(f"{file} is no schema: {error}; delete it and run again") from None

    def write(self, file: Path) -> None:
        """Writes `schema.json`."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
