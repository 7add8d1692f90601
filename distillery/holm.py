"""P-values of several tests that are looked at together."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of one false alarm among all stays below the level.

    Args:
        p_values: of all tests.

    Returns:
        Corrected, in the same order.
    """
    found = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(found)
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, found[order] * np.arange(len(found), 0, -1)))
    return [float(value) for value in corrected]
