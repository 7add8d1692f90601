"""Figures that are functions of sums over rows, and bootstrap intervals of them; for every kind of target."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distillery.metrics import Difference, Interval
from distillery.schema import MAIN, Schema, Target

Doubles = npt.NDArray[np.float64]
Outputs = npt.NDArray[np.floating[Any]]

# Beyond this many rows, sums of rows drawn at random are resampled instead of rows: as wide, and the cost stays flat.
MOST_ROWS = 4096
_CHUNK = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Figure:
    """A figure of one model.

    Attributes:
        rows: (N, K) what each row adds; nothing where its target is unknown.
        value: (R, K) sums to (R,) figures.
    """

    rows: Doubles
    value: Callable[[Doubles], Doubles]

    @property
    def observed(self) -> float:
        """On the rows as they are."""
        return float(self.value(self.rows.sum(axis=0)[None])[0])

    @classmethod
    def mean(cls, figures: list["Figure"]) -> Self:
        """The mean of several figures of the same rows."""
        ends = np.cumsum([figure.rows.shape[1] for figure in figures])
        starts = ends - [figure.rows.shape[1] for figure in figures]

        def value(sums: Doubles) -> Doubles:
            parts = [figure.value(sums[:, start:end]) for figure, start, end in zip(figures, starts, ends, strict=True)]
            return np.asarray(np.mean(parts, axis=0))

        return cls(np.concatenate([figure.rows for figure in figures], axis=1), value)


def figures(outputs: Outputs, target: npt.NDArray[Any], spec: Target) -> dict[str, Figure]:
    """What can be said of one target.

    Args:
        outputs: (N, width) of that target.
        target: (N,) or (N, L).
        spec: the target.

    Returns:
        Of classes `accuracy`; of labels `micro_f1` and `macro_f1`; of a number `r2`, `rmse` and `mae`.
    """
    if spec.kind == "classes":
        known = spec.known(target)
        hit = known & (outputs.argmax(axis=1) == target)
        return {"accuracy": Figure(_columns(hit, known), lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1))}
    return _label_figures(outputs, target) if spec.kind == "labels" else _number_figures(outputs, target)


def main(outputs: Outputs, targets: Mapping[str, npt.NDArray[Any]], schema: Schema) -> Figure:
    """The main figure of every target, averaged: `score`.

    Args:
        outputs: (N, O) of all targets.
        targets: target name -> (N,) or (N, L).
        schema: tells which outputs speak of which target.
    """
    return Figure.mean(
        [
            figures(outputs[:, schema.part(name)], targets[name], spec)[MAIN[spec.kind]]
            for name, spec in schema.targets.items()
        ]
    )


def interval(figure: Figure, *, resamples: int, confidence: float, seed: int) -> Interval:
    """The observed figure and its percentile-bootstrap interval."""
    draws = figure.value(_sums(figure.rows, resamples, seed))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(figure.observed, float(low), float(high))


def difference(first: Figure, second: Figure, *, resamples: int, confidence: float, seed: int) -> Difference:
    """First minus second on the same rows: paired bootstrap, with a two-sided p-value that inverts the interval."""
    width = first.rows.shape[1]
    sums = _sums(np.concatenate([first.rows, second.rows], axis=1), resamples, seed)
    draws = first.value(sums[:, :width]) - second.value(sums[:, width:])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p_value = min(1.0, 2.0 * (beyond + 1) / (resamples + 1))
    return Difference(first.observed - second.observed, float(low), float(high), p_value)


def _sums(rows: Doubles, resamples: int, seed: int) -> Doubles:
    """(resamples, K) sums over rows drawn with replacement."""
    generator = np.random.default_rng(seed)
    if len(rows) > MOST_ROWS:
        # Neighbours in a table are alike, and sums of those would vary more than sums of any rows.
        rows = generator.permutation(rows)
        starts = np.linspace(0, len(rows), MOST_ROWS, endpoint=False).astype(np.int64)
        rows = np.add.reduceat(rows, starts)
    share = np.full(len(rows), 1 / len(rows))
    size = max(1, _CHUNK // len(rows))
    parts = [
        generator.multinomial(len(rows), share, size=min(size, resamples - start)) @ rows
        for start in range(0, resamples, size)
    ]
    return np.concatenate(parts)


def _columns(*columns: npt.NDArray[Any]) -> Doubles:
    return np.stack(columns, axis=1).astype(np.float64)


def _label_figures(outputs: Outputs, target: npt.NDArray[Any]) -> dict[str, Figure]:
    """A label is said where its probability is above one half."""
    known = ~np.isnan(target)
    positive, said = known & (target == 1), known & (outputs > 0)
    labels = target.shape[1]

    def macro(sums: Doubles) -> Doubles:
        both, sizes = sums[:, :labels], sums[:, labels:]
        occurring = (sizes > 0).sum(axis=1)
        return np.asarray((2 * both / np.maximum(sizes, 1)).sum(axis=1) / np.maximum(occurring, 1))

    both, sizes = (positive & said).astype(np.float64), positive.astype(np.float64) + said
    return {
        "micro_f1": Figure(
            _columns(both.sum(axis=1), sizes.sum(axis=1)), lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1], 1)
        ),
        "macro_f1": Figure(np.concatenate([both, sizes], axis=1), macro),
    }


def _number_figures(outputs: Outputs, target: npt.NDArray[Any]) -> dict[str, Figure]:
    """R2 against the mean of the rows drawn."""
    known = ~np.isnan(target)
    # Around the middle, so that squares of large numbers do not drown their differences.
    middle = float(target[known].mean(dtype=np.float64)) if known.any() else 0.0
    truth = np.where(known, target.astype(np.float64) - middle, 0.0)
    error = np.where(known, outputs[:, 0].astype(np.float64) - middle - truth, 0.0)

    def r2(sums: Doubles) -> Doubles:
        squares, total, total_squares, count = sums.T
        spread = total_squares - np.square(total) / np.maximum(count, 1)
        perfect = np.where(squares == 0, 1.0, 0.0)
        return np.asarray(np.where(spread > 0, 1 - squares / np.where(spread > 0, spread, 1), perfect))

    return {
        "r2": Figure(_columns(np.square(error), truth, np.square(truth), known), r2),
        "rmse": Figure(_columns(np.square(error), known), lambda sums: np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], 1))),
        "mae": Figure(_columns(np.abs(error), known), lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)),
    }
