"""Checks on a data frame by Great Expectations: one suite in, outcomes and an HTML page out."""

import difflib
import json
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from tasks.stage import Stage

MOST_IDS = 50
MOST_EXAMPLES = 10
SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Check:
    """One expectation.

    Attributes:
        type: Great Expectations' name, `expect_column_values_to_not_be_null`.
        arguments: what that expectation takes.
        message: what it means when it fails, and the mend.
        key: where the user wrote it, `validation.expectations[0]`; empty for the program's own.
    """

    type: str
    arguments: dict[str, Any]
    message: str = ""
    key: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        check: the check.
        success: whether it holds.
        observed: what was seen.
        failing_count: rows that fail; None where the check is not about single rows.
        failing_ids: the first of them.
        examples: id, origin and value of some.
    """

    check: Check
    success: bool
    observed: Any
    failing_count: int | None
    failing_ids: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """What goes into a JSON report."""
        return {
            "type": self.check.type,
            "arguments": self.check.arguments,
            "success": self.success,
            "observed": self.observed,
            "failing_count": self.failing_count,
            "failing_ids": self.failing_ids,
            "examples": self.examples,
            "message": "" if self.success else self.check.message,
        }


def examine(frame: "pd.DataFrame", checks: Sequence[Check], *, suite: str, docs: Path) -> list[Outcome]:
    """Runs a suite over a frame with the columns `id` and `row_origin`, and writes `<docs>/<suite>.html`.

    Args:
        frame: one row each; what is to be checked as scalar columns.
        checks: the suite.
        suite: its name.
        docs: folder of the HTML pages; its index is written anew.

    Returns:
        One outcome for each check, in their order.

    Raises:
        UserError: where a check of the user's has an unknown type, wrong arguments or does not fit the frame.
    """
    # Entry points set this too; a call from elsewhere must not phone home either.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from tasks.checks.data_docs import write_page

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    expectations = [_expectation(check, number) for number, check in enumerate(checks)]
    asset = context.data_sources.add_pandas("frame").add_dataframe_asset(suite)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
    # Not through a validation definition: its store cannot write the results of every expectation as JSON.
    result = batch.validate(
        gx.ExpectationSuite(name=suite, expectations=expectations),
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": MOST_IDS,
            "unexpected_index_column_names": ["id", "row_origin"],
            "return_unexpected_index_query": False,
        },
    )
    by_number = {_number(item): item for item in result.results}
    columns = [str(column) for column in frame]
    outcomes = [_outcome(check, by_number[number], columns) for number, check in enumerate(checks)]
    write_page(docs, suite, result)
    return outcomes


def conclude(stage: "Stage", report: str, outcomes: Sequence[Outcome], facts: dict[str, Any]) -> None:
    """Writes `reports/<report>.json` where all is well; else `reports/failed/<report>.json`, and stops.

    Args:
        stage: the gate.
        report: name of the report.
        outcomes: what `examine` found.
        facts: what else the report tells.

    Raises:
        UserError: where a check failed; the table of failures is in the terminal by then.
    """
    failed = [outcome for outcome in outcomes if not outcome.success]
    document = {"success": not failed, **facts, "expectations": [outcome.document() for outcome in outcomes]}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    kept = stage.path(f"reports/failed/{report}.json")
    if not failed:
        stage.output(f"reports/{report}.json").write_text(text, encoding="utf-8")
        kept.unlink(missing_ok=True)
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")
    stage.progress.console.print(
        _failures(failed, f"{stage.name}: {len(failed)} of {len(outcomes)} expectations failed")
    )
    raise UserError(
        f"{stage.name}: {len(failed)} of {len(outcomes)} expectations failed, first: "
        f"{failed[0].check.message or failed[0].check.key}. All of them with ids: {kept}; "
        f"as a page: {stage.path('reports/data_docs/index.html')}"
    )


def _failures(failed: Sequence[Outcome], title: str) -> "Table":
    """What failed, for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_lines=True)
    for heading in ("expectation", "what is wrong", "rows", "examples"):
        table.add_column(heading, overflow="fold")
    for outcome in failed:
        arguments = ", ".join(f"{name}={value}" for name, value in outcome.check.arguments.items())
        examples = [
            f"{item['id']} ({item['row_origin']}): {item['value']}" for item in outcome.examples[:SHOWN_EXAMPLES]
        ]
        table.add_row(
            escape(f"{outcome.check.type}\n{textwrap.shorten(arguments, 200)}"),
            escape(outcome.check.message or outcome.check.key),
            "" if outcome.failing_count is None else str(outcome.failing_count),
            escape("\n".join(examples) or f"observed: {outcome.observed}"),
        )
    return table


def _expectation(check: Check, number: int) -> Any:
    """Great Expectations' object for a check."""
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    try:
        kind = get_expectation_impl(check.type)
    except ExpectationNotFoundError:
        close = difflib.get_close_matches(check.type, list_registered_expectation_implementations(), 1)
        hint = f"did you mean {close[0]}?" if close else "names are listed at greatexpectations.io/expectations"
        raise UserError(f"{check.key}: {check.type} is no expectation of Great Expectations; {hint}") from None
    try:
        return kind(**check.arguments | {"meta": {"number": number}})
    except (ValueError, TypeError) as error:
        details = getattr(error, "errors", None)
        reasons = (
            [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in details()]
            if callable(details)
            else [str(error)]
        )
        raise UserError(f"{check.key}: {check.type}: {'; '.join(reasons)}") from error


def _number(item: Any) -> int:
    """The place of a result's check in the suite: results come in another order."""
    number: int = item.expectation_config.meta["number"]
    return number


def _outcome(check: Check, item: Any, columns: list[str]) -> Outcome:
    """Reads Great Expectations' result."""
    failure = _exception(item.exception_info)
    if failure:
        if check.key:
            raise UserError(f"{check.key}: {check.type}: {failure} (columns: {', '.join(columns)})")
        raise RuntimeError(f"{check.type} {check.arguments}: {failure}")
    result = item.result
    index = result.get("partial_unexpected_index_list") or []
    count = result.get("unexpected_count")
    if "observed_value" in result and "element_count" not in result:
        observed = _plain(result["observed_value"])
    else:
        observed = {"failing": count, "of": result.get("element_count")} if count is not None else None
    if result.get("partial_missing_list"):
        observed = {"missing": _plain(result["partial_missing_list"])}
    return Outcome(
        check=check,
        success=bool(item.success),
        observed=observed,
        failing_count=count,
        failing_ids=[str(row["id"]) for row in index[:MOST_IDS]],
        examples=[_example(row) for row in index[:MOST_EXAMPLES]],
    )


def _example(row: dict[str, Any]) -> dict[str, Any]:
    """One failing row: its id, where it came from, and the value in question."""
    values = [value for name, value in row.items() if name not in ("id", "row_origin")]
    # An expectation about `id` itself has no further value.
    value = row["id"] if not values else values[0] if len(values) == 1 else values
    return {"id": str(row["id"]), "row_origin": str(row["row_origin"]), "value": _plain(value)}


def _exception(info: dict[str, Any]) -> str:
    """The message of an expectation that could not be evaluated; empty where it could."""
    # One entry for each metric, or one for the whole.
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry["raised_exception"]), "")


def _plain(value: Any) -> Any:
    """NumPy's scalars and what JSON cannot say, as what it can."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
