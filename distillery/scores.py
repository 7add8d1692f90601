"""What training looks at after each epoch, for every kind of target."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from distillery import metrics
from distillery.errors import UserError
from distillery.schema import MAIN, Schema, Target


def scores(
    outputs: npt.NDArray[np.floating[Any]], targets: Mapping[str, npt.NDArray[Any]], schema: Schema
) -> dict[str, float]:
    """Figures of the rows whose target is known.

    Args:
        outputs: (N, O) of all targets.
        targets: target name -> (N,) or (N, L).
        schema: tells which outputs speak of which target.

    Returns:
        Of classes `accuracy`, `macro_f1`; of labels `micro_f1`, `macro_f1`; of a number `r2`, `rmse`, `mae`; of several
        targets with the target's name and a dot in front. And `score`, the main one (`MAIN`) averaged over
        targets, and `nll`, summed over them: nats a row, of a number those of a Gaussian as wide as the target, without
        the constant.

    Raises:
        UserError: where no row of a target is known.
    """
    found: dict[str, float] = {}
    main, nll = [], 0.0
    for name, spec in schema.targets.items():
        known = spec.known(targets[name])
        if not known.any():
            raise UserError(f"no row of the split has a label in {name!r}, so nothing can be measured: label some")
        own = of_target(outputs[known][:, schema.part(name)], targets[name][known], spec)
        main.append(own[MAIN[spec.kind]])
        nll += own.pop("nll")
        found |= own if len(schema.targets) == 1 else {f"{name}.{key}": value for key, value in own.items()}
    return {"score": float(np.mean(main)), **found, "nll": nll}


def of_target(outputs: npt.NDArray[np.floating[Any]], target: npt.NDArray[Any], spec: Target) -> dict[str, float]:
    """The figures of one target, of which something is known in every row."""
    if spec.kind == "classes":
        return metrics.scores(outputs, target)
    if spec.kind == "labels":
        return _labels(outputs.astype(np.float64), target)
    return _number(outputs[:, 0].astype(np.float64), target.astype(np.float64), spec)


def _labels(logits: npt.NDArray[np.float64], target: npt.NDArray[Any]) -> dict[str, float]:
    """Each label is said where its probability is above one half; unknown ones count for nothing."""
    known = ~np.isnan(target)
    positive, said = known & (target == 1), known & (logits > 0)
    both = (positive & said).sum(axis=0)
    sizes = positive.sum(axis=0) + said.sum(axis=0)
    each = 2 * both / np.maximum(sizes, 1)
    surprise = np.logaddexp(0, logits) - np.where(positive, logits, 0)
    return {
        "micro_f1": float(2 * both.sum() / max(sizes.sum(), 1)),
        # A label that neither occurs nor is said has no F1.
        "macro_f1": float(each[sizes > 0].mean()) if (sizes > 0).any() else 0.0,
        "nll": float(np.where(known, surprise, 0).sum(axis=1).mean()),
    }


def _number(said: npt.NDArray[np.float64], target: npt.NDArray[np.float64], spec: Target) -> dict[str, float]:
    """R2 against the mean of these rows; where they are all equal, 1 for a perfect answer and else 0."""
    errors = np.square(said - target)
    spread = np.square(target - target.mean()).sum()
    r2 = 1 - errors.sum() / spread if spread else float(not errors.any())
    return {
        "r2": float(r2),
        "rmse": float(np.sqrt(errors.mean())),
        "mae": float(np.abs(said - target).mean()),
        "nll": float(errors.mean() / spec.deviation**2 / 2),
    }
