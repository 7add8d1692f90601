"""Two-sample tests: whether two sets of rows may come from one distribution, and how far apart the two are at least.

Every effect is a lower bound of the total variation distance, the largest difference in probability that the two give
to any event: 0.1 says that some kind of row has become at least ten points more frequent. What chance alone would show
in so few rows is taken off, so that figures of small and of large batches mean the same.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FOLDS = 5
COMPONENTS = 50
# The mean of Kolmogorov's distribution: what the statistic times the root of the rows comes to by chance.
KOLMOGOROV_MEAN = np.sqrt(np.pi / 2) * np.log(2)
_CHUNK = 4_000_000  # numbers held at once
_TINY = 1e-6


class Evidence(NamedTuple):
    """What one test found: `effect` in [0, 1], and the probability of as much or more by chance alone."""

    effect: float
    p_value: float


def kolmogorov_smirnov(before: Floats, batch: Floats) -> Evidence:
    """The largest difference of two distribution functions; ties make the p-value larger than it need be.

    A missing value counts as smaller than every other, so a change in their share is a difference as well.

    Args:
        before: (N,) numbers, NaN where missing.
        batch: (M,) likewise.
    """
    from scipy.stats import ks_2samp

    ours, theirs = (np.where(np.isnan(side), -np.inf, side) for side in (before, batch))
    found = ks_2samp(ours, theirs)
    chance = KOLMOGOROV_MEAN * np.sqrt(1 / len(before) + 1 / len(batch))
    return Evidence(max(0.0, float(found.statistic - chance)), float(found.pvalue))


def chi_squared(before: Integers, batch: Integers, *, draws: int, seed: int) -> Evidence:
    """Pearson's statistic against its exact distribution, drawn: rare categories need not be pooled.

    Given how often each category occurs in both together, the counts of a batch drawn at random are multivariate
    hypergeometric. The effect is the total variation distance of the frequencies, less its mean among the draws.

    Args:
        before: (K,) how many rows each category has; none lacks rows on both sides.
        batch: (K,) likewise.
        draws: how many batches are drawn.
        seed: of the draws.
    """
    total, size, others = before + batch, batch.sum(), before.sum()
    expected = total * (size / (size + others))
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(total, size, draws, method="marginals")
    # What the batch has too much of, the others have too little of.
    deviation = np.abs(np.concatenate([batch[None], drawn]) - expected)
    statistic = np.square(deviation) @ (1 / expected + 1 / (total - expected))
    distance = deviation.sum(axis=1) / 2 * (1 / size + 1 / others)
    return Evidence(max(0.0, float(distance[0] - distance[1:].mean())), _p_value(statistic[0], statistic[1:]))


def classifier(rows: Floats, batch: int, *, draws: int, seed: int) -> Evidence:
    """Whether a classifier tells rows of the batch from others that it has not seen (Lopez-Paz and Oquab 2017).

    The classifier is Fisher's linear discriminant, cross-validated; the statistic is the share of the batch that it
    takes for batch less the share of the others that it takes for batch, in expectation at most the total variation
    distance. Predictions of different folds depend on each other, so no binomial distribution holds for the number of
    hits; the p-value comes from repeating all of it with the rows relabelled at random within each fold, which is exact
    for any number of rows (Ojala and Garriga 2010). A linear discriminant does this for all relabellings at once.

    Args:
        rows: (N, D) of both sides, those of the batch last; within a side in an order that means nothing.
        batch: how many are of the batch.
        draws: how many times the rows are relabelled.
        seed: of that.

    Returns:
        No effect and a p-value of one where a side has a single row, since a classifier must train and be tried.
    """
    others = len(rows) - batch
    if min(batch, others) < 2:
        return Evidence(0.0, 1.0)
    read = features(rows, seed)
    fold = np.concatenate([np.arange(others), np.arange(batch)]) % FOLDS
    ours = np.repeat(np.array([0, 1], np.float32), [others, batch])
    observed = _told_apart(read, ours[:, None], fold)[0]
    chance = np.concatenate([_told_apart(read, each, fold) for each in _relabelled(ours, fold, draws, seed)])
    return Evidence(max(0.0, float(observed)), _p_value(observed, chance))


def features(rows: Floats, seed: int) -> npt.NDArray[np.float32]:
    """What the classifier reads: principal components, and what they leave out.

    A linear classifier sees means alone; the distance within the components and the one from them (T-squared and Q of
    process control, Jackson and Mudholkar 1979) show it noise and spread. No step looks at who is batch, so all rows
    may take part in it.

    Args:
        rows: (N, D), both sides.
        seed: of a randomised decomposition.

    Returns:
        (N, at most 52) of mean 0 and deviation 1; no column where all rows are equal.
    """
    from sklearn.decomposition import PCA

    centred = rows - rows.mean(axis=0)
    energy = np.einsum("nd,nd->n", centred, centred)
    if not energy.any():
        return np.empty((len(rows), 0), np.float32)
    scores = PCA(min(COMPONENTS, *centred.shape), copy=False, random_state=seed).fit_transform(centred)
    variance = scores.var(axis=0)
    within = _standard(scores[:, variance > _TINY * variance.max()])
    left = np.maximum(energy - np.square(scores).sum(axis=1), _TINY * energy.mean())
    around = np.log(np.stack([np.square(within).sum(axis=1) + _TINY, left], axis=1))
    return np.concatenate([within, _standard(around)], axis=1).astype(np.float32)


def ranks(rows: Floats) -> npt.NDArray[np.float32]:
    """Rows of both sides with each column replaced by its rank in (-1, 1): no unit, and no number too large.

    Missing values get the middle rank, and a last column their share in each row.
    """
    from scipy.stats import rankdata

    gaps = np.isnan(rows)
    ranked = rankdata(rows, axis=0, nan_policy="omit")
    known = (~gaps).sum(axis=0)
    middle = np.where(gaps, 0.0, (2 * ranked - known - 1) / np.maximum(known, 1))
    return np.concatenate([middle, gaps.mean(axis=1, keepdims=True)], axis=1).astype(np.float32)


def _standard(columns: Floats) -> Floats:
    """Mean 0 and deviation 1; a constant column stays constant."""
    centred = columns - columns.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1))


def _relabelled(ours: Floats, fold: Integers, draws: int, seed: int) -> Iterator[Floats]:
    """(N, B) blocks of labels, each column with as many of the batch in every fold as there are."""
    random = np.random.default_rng(seed)
    block = max(1, _CHUNK // len(ours))
    for start in range(0, draws, block):
        labels = np.empty((len(ours), min(block, draws - start)), np.float32)
        for number in range(FOLDS):
            inside = fold == number
            labels[inside] = random.permuted(np.tile(ours[inside], (labels.shape[1], 1)), axis=1).T
        yield labels


def _told_apart(rows: Floats, ours: Floats, fold: Integers) -> Floats:
    """How much more often the batch is taken for batch than the others are, by a classifier that has not seen them.

    Args:
        rows: (N, d) standardised.
        ours: (N, B) 1 for a row of the batch, for each labelling.
        fold: (N,) in which each row is tried.

    Returns:
        (B,) in [-1, 1].
    """
    hits, alarms = np.zeros((2, ours.shape[1]))
    for number in range(FOLDS):
        tried, known = fold == number, fold != number
        seen, label = rows[known], ours[known]
        sums = seen.T @ label
        batch = sums / label.sum(axis=0)
        others = (seen.sum(axis=0)[:, None] - sums) / (1 - label).sum(axis=0)
        # Shrunk the more, the fewer rows there are for each direction.
        spread = (seen.T @ seen + np.eye(seen.shape[1], dtype=seen.dtype) * seen.shape[1]) / len(seen)
        direction = np.linalg.solve(spread, batch - others)
        taken = rows[tried] @ direction > ((batch + others) / 2 * direction).sum(axis=0)
        hits += (taken * ours[tried]).sum(axis=0)
        alarms += (taken * (1 - ours[tried])).sum(axis=0)
    size = ours[:, 0].sum()
    return np.asarray(hits / size - alarms / (len(ours) - size))


def _p_value(observed: float, chance: Floats) -> float:
    """With the observed one among the draws, so that it is never zero (Phipson and Smyth 2010)."""
    return float((1 + (chance >= observed - 1e-9 * abs(observed)).sum()) / (1 + len(chance)))
