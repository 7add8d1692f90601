"""Prepared rows as memory-mapped columns; batches are gathered by row number, never row by row in Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillery.errors import UserError
from distillery.schema import UNLABELLED, Schema


class Columns:
    """The rows of one split, in the order of the table.

    Files in the folder: `schema.json`, `keys.npy` (uint64, a hash of each row's id), `target.npy` (int64,
    class number, -1 where unlabelled) and `<input>.npy` for every input of the schema.

    Attributes:
        schema: inputs and classes.
        keys: (N,) uint64, what soft targets are aligned by.
        target: (N,) int64.
        inputs: input name -> (N, *shape), memory-mapped.
    """

    def __init__(
        self,
        schema: Schema,
        keys: npt.NDArray[np.uint64],
        target: npt.NDArray[np.int64],
        inputs: Mapping[str, npt.NDArray[np.generic]],
    ) -> None:
        self.schema = schema
        self.keys = keys
        self.target = target
        self.inputs = dict(inputs)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps the columns of a folder written by `write`.

        Raises:
            UserError: where a file is missing, damaged or of another length.
        """
        schema = Schema.read(folder / "schema.json")
        try:
            keys = np.load(folder / "keys.npy")
            target = np.load(folder / "target.npy")
            inputs = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in schema.inputs}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}); run `python -m flows run prepare --force`") from None
        for name, spec in schema.inputs.items():
            if inputs[name].shape != (len(keys), *spec.shape):
                raise UserError(
                    f"{folder}/{name}.npy does not fit its schema; run `python -m flows run prepare --force`"
                )
        return cls(schema, keys, target, inputs)

    def write(self, folder: Path) -> None:
        """Writes the folder that `open` maps."""
        folder.mkdir(parents=True, exist_ok=True)
        self.schema.write(folder / "schema.json")
        np.save(folder / "keys.npy", self.keys)
        np.save(folder / "target.npy", self.target)
        for name, column in self.inputs.items():
            np.save(folder / f"{name}.npy", column)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.keys)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """The numbers of the rows that have a label."""
        return np.flatnonzero(self.target != UNLABELLED)

    def gather(self, rows: npt.NDArray[np.int64] | slice, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
        """Copies the inputs of some rows out of the mapped files.

        Args:
            rows: (B,) row numbers, or a slice of neighbours.
            names: inputs to read; by default all, in the schema's order.

        Returns:
            One tensor (B, *shape) for each input.
        """
        chosen = self.inputs if names is None else names
        return tuple(_copied(self.inputs[name], rows) for name in chosen)

    def targets(self, rows: npt.NDArray[np.int64] | slice) -> Tensor:
        """(B,) int64 class numbers, -1 where unlabelled."""
        return _copied(self.target, rows)


def _copied(column: npt.NDArray[Any], rows: npt.NDArray[np.int64] | slice) -> Tensor:
    """A fancy index copies by itself; a slice would hand out the read-only memory of the file."""
    return torch.from_numpy(np.array(column[rows]) if isinstance(rows, slice) else column[rows])
