"""validate_soft_targets: the gate before a student listens to a teacher's stored words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.checks.expectations import Check, conclude, examine
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from distillery.columns import Columns
    from distillery.schema import Schema
    from tasks.params.sections import SoftTargetGate

BLOCK = 65_536
# Shares are summed in float64, of outputs that may have been stored as float16.
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
    frame = read_frame(stored.once(), stored.keys, parts)
    schema = parts["train"].schema
    rows = sum(len(part) for part in parts.values())
    checks = suite(rows, schema, stage.params.validation.soft_targets)
    outcomes = examine(frame, checks, suite=f"soft_targets-{key}", docs=stage.path("reports/data_docs"))
    targets = {name: _facts(frame, name, schema) for name in schema.targets}
    undecided = [each["entropy"] for each in targets.values() if each["entropy"] is not None]
    facts: dict[str, Any] = {
        "rows": rows,
        "labelled": max(int(frame[column("agrees", name, schema)].notna().sum()) for name in schema.targets),
        "agreement": _mean([each["agreement"] for each in targets.values()]),
        "entropy_share": _mean(undecided) if undecided else None,
        "targets": targets,
    }
    conclude(stage, f"soft_targets/{key}", outcomes, facts)
    return {name: facts[name] for name in ("rows", "agreement", "entropy_share") if facts[name] is not None}


def suite(rows: int, schema: "Schema", gate: "SoftTargetGate") -> list[Check]:
    """What soft targets must show: complete, aligned by id, finite, in agreement with the labels, not a shrug."""
    again = "run the stage soft_targets again with --force"
    checks = [
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
    ]
    for name, target in schema.targets.items():
        own_order = (
            ""
            if target.kind == "number"
            else f", or let your own teacher say its {target.kind} in this order: {_listed(target.names)}"
        )
        checks.append(
            Check(
                "expect_column_mean_to_be_between",
                {"column": column("agrees", name, schema), "min_value": gate.min_agreement},
                f"the teacher is too seldom right about {name}: train it better, lower "
                f"validation.soft_targets.min_agreement{own_order}",
            )
        )
        if target.kind != "number":
            undecided = column("entropy", name, schema)
            checks += [
                Check(
                    "expect_column_values_to_be_between",
                    {"column": undecided, "min_value": -TOLERANCE, "max_value": 1 + TOLERANCE},
                    "the entropy cannot be",
                ),
                Check(
                    "expect_column_mean_to_be_between",
                    {"column": undecided, "max_value": gate.max_entropy},
                    f"the teacher hardly tells the {target.kind} of {name} apart: train it better, or raise "
                    "validation.soft_targets.max_entropy",
                ),
            ]
    return checks


def column(what: str, target: str, schema: "Schema") -> str:
    """What the frame calls a figure of a target."""
    return what if len(schema.targets) == 1 else f"{what}_{target}"


def read_frame(
    logits: "npt.NDArray[np.floating]", keys: "npt.NDArray[np.uint64]", parts: "dict[str, Columns]"
) -> "pd.DataFrame":
    """One line a stored row, summed up block by block.

    Columns: `id` (16 hex digits, the hash of the row's id), `row_origin` (its place in the prepared data), `aligned`,
    `not_finite` (count), and for each target `entropy` (share of the largest; none for a number) and `agrees` (see
    `distillery.judging`; null where unlabelled or not aligned), with its name behind where there are several. Where
    rows are missing at the end, lines without an id stand for them.

    Args:
        logits: (N, O).
        keys: (N,), the rows they speak of.
        parts: the prepared splits in the order of the store.
    """
    import numpy as np
    import pandas as pd

    from distillery import judging

    schema = next(iter(parts.values())).schema
    expected = np.concatenate([part.keys for part in parts.values()])
    places = [f"{name} row {row + 1}" for name, part in parts.items() for row in range(len(part))]
    total, stored = max(len(keys), len(expected)), len(keys)
    common = min(stored, len(expected))
    aligned = np.zeros(total, bool)
    aligned[:common] = keys[:common] == expected[:common]
    not_finite = np.zeros(total)
    figures: dict[str, npt.NDArray[np.float64]] = {}
    for name, spec in schema.targets.items():
        target = np.concatenate([part.targets[name] for part in parts.values()])
        agrees, undecided = (np.full(total, np.nan) for _ in range(2))
        for start in range(0, stored, BLOCK):
            block = np.asarray(logits[start : start + BLOCK, schema.part(name)], np.float32)
            not_finite[start : start + len(block)] += (~np.isfinite(block)).sum(axis=1)
            known = min(len(block), max(0, common - start))
            agrees[start : start + known] = judging.agreement(block[:known], target[start : start + known], spec)
            shares = judging.entropy(block, spec)
            if shares is not None:
                undecided[start : start + len(block)] = shares
        if spec.kind != "number":
            figures[column("entropy", name, schema)] = undecided
        figures[column("agrees", name, schema)] = np.where(aligned, agrees, np.nan)
    return pd.DataFrame(
        {
            "id": [*(f"{key:016x}" for key in keys.tolist()), *[None] * (total - stored)],
            "row_origin": [*places, *(f"beyond the data, row {row + 1}" for row in range(len(expected), total))],
            "aligned": aligned,
            "not_finite": not_finite,
            **figures,
        }
    )


def _facts(frame: "pd.DataFrame", name: str, schema: "Schema") -> dict[str, float | None]:
    """The means of one target."""
    undecided = column("entropy", name, schema)
    return {
        "agreement": _mean(frame[column("agrees", name, schema)]),
        "entropy": _mean(frame[undecided]) if undecided in frame else None,
    }


def _mean(values: "Sequence[float | None] | pd.Series[float]") -> float:
    """The mean of what is there, rounded to what is worth reading."""
    import numpy as np

    return round(float(np.nanmean(np.asarray(values, np.float64))), 6)


def _listed(names: tuple[str, ...]) -> str:
    """The first of many names."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
