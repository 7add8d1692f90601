"""Prepared rows as memory-mapped columns; batches are gathered by row number, never row by row in Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillery.errors import UserError
from distillery.schema import Schema


class Columns:
    """The rows of one split, in the order of the table.

    Files in the folder: `schema.json`, `keys.npy` (uint64, a hash of each row's id), `contents.npy` (uint64, a hash of
    its inputs), `target-<number>.npy` for every target of the schema, in its order, and `<input>.npy` for every input.
    Of training rows also `hidden-<number>.npy`, the targets before `data.labelled` hid some.

    Attributes:
        schema: inputs and targets.
        keys: (N,) uint64, what soft targets are aligned by.
        contents: (N,) uint64, what a model says of a row depends on nothing else.
        targets: target name -> what is to be predicted, (N,) or (N, L); see `distillery.schema.Target`.
        inputs: input name -> (N, *shape), memory-mapped.
        picks: input name -> which of its columns are read; None: all.
    """

    def __init__(
        self,
        schema: Schema,
        keys: npt.NDArray[np.uint64],
        targets: Mapping[str, npt.NDArray[Any]],
        inputs: Mapping[str, npt.NDArray[np.generic]],
        contents: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Takes arrays as they are; without `contents` a key stands for the inputs too, as where users have no keys."""
        self.schema = schema
        self.keys = keys
        self.contents = keys if contents is None else contents
        self.targets = dict(targets)
        self.inputs = dict(inputs)
        self.picks: dict[str, list[int] | None] = dict.fromkeys(inputs)

    @classmethod
    def open(cls, folder: Path, *, hidden: bool = False) -> Self:
        """Maps the columns of a folder written by `write`.

        Args:
            folder: of one split.
            hidden: with the targets that were hidden.

        Raises:
            UserError: where a file is missing, damaged or of another length.
        """
        schema = Schema.read(folder / "schema.json")
        try:
            keys = np.load(folder / "keys.npy")
            contents = np.load(folder / "contents.npy")
            file = "hidden" if hidden else "target"
            targets = {name: np.load(folder / f"{file}-{at}.npy") for at, name in enumerate(schema.targets)}
            inputs = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in schema.inputs}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}); run `python -m flows run prepare --force`") from None
        for name, spec in schema.inputs.items():
            if inputs[name].shape != (len(keys), *spec.shape):
                raise UserError(
                    f"{folder}/{name}.npy does not fit its schema; run `python -m flows run prepare --force`"
                )
        return cls(schema, keys, targets, inputs, contents)

    def select(self, schema: Schema) -> "Columns":
        """The same rows as a model with another schema reads them: only its inputs, in its order.

        Raises:
            UserError: where the model reads what the rows lack.
        """
        if schema.inputs == self.schema.inputs:
            return self
        picks = self.schema.picks(schema)
        chosen = self.schema.model_copy(update={"inputs": schema.inputs})
        inputs = {name: self.inputs[name] for name in picks}
        view = Columns(chosen, self.keys, self.targets, inputs, self.contents)
        view.picks = picks
        return view

    def only(self, target: str) -> "Columns":
        """The same rows for a model of one target."""
        schema = self.schema.model_copy(update={"targets": {target: self.schema.targets[target]}})
        return Columns(schema, self.keys, {target: self.targets[target]}, self.inputs, self.contents)

    def write(self, folder: Path) -> None:
        """Writes the folder that `open` maps."""
        folder.mkdir(parents=True, exist_ok=True)
        self.schema.write(folder / "schema.json")
        np.save(folder / "keys.npy", self.keys)
        np.save(folder / "contents.npy", self.contents)
        for at, name in enumerate(self.schema.targets):
            np.save(folder / f"target-{at}.npy", self.targets[name])
        for name, column in self.inputs.items():
            np.save(folder / f"{name}.npy", column)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.keys)

    @property
    def shown(self) -> int:
        """The number of rows that `gather` knows; more where a row has several views."""
        return len(self)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """The numbers of the rows of which any target is known."""
        known = [target.known(self.targets[name]) for name, target in self.schema.targets.items()]
        return np.flatnonzero(np.logical_or.reduce(known))

    @property
    def target(self) -> npt.NDArray[Any]:
        """The first target, where it is the only one."""
        return self.targets[self.schema.target]

    def gather(self, rows: npt.NDArray[np.int64] | slice, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
        """Copies the inputs of some rows out of the mapped files.

        Args:
            rows: (B,) row numbers, or a slice of neighbours.
            names: inputs to read; by default all, in the schema's order.

        Returns:
            One tensor (B, *shape) for each input.
        """
        chosen = self.inputs if names is None else names
        return tuple(_copied(self.inputs[name], rows, self.picks[name]) for name in chosen)

    def gather_targets(self, rows: npt.NDArray[np.int64] | slice) -> dict[str, Tensor]:
        """Target name -> (B,) or (B, L), what is to be predicted of some rows."""
        return {name: _copied(target, rows) for name, target in self.targets.items()}


def _copied(column: npt.NDArray[Any], rows: npt.NDArray[np.int64] | slice, picks: list[int] | None = None) -> Tensor:
    """A fancy index copies by itself; a slice would hand out the read-only memory of the file."""
    if picks is not None:
        return torch.from_numpy(column[rows][:, picks])
    return torch.from_numpy(np.array(column[rows]) if isinstance(rows, slice) else column[rows])
