"""Seeded views of training rows: the student sees just those changed images of which the teacher has spoken.

Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov 2022, "Knowledge distillation: A good teacher is patient and consistent":
teacher and student must see the same view of an image, and many of them over a long training. There the teacher runs
in every step; Shen and Xing 2021, "A Fast Knowledge Distillation Framework for Visual Recognition" (FKD), store what it
says of several views of every image, with what made the view. Here nothing need be stored of a view: it is a pure
function of the row's key, the input's name and the number of the view.

Epoch e of a training shows view e mod K of every row.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from distillery.augment import Draws, change
from distillery.columns import Columns
from distillery.config import Augmentation, Config
from distillery.errors import UserError
from distillery.schema import Schema

Numbers = npt.NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Views(Config):
    """How many views there are of every row, and what may happen in one."""

    count: int = Field(ge=1)
    augment: Augmentation


class Viewed(Columns):
    """Rows in several views; row number `view * N + row` stands for a view of a row."""

    def __init__(self, plain: Columns, views: Views) -> None:
        """Takes rows, whose files stay as they are: a view is made when it is gathered."""
        super().__init__(plain.schema, plain.keys, plain.targets, plain.inputs, plain.contents)
        self.picks = plain.picks
        self.views = views
        self._plain = plain

    def select(self, schema: Schema) -> Columns:
        """The same views as a model with another schema reads them."""
        return Viewed(self._plain.select(schema), self.views)

    def only(self, target: str) -> Columns:
        """The same views for a model of one target."""
        return Viewed(self._plain.only(target), self.views)

    @property
    def shown(self) -> int:
        """The number of rows that `gather` knows: all views."""
        return self.views.count * len(self)

    def gather(self, rows: npt.NDArray[np.int64] | slice, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
        """Copies the inputs of some views out of the mapped files, and changes them."""
        numbers = np.arange(*rows.indices(self.shown)) if isinstance(rows, slice) else rows
        view, row = np.divmod(numbers, len(self))
        chosen = tuple(self.inputs if names is None else names)
        plain = dict(zip(chosen, super().gather(row, chosen), strict=True))
        keys = self.keys[row]
        augment = self.views.augment
        return tuple(
            change(
                plain, self.schema, augment, lambda name: draws(keys, view.astype(np.uint64), name, augment)
            ).values()
        )

    def gather_targets(self, rows: npt.NDArray[np.int64] | slice) -> dict[str, Tensor]:
        """A view does not change what is to be predicted."""
        numbers = np.arange(*rows.indices(self.shown)) if isinstance(rows, slice) else rows
        return super().gather_targets(numbers % len(self))


def check_images(schema: Schema, key: str) -> None:
    """Tells of a change that nothing would undergo.

    Args:
        schema: of the data.
        key: the parameter that asks for it.

    Raises:
        UserError: where no input is an image.
    """
    if not any(spec.kind == "image" for spec in schema.inputs.values()):
        raise UserError(f"{key} changes images, and the data hold none ({', '.join(schema.inputs)}): leave it out")


def draws(keys: Numbers, view: Numbers, name: str, config: Augmentation) -> Draws:
    """What happens to the image `name` of some rows in some views.

    Args:
        keys: (B,) of the rows.
        view: (B,) numbers of the views.
        name: of the input, so that two images of a row change apart.
        config: what may happen.
    """
    with np.errstate(over="ignore"):
        start = mixed(mixed(mixed(keys) + np.uint64(zlib.crc32(name.encode()))) + view)

    def uniform(number: int) -> npt.NDArray[np.float64]:
        # The 53 upper bits, as NumPy makes a float of 64 random bits.
        with np.errstate(over="ignore"):
            return (mixed(start + np.uint64(number) * GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    window = moves = mirrored = None
    if config.crop < 1.0:
        window = torch.from_numpy(np.stack([uniform(0), uniform(1), uniform(2)], axis=1).astype(np.float32))
    if config.shift:
        wide = np.stack([uniform(3), uniform(4)], axis=1) * (2 * config.shift + 1)
        moves = torch.from_numpy(np.floor(wide).astype(np.int64) - config.shift)
    if config.flip:
        mirrored = torch.from_numpy(uniform(5) < 0.5)
    return Draws(window, moves, mirrored)


def mixed(values: Numbers) -> Numbers:
    """One step of splitmix64 (Steele, Lea, Flood 2014) from each number: 64 bits that depend on all of its own."""
    with np.errstate(over="ignore"):
        mixed = values + GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
