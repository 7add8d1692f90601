"""The last thing a run prints: every model beside the others, and which one ships."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.terminal import print_fitting
from tasks.reporting import wording
from tasks.results import EVALUATION, ClassScores, Deployed, Estimate, Evaluation, LabelScores, Scores, title

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(root: Path, console: "Console") -> None:
    """Prints the table of `reports/evaluation.json`, about 100 columns wide; a narrow terminal gets no intervals.

    Raises:
        UserError: where the evaluation has not run.
    """
    evaluation = Evaluation.read(root / EVALUATION)
    print_fitting(console, lambda narrow: _table(evaluation, narrow=narrow))
    console.print(f"{wording.headline(evaluation)}. {wording.explanation(evaluation)}", highlight=False)
    console.print(f"{title(evaluation.shipped.candidate)} ships. {evaluation.shipped.because}", highlight=False)


def _table(evaluation: Evaluation, *, narrow: bool) -> "Table":
    """One line a model, one more for each int8 variant and each exit; `narrow` leaves out intervals and throughput."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"Test split, {wording.count(evaluation.splits['test'].labelled)} rows, in percent"
        + ("" if narrow else f", {100 * evaluation.confidence:g} % intervals"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
        caption="* ships; ONNX file, one thread: ms/row alone, rows/s in batches of 256",
    )
    table.add_column("model", no_wrap=True, max_width=24)
    headings = [*figures(evaluation), "parameters", "size", "ms/row", "rows/s"]
    for heading in headings[:-1] if narrow else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in evaluation.models.items():
        ships = name == evaluation.shipped.candidate
        style = "bold green" if ships else None
        label = f"{title(name)}{' *' if ships else ''}"
        table.add_row(
            *cells(label, model.test, model.onnx, wording.count(model.parameters), narrow=narrow), style=style
        )
        if model.int8 is not None:
            table.add_row(*cells("  int8", model.int8.test, model.int8, "", narrow=narrow), style="dim")
        for number, early in enumerate(model.exits, 1):
            table.add_row(*cells(f"  exit {number}", early.test, early, "", narrow=narrow), style="dim")
    return table


def figures(evaluation: Evaluation) -> list[str]:
    """What is told of each model: of one target its metrics, of several the main one of each and their mean."""
    if len(evaluation.targets) > 1:
        return ["mean score", *evaluation.targets]
    (target,) = evaluation.targets.values()
    return {
        "classes": ["accuracy", "macro-F1", "agrees"],
        "labels": ["micro-F1", "macro-F1", "agrees"],
        "number": ["R²", "RMSE", "MAE"],
    }[target.kind]


def cells(label: str, scores: Scores, deployed: Deployed | None, parameters: str, *, narrow: bool) -> list[str]:
    """One line of the table."""

    def share(found: Estimate | None) -> str:
        if found is None:
            return ""
        value = f"{100 * found.value:.1f}"
        return value if narrow else f"{value} ({100 * found.low:.1f}-{100 * found.high:.1f})"

    only = scores.only
    if len(scores.targets) > 1:
        told = [share(scores.score), *(share(wording.main(found)) for found in scores.targets.values())]
    elif isinstance(only, ClassScores):
        agrees = "" if only.agreement is None else f"{100 * only.agreement.value:.1f}"
        told = [share(only.accuracy), share(only.macro_f1), agrees]
    elif isinstance(only, LabelScores):
        agrees = "" if only.agreement is None else f"{100 * only.agreement:.1f}"
        told = [share(only.micro_f1), share(only.macro_f1), agrees]
    else:
        told = [share(only.r2), wording.digits(only.rmse.value), wording.digits(only.mae.value)]
    costs = ["", "", ""]
    if deployed is not None:
        costs = [wording.size(deployed.size), f"{deployed.latency_ms:.3g}", wording.rate(deployed.throughput)]
    line = [label, *told, parameters, *costs]
    return line[:-1] if narrow else line
