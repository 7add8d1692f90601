"""Means over seeds, paired differences, and p-values that allow for how many there are."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from scipy.special import stdtr, stdtrit

from distillery.config import Config


class Figure(Config):
    """A mean with its t interval.

    Attributes:
        value: the mean.
        low: lower end; None where one value tells nothing about chance.
        high: upper end.
    """

    value: float
    low: float | None
    high: float | None


class Gain(Config):
    """A paired difference.

    Attributes:
        difference: its mean and interval.
        p_value: two-sided, uncorrected; None where one pair, or equal ones, tell nothing about chance.
        corrected: the same, allowing for all comparisons.
    """

    difference: Figure
    p_value: float | None = Field(ge=0.0, le=1.0)
    corrected: float | None = Field(None, ge=0.0, le=1.0)


def mean(values: Sequence[float], confidence: float) -> Figure:
    """The mean of independent values and Student's interval, `mean +- t(n - 1) * s / sqrt(n)`."""
    found = np.asarray(values, dtype=np.float64)
    middle, n = float(found.mean()), len(found)
    if n < 2:
        return Figure(value=middle, low=None, high=None)
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * found.std(ddof=1) / np.sqrt(n))
    return Figure(value=middle, low=middle - half, high=middle + half)


def gain(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> Gain:
    """Ours minus theirs, seed by seed, with the paired t test.

    Args:
        ours: (n,) one for each seed.
        theirs: (n,) of the same seeds.
        confidence: of the interval.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    found = mean(differences.tolist(), confidence)
    n = len(differences)
    if n < 2:
        return Gain(difference=found, p_value=None)
    error = float(differences.std(ddof=1) / np.sqrt(n))
    if error == 0:
        # The same difference with every seed, as a small test split shows by chance: no spread to compare it with.
        return Gain(difference=Figure(value=found.value, low=None, high=None), p_value=None if found.value else 1.0)
    return Gain(difference=found, p_value=float(2 * stdtr(n - 1, -abs(found.value) / error)))
