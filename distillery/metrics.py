"""What is measured of a classifier's outputs, with bootstrap intervals; NumPy alone.

Everywhere `logits` are (N, C) floats, `target` and predictions (N,) class numbers; a negative target marks a row
without a label, which counts for nothing but agreement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distillery.errors import UserError

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Numbers held at once while resampling: 32 MB, and still thousands of resamples a pass for a few hundred cells.
_CHUNK = 4_000_000


def scores(logits: Floats, target: Integers) -> dict[str, float]:
    """What training looks at after each epoch: `accuracy`, `macro_f1` and `nll` of the labelled rows.

    Raises:
        UserError: where no row has a label.
    """
    logits, target = _labelled(logits, target)
    cells = Cells.count(target, logits.argmax(axis=1))
    observed = cells.counts[None]
    return {
        "accuracy": float(accuracy(cells, observed)[0]),
        "macro_f1": float(macro_f1(cells, observed)[0]),
        "nll": nll(logits, target),
    }


def _labelled(logits: Floats, target: Integers) -> tuple[Floats, Integers]:
    """The rows that have a label, at least one."""
    known = target >= 0
    if known.all() and len(target):
        return logits, target
    if not known.any():
        raise UserError("no row of the split has a label, so nothing can be measured: label some of its rows")
    return logits[known], target[known]


def log_softmax(logits: Floats) -> Doubles:
    """(N, C) log-probabilities in double precision."""
    shifted: Doubles = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def nll(logits: Floats, target: Integers) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    logits, target = _labelled(logits, target)
    return float(-log_softmax(logits)[np.arange(len(target)), target].mean())


def kl(teacher: Floats, student: Floats) -> float:
    """KL(teacher || student), in nats, mean over the rows, at temperature 1."""
    expected = log_softmax(teacher)
    return float((np.exp(expected) * (expected - log_softmax(student))).sum(axis=1).mean())


def confusion(target: Integers, predicted: Integers, classes: int) -> Integers:
    """(C, C) counts of labelled rows, a row for each true class."""
    known = target >= 0
    flat = target[known] * classes + predicted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def recall(matrix: Integers) -> list[float | None]:
    """Share of each class that was found, from a confusion matrix; None for a class without rows."""
    support = matrix.sum(axis=1)
    return [float(hits / rows) if rows else None for hits, rows in zip(matrix.diagonal(), support, strict=True)]


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence (largest probability) lies in (low, high]; means are None where there are none."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


def calibration(logits: Floats, target: Integers, bins: int = 15) -> tuple[float, list[Bin]]:
    """Expected calibration error (Naeini et al. 2015) over equal-width bins, and its reliability table."""
    logits, target = _labelled(logits, target)
    confidence = np.exp(log_softmax(logits).max(axis=1))
    correct = logits.argmax(axis=1) == target
    edges = np.linspace(0.0, 1.0, bins + 1)
    where = np.digitize(confidence, edges[1:-1], right=True)
    rows = np.bincount(where, minlength=bins)
    sums = np.bincount(where, weights=confidence, minlength=bins)
    hits = np.bincount(where, weights=correct, minlength=bins)
    table = [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            int(rows[i]),
            float(sums[i] / rows[i]) if rows[i] else None,
            float(hits[i] / rows[i]) if rows[i] else None,
        )
        for i in range(bins)
    ]
    return float(np.abs(sums - hits).sum() / len(target)), table


@dataclass(frozen=True)
class Cells:
    """Rows counted by what can be said of them: (target, prediction of one model, of another, ...).

    Accuracy, F1 and agreement depend on these counts alone. Drawing N rows with replacement is drawing the counts
    from a multinomial, so a bootstrap over cells is exact and costs the same for a thousand rows and for a billion.

    Attributes:
        columns: (M, K) class numbers, K distinct combinations in lexical order.
        counts: (K,) rows of each.
    """

    columns: Integers
    counts: Integers

    @classmethod
    def count(cls, *columns: Integers) -> Self:
        """Counts N rows, given as M columns (N,) of class numbers from -1 upwards."""
        base = max(int(column.max()) for column in columns) + 2
        code = np.zeros(len(columns[0]), dtype=np.int64)
        for column in columns:
            code = code * base + (column + 1)
        codes, counts = np.unique(code, return_counts=True)
        digits = [codes // base**power % base - 1 for power in reversed(range(len(columns)))]
        return cls(np.stack(digits), counts.astype(np.int64))


# (cells, counts (R, K) of R resamples) -> (R,)
Statistic = Callable[[Cells, Integers], Doubles]


def accuracy(cells: Cells, counts: Integers, model: int = 1) -> Doubles:
    """Share of rows where column `model` equals the target, column 0."""
    hit = cells.columns[model] == cells.columns[0]
    share: Doubles = counts[:, hit].sum(axis=1) / counts.sum(axis=1)
    return share


def macro_f1(cells: Cells, counts: Integers, model: int = 1) -> Doubles:
    """F1 of each class that occurs among targets or predictions, averaged (scikit-learn's default)."""
    target, predicted = cells.columns[0], cells.columns[model]
    support, positives = _sums(target, counts), _sums(predicted, counts)
    hit = np.flatnonzero(target == predicted)
    # Several cells may share a class where a second model splits them.
    both = _sums(np.concatenate([target[hit], [-1]]), np.pad(counts[:, hit], ((0, 0), (0, 1))))
    classes = sorted(support.keys() | positives.keys())
    nothing = np.zeros(len(counts), dtype=np.int64)
    occurring = np.zeros(len(counts))
    total = np.zeros(len(counts))
    for number in classes:
        seen = support.get(number, nothing) + positives.get(number, nothing)
        occurring += seen > 0
        total += 2.0 * both.get(number, nothing) / np.maximum(seen, 1)
    return total / occurring


def _sums(labels: Integers, counts: Integers) -> dict[int, Integers]:
    """Class number -> (R,) counts of the cells with that label."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    sums = np.add.reduceat(counts[:, order], starts, axis=1)
    return {int(number): sums[:, i] for i, number in enumerate(classes)}


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile-bootstrap interval."""

    value: float
    low: float
    high: float


def interval(cells: Cells, statistic: Statistic, *, resamples: int, confidence: float, seed: int) -> Interval:
    """The observed figure and its percentile interval over `resamples` draws of the rows."""
    draws = _resampled(cells, statistic, resamples, seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(cells, cells.counts[None])[0]), float(low), float(high))


def _resampled(cells: Cells, statistic: Statistic, resamples: int, seed: int) -> Doubles:
    """(resamples,) values of the statistic on rows drawn with replacement."""
    generator = np.random.default_rng(seed)
    rows = int(cells.counts.sum())
    share = cells.counts / rows
    size = max(1, _CHUNK // len(share))
    parts = [
        statistic(cells, generator.multinomial(rows, share, size=min(size, resamples - start)))
        for start in range(0, resamples, size)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Difference:
    """A minus B on the same rows, with its percentile interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def paired_difference(
    target: Integers,
    predictions: tuple[Integers, Integers],
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Difference:
    """Paired bootstrap of how much better the first of two models is.

    Args:
        target: (N,); rows without a label are left out.
        predictions: two times (N,), of A and of B, on the same rows.
        metric: `accuracy` or `macro_f1`.
        resamples: draws of the rows.
        confidence: of the interval, 0.95 for instance.
        seed: of the draws.

    Returns:
        The p-value inverts the interval: the smallest level at which it would leave out zero.
    """
    known = target >= 0
    if not known.any():
        raise UserError("no row of the split has a label, so models cannot be compared: label some of its rows")
    cells = Cells.count(target[known], *(predicted[known] for predicted in predictions))
    measure = METRICS[metric]

    def difference(cells: Cells, counts: Integers) -> Doubles:
        return measure(cells, counts, 1) - measure(cells, counts, 2)

    draws = _resampled(cells, difference, resamples, seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(
        float(difference(cells, cells.counts[None])[0]),
        float(low),
        float(high),
        min(1.0, 2.0 * (beyond + 1) / (resamples + 1)),
    )


METRICS: dict[str, Callable[[Cells, Integers, int], Doubles]] = {"accuracy": accuracy, "macro_f1": macro_f1}


def agreement(predicted: Integers, teacher: Integers, *, resamples: int, confidence: float, seed: int) -> Interval:
    """Share of rows, labelled or not, where student and teacher say the same class."""
    return interval(Cells.count(teacher, predicted), accuracy, resamples=resamples, confidence=confidence, seed=seed)
