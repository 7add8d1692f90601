"""A comparison in the terminal: while it runs, and the leaderboard at its end."""

import sys
from collections.abc import Mapping
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flows.terminal import print_fitting
from tasks.comparison import words
from tasks.comparison.job import Result
from tasks.comparison.leaderboard import Leaderboard, Standing
from tasks.comparison.plan import Entry, Job, Plan
from tasks.reporting import wording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_WIDTH = 140


class Live:
    """Means over the trainings that have finished, best first; a line for each where there is no terminal."""

    def __init__(self, plan: Plan, metric: str, results: Mapping[str, Result]) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        self._plan = plan
        self._metric = metric
        self._results = results
        self._done = len(results)
        self._failed: set[str] = set()
        self._console = Console(file=sys.stderr)
        self._display = Display(console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._done:
            self._console.print(f"{self._done} of {len(self._plan.jobs)} trainings have run already", highlight=False)
        if self._console.is_terminal:
            self._display.start()
            self._display.update(self._table(), refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def show(self, job: Job, found: Result | Exception) -> None:
        """One more training has ended."""
        self._done += 1
        told = f"{self._done}/{len(self._plan.jobs)}  {job.title:<36}"
        if isinstance(found, Exception):
            self._failed.add(job.entry.title)
            self._console.print(f"[red]✗[/red] {told} [red]{type(found).__name__}[/red]", highlight=False)
        elif not self._console.is_terminal:
            reached = wording.percent(found.validation[self._metric])
            self._console.print(f"[green]✓[/green] {told} validation {reached}  {found.seconds:.1f} s", highlight=False)
        if self._console.is_terminal:
            self._display.update(self._table(), refresh=True)

    def _table(self) -> "Table":
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title=f"{self._done} of {len(self._plan.jobs)} trainings",
            title_justify="left",
        )
        for heading in ("method", "seeds", "validation", "test", "seconds"):
            table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
        rows = []
        for entry in self._plan.entries:
            found = self._of(entry)
            reached = fmean(one.validation[self._metric] for one in found) if found else -1.0
            rows.append((reached, entry, found))
        for reached, entry, found in sorted(rows, key=lambda row: -row[0]):
            done = f"{len(found)}/{len(self._plan.seeds)}"
            if entry.title in self._failed:
                table.add_row(entry.title, done, "failed", "", "", style="red")
            elif found:
                test = fmean(one.test[self._metric] for one in found)
                seconds = fmean(one.seconds for one in found)
                table.add_row(entry.title, done, wording.percent(reached), wording.percent(test), f"{seconds:.1f}")
            else:
                table.add_row(entry.title, done, "", "", "", style="dim")
        return table

    def _of(self, entry: Entry) -> list[Result]:
        keys = [Job(entry, seed).key for seed in self._plan.seeds]
        return [self._results[key] for key in keys if key in self._results]


def show(board: Leaderboard, console: "Console") -> None:
    """Prints the leaderboard; a narrow terminal gets no intervals."""
    print_fitting(console, lambda narrow: _leaderboard(board, narrow=narrow))
    console.print(words.headline(board), highlight=False)
    for name, student in board.students.items():
        facts = f"{wording.count(student.parameters)} parameters, {wording.milliseconds(student.latency_ms)} a row"
        console.print(f"{name}: {facts} (ONNX Runtime, one thread)", highlight=False)
    for title, why in board.left_out.items():
        console.print(f"left out: {title}: {why}", highlight=False, markup=False, soft_wrap=True)


def rows(board: Leaderboard) -> list[dict[str, str]]:
    """A line for each method, under the headings of the wide table."""
    against = ("against plain", "p", "against kd", "p (kd)")
    headings = ("method", "validation", "test", *against, "seconds", "extra")
    return [dict(zip(headings, _cells(board, one, narrow=False), strict=True)) for one in board.standings]


def _leaderboard(board: Leaderboard, *, narrow: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{wording.METRIC[board.metric]} in percent, {words.basis(board)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=words.caption(board),
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("validation", "test", "against plain", "against kd", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
        if heading.startswith("against") and not narrow:
            table.add_column("p", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("extra", justify="right", no_wrap=True)
    for standing in board.standings:
        style = "bold green" if standing is board.winner else None
        table.add_row(*_cells(board, standing, narrow=narrow), style=style)
    return table


def _cells(board: Leaderboard, standing: Standing, *, narrow: bool) -> list[str]:
    """One line of the table; `narrow`: only its figures without intervals, p-values and extra parameters."""
    cells = [board.name(standing), *(words.figure(standing.scores[split]) for split in ("validation", "test"))]
    for against in (standing.against_plain, standing.against_kd):
        found = against.get("test")
        cells.append("" if found is None else words.points(found.difference))
        if not narrow:
            cells.append("" if found is None else words.p_value(found.corrected))
    cells.append(f"{standing.seconds:.3g} ({standing.relative:.1f}x)")
    if narrow:
        return [cell.partition(" (")[0] for cell in cells]
    return [*cells, wording.count(standing.extra_parameters) if standing.extra_parameters else ""]
