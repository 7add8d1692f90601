"""validate_soft_targets: the gate before a student listens to a teacher's stored words."""

import math
from typing import TYPE_CHECKING

from tasks.expectations import Check, conclude, examine
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from distillery.columns import Columns
    from tasks.params import SoftTargetGate

BLOCK = 65_536
# Probabilities of float16 logits are summed in float32.
TOLERANCE = 1e-4


def run(stage: Stage) -> Summary:
    """Checks the soft targets of one teacher as data; writes `reports/soft_targets/<key>.json`.

    Raises:
        UserError: where the store is damaged or of another teacher, or its rows fail the suite.
    """
    from distillery.columns import Columns
    from distillery.saved import digest
    from distillery.soft_targets import SoftTargets

    key = stage.item
    parts = {name: Columns.open(stage.path(f"data/prepared/{name}")) for name in ("train", "validation")}
    stored = SoftTargets.open(stage.path(f"data/soft_targets/{key}"), digest(stage.path(f"models/teachers/{key}")))
    frame = read_frame(stored.logits, stored.keys, parts)
    classes = len(parts["train"].schema.classes)
    rows = sum(len(part) for part in parts.values())
    checks = suite(rows, classes, stage.params.validation.soft_targets)
    outcomes = examine(frame, checks, suite=f"soft_targets-{key}", docs=stage.path("reports/data_docs"))
    facts = {
        "rows": rows,
        "labelled": int(frame["agrees"].notna().sum()),
        "agreement": _mean(frame["agrees"]),
        "entropy": _mean(frame["entropy"]),
        "entropy_share": _mean(frame["entropy"]) / math.log(classes),
    }
    conclude(stage, f"soft_targets/{key}", outcomes, facts)
    return {name: facts[name] for name in ("rows", "agreement", "entropy_share")}


def suite(rows: int, classes: int, gate: "SoftTargetGate") -> list[Check]:
    """What soft targets must show: complete, aligned by id, finite, in agreement with the labels, not a shrug."""
    most = gate.max_entropy * math.log(classes)
    again = "run the stage soft_targets again with --force"
    return [
        Check("expect_table_row_count_to_equal", {"value": rows}, f"rows are missing or too many; {again}"),
        Check(
            "expect_column_values_to_not_be_null", {"column": "id"}, f"a row of the data has no soft target; {again}"
        ),
        Check("expect_column_values_to_be_unique", {"column": "id"}, f"a row stands twice; {again}"),
        Check(
            "expect_column_values_to_be_in_set",
            {"column": "aligned", "value_set": [True]},
            f"the stored row is another one than the data's at this place; {again}",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "not_finite", "max_value": 0},
            "the teacher's output is infinite or NaN; lower its learning rate, or set soft_targets.dtype: float32",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "highest_probability", "min_value": 1 / classes - TOLERANCE, "max_value": 1 + TOLERANCE},
            "the highest probability cannot be",
        ),
        Check(
            "expect_column_values_to_be_between",
            {"column": "entropy", "min_value": -TOLERANCE, "max_value": math.log(classes) + TOLERANCE},
            "the entropy cannot be",
        ),
        Check(
            "expect_column_mean_to_be_between",
            {"column": "agrees", "min_value": gate.min_agreement},
            "the teacher's first class is too seldom the label: train it better, or lower "
            "validation.soft_targets.min_agreement",
        ),
        Check(
            "expect_column_mean_to_be_between",
            {"column": "entropy", "max_value": most},
            "the teacher hardly tells the classes apart: train it better, or raise validation.soft_targets.max_entropy",
        ),
    ]


def read_frame(
    logits: "npt.NDArray[np.floating]", keys: "npt.NDArray[np.uint64]", parts: "dict[str, Columns]"
) -> "pd.DataFrame":
    """One line a stored row, summed up block by block.

    Columns: `id` (16 hex digits, the hash of the row's id), `row_origin` (its place in the prepared data), `aligned`,
    `not_finite` (count), `highest_probability`, `entropy` (nats; both null where not finite), `agrees` (1.0 or 0.0,
    null where unlabelled or not aligned). Where rows are missing at the end, lines without an id stand for them.

    Args:
        logits: (N, C).
        keys: (N,), the rows they speak of.
        parts: the prepared splits in the order of the store.
    """
    import numpy as np
    import pandas as pd

    expected = np.concatenate([part.keys for part in parts.values()])
    target = np.concatenate([part.target for part in parts.values()])
    places = [f"{name} row {row + 1}" for name, part in parts.items() for row in range(len(part))]
    total, stored = max(len(keys), len(expected)), len(keys)
    common = min(stored, len(expected))
    aligned = np.zeros(total, bool)
    aligned[:common] = keys[:common] == expected[:common]
    not_finite, first = np.zeros(total), np.zeros(total, np.int64)
    highest, entropy, agrees = (np.full(total, np.nan) for _ in range(3))
    for start in range(0, stored, BLOCK):
        block = np.asarray(logits[start : start + BLOCK], np.float32)
        rows = slice(start, start + len(block))
        finite = np.isfinite(block)
        not_finite[rows] = (~finite).sum(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = block - block.max(axis=1, keepdims=True)
            weights = np.exp(shifted)
            total_weight = weights.sum(axis=1)
            highest[rows] = 1 / total_weight
            entropy[rows] = np.log(total_weight) - (weights * shifted).sum(axis=1) / total_weight
        first[rows] = block.argmax(axis=1)
    labelled = np.zeros(total, bool)
    labelled[:common] = aligned[:common] & (target[:common] >= 0) & (not_finite[:common] == 0)
    agrees[labelled] = first[labelled] == np.resize(target, total)[labelled]
    return pd.DataFrame(
        {
            "id": [*(f"{key:016x}" for key in keys.tolist()), *[None] * (total - stored)],
            "row_origin": [*places, *(f"beyond the data, row {row + 1}" for row in range(len(expected), total))],
            "aligned": aligned,
            "not_finite": not_finite,
            "highest_probability": highest,
            "entropy": entropy,
            "agrees": agrees,
        }
    )


def _mean(values: "pd.Series[float]") -> float:
    """The mean of what is there, rounded to what is worth reading."""
    return round(float(values.mean()), 6)
