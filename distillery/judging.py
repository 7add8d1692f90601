"""What a teacher's outputs for each row are worth: how sure it is, and how far it agrees with what is known."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from distillery.schema import Target

Doubles = npt.NDArray[np.float64]


def entropy(outputs: npt.NDArray[np.floating[Any]], spec: Target) -> Doubles | None:
    """How undecided each row is: entropy as a share of the largest that could be.

    Args:
        outputs: (N, width) of one target.
        spec: that target.

    Returns:
        (N,) in 0..1; for labels the mean over them; NaN where an output is not finite; None for a number.
    """
    if spec.kind == "number":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        if spec.kind == "labels":
            size = np.abs(outputs.astype(np.float64))
            surprise = np.log1p(np.exp(-size)) + size / (1 + np.exp(size))
            return np.asarray(surprise.mean(axis=1) / math.log(2))
        shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        total = weights.sum(axis=1)
        nats = np.log(total) - (weights * shifted).sum(axis=1) / total
        return np.asarray(nats / math.log(max(2, spec.width)))


def agreement(outputs: npt.NDArray[np.floating[Any]], target: npt.NDArray[Any], spec: Target) -> Doubles:
    """How far each row agrees with its target, 1 at best.

    Args:
        outputs: (N, width) of one target.
        target: (N,) or (N, L).
        spec: that target.

    Returns:
        (N,): of classes whether the first is the label; of labels the F1 of the known ones; of a number one minus the
        squared error in units of its deviation, whose mean is R2. NaN where nothing is known or an output is not
        finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if spec.kind == "classes":
            agrees = (outputs.argmax(axis=1) == target).astype(np.float64)
        elif spec.kind == "labels":
            known = ~np.isnan(target)
            positive, said = known & (target == 1), known & (outputs > 0)
            sizes = positive.sum(axis=1) + said.sum(axis=1)
            agrees = np.where(sizes > 0, 2 * (positive & said).sum(axis=1) / np.maximum(sizes, 1), 1.0)
        else:
            agrees = 1 - np.square((outputs[:, 0].astype(np.float64) - target) / spec.deviation)
    return np.where(spec.known(target) & np.isfinite(outputs).all(axis=1), agrees, np.nan)
