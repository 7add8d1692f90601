"""Whether new rows come from another distribution than those there are: every input and every target, each by a test.

What these tests do not see: whether the same inputs now deserve other labels, and, of scalar columns, how they go
together, since each is looked at by itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillery import table, targets, two_samples
from distillery.arrow import whole
from distillery.config import Config
from distillery.holm import holm
from distillery.schema import Input, Kind, Schema
from distillery.two_samples import Evidence, Floats, Integers

FEWEST_DRAWS, MOST_DRAWS = 2_000, 100_000
# A column of so few values, each of them common, holds names or flags, whose order says nothing.
MOST_CATEGORIES = 20
ROWS_PER_CATEGORY = 10
# The classifier sees no more of each side: it costs as much for millions of rows, and for large images.
MOST_ROWS = 2000
MOST_NUMBERS = 1 << 25


class Drift(Config):
    """What one test says.

    Attributes:
        what: `input age`, `input image`, `target label`.
        test: its name.
        effect: in [0, 1]; at least this share of the distribution has moved.
        p_value: the probability of as much or more by chance alone.
        corrected: the same, allowing for all tests of the batch (Holm).
        drifted: improbable by chance, and large enough to matter.
    """

    what: str
    test: str
    effect: float
    p_value: float
    corrected: float
    drifted: bool


def measure(
    before: pa.Table, batch: pa.Table, schema: Schema, *, level: float = 0.01, effect: float = 0.1, seed: int = 0
) -> list[Drift]:
    """Compares new rows with those there are.

    Args:
        before: in the form of `distillery.table.build` or `rows_of`.
        batch: likewise.
        schema: of both.
        level: the chance of one false alarm or more, where nothing has drifted; far below 0.001 with many columns,
            only a Kolmogorov-Smirnov test can still find any.
        effect: the least that matters.
        seed: of what is drawn; neither the order of rows nor of columns changes a figure.

    Returns:
        One for each scalar column, image, vector and target, in the schema's order; none for a target of which a side
        has no label, and none at all where a side has no row.
    """
    if not (len(before) and len(batch)):
        return []
    tests = sum(len(spec.columns) for spec in schema.inputs.values()) + len(schema.targets)
    # Enough that the smallest p-value there can be is still small when corrected.
    draws = min(MOST_DRAWS, max(FEWEST_DRAWS, math.ceil(2 * tests / level)))
    found = list(_Pair(before, batch, draws, seed).tests(schema))
    corrected = holm([evidence.p_value for _, _, evidence in found])
    return [
        Drift(
            what=what,
            test=test,
            effect=evidence.effect,
            p_value=evidence.p_value,
            corrected=p_value,
            drifted=p_value < level and evidence.effect >= effect,
        )
        for (what, test, evidence), p_value in zip(found, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Pair:
    """Both sides, and how they are compared.

    Attributes:
        before: the rows there are.
        batch: the new ones.
        draws: for a p-value that is drawn.
        seed: of that.
    """

    before: pa.Table
    batch: pa.Table
    draws: int
    seed: int

    def tests(self, schema: Schema) -> Iterator[tuple[str, str, Evidence]]:
        """What is tested, by which test, and what it found."""
        for name, spec in schema.inputs.items():
            if spec.kind == "image" or table.is_vector(self.before.schema.field(spec.columns[0]).type):
                yield f"input {name}", *self._tensors(spec)
            else:
                for column in spec.columns:
                    yield f"input {column}", *self._numbers(column)
        for name, target in schema.targets.items():
            column = targets.column_of(name, schema.targets)
            known = _Pair(_known(self.before, column), _known(self.batch, column), self.draws, self.seed)
            if len(known.before) and len(known.batch):
                yield f"target {name}", *known._target(column, target.kind)

    def _tensors(self, spec: Input) -> tuple[str, Evidence]:
        """An image or a vector."""
        width = math.prod(spec.shape)
        sides = self._sample(spec.columns[0], max(2, MOST_NUMBERS // width))
        before, batch = (table.values(side, spec).reshape(-1, width).astype(np.float32) for side in sides)
        # Pixels share one scale, on which a faint one should count for little; numbers of a vector need not.
        return self._classified(before, batch, ranked=spec.kind == "numeric")

    def _numbers(self, column: str) -> tuple[str, Evidence]:
        """One scalar column, NaN where missing."""
        before, batch = (table.numbers(whole(side[column])) for side in (self.before, self.batch))
        values, place = np.unique(np.concatenate([before, batch]), return_inverse=True)
        if len(values) <= min(MOST_CATEGORIES, len(place) // ROWS_PER_CATEGORY):
            return self._categories(place[: len(before)], place[len(before) :])
        return "Kolmogorov-Smirnov", two_samples.kolmogorov_smirnov(before, batch)

    def _target(self, column: str, kind: Kind) -> tuple[str, Evidence]:
        """One target, of rows that have it; the batch may have names that are new."""
        if kind == "number":
            return self._numbers(column)
        described = targets.describe(pa.chunked_array(self.before[column].chunks + self.batch[column].chunks), kind)
        sides = (self.before, self.batch) if kind == "classes" else self._sample(column, MOST_ROWS)
        before, batch = (targets.values(side[column], described) for side in sides)
        return self._categories(before, batch) if kind == "classes" else self._classified(before, batch, ranked=True)

    def _categories(self, before: Integers, batch: Integers) -> tuple[str, Evidence]:
        """Numbers of categories, from 0."""
        size = 1 + max(before.max(), batch.max())
        counts = (np.bincount(side, minlength=size) for side in (before, batch))
        return "chi-squared", two_samples.chi_squared(*counts, draws=self.draws, seed=self.seed)

    def _classified(self, before: Floats, batch: Floats, *, ranked: bool) -> tuple[str, Evidence]:
        """Rows of numbers, (N, D) and (M, D)."""
        rows = np.concatenate([before, batch])
        rows = two_samples.ranks(rows) if ranked else rows
        return "classifier two-sample", two_samples.classifier(rows, len(batch), draws=self.draws, seed=self.seed)

    def _sample(self, column: str, most: int) -> Iterator[pa.Table]:
        """One column of each side, of rows drawn by a hash of their content: in the same order wherever they stand."""
        from pandas.util import hash_array

        for side in (self.before, self.batch):
            hashes = hash_array(side["content"].to_numpy(), hash_key=f"{self.seed:016x}")
            yield side.select([column]).take(pa.array(np.argsort(hashes, kind="stable")[: min(most, MOST_ROWS)]))


def _known(rows: pa.Table, column: str) -> pa.Table:
    """The rows that have a target."""
    return rows.select(["content", column]).filter(pc.is_valid(rows[column]))
