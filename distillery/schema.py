"""What a table holds: its inputs, its target and the names of its classes."""

from pathlib import Path
from typing import Literal, Self

from distillery.config import Config
from distillery.errors import UserError

UNLABELLED = -1  # the class number of a row without a label


class Input(Config):
    """One tensor that a model reads for each row.

    Attributes:
        kind: `image` (channels, height, width) as uint8, or `numeric`, one float32 for each scalar column.
        shape: of one row, without the batch.
        columns: of the table; an image has one, all scalar columns together make the input `numeric`.
    """

    kind: Literal["image", "numeric"]
    shape: tuple[int, ...]
    columns: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """NumPy's name for the stored type."""
        return "uint8" if self.kind == "image" else "float32"


class Schema(Config):
    """Inputs in the order in which models read them, and what they predict."""

    inputs: dict[str, Input]
    target: str
    classes: tuple[str, ...]

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
