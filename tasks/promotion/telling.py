"""Promotions and the history as people read them; shared by the terminal and Prefect's artifacts."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from tasks import wording
from tasks.promotion.ledger import Move
from tasks.promotion.results import Gate, Promotion

if TYPE_CHECKING:
    from rich.table import Table


def say(message: str) -> None:
    """One line for whoever watches; what is asked for goes to standard output."""
    print(message, file=sys.stderr, flush=True)


def sentence(found: Promotion) -> str:
    """What came of it."""
    if found.outcome == "unchanged":
        return f"{found.reasons[0]}: nothing to do."
    if found.outcome == "promoted":
        instead = f", instead of version {found.champion}" if found.champion else ", the first one"
        return f"{found.model} version {found.challenger} is champion now{instead}."
    stays = f"version {found.champion} stays champion" if found.champion else "there is still no champion"
    failed = f"it fails {len(found.reasons)} of {len(found.gates)} gates"
    return f"{found.model} version {found.challenger} is not promoted, {stays}: {failed}."


def rows(found: Promotion) -> list[dict[str, str]]:
    """A line for each gate."""
    return [
        {
            "gate": gate.name,
            "before": _figure(gate, gate.reference),
            "challenger": _figure(gate, gate.challenger),
            "difference": _span(gate),
            "asked": gate.limit,
            "": "passed" if gate.passed else "FAILED",
        }
        for gate in found.gates
    ]


def _figure(gate: Gate, value: float | None) -> str:
    if value is None:
        return "\u2013"
    if gate.name == "size":
        return wording.size(value)
    if gate.name == "latency":
        return wording.milliseconds(value)
    return wording.number(value) if gate.name.endswith("calibration error") else wording.percent(value)


def _span(gate: Gate) -> str:
    if gate.low is None or gate.high is None:
        return ""
    return f"{wording.points(gate.low)} to {wording.points(gate.high)}"


def gate_table(found: Promotion) -> "Table":
    """The gates for a terminal."""
    from rich import box
    from rich.table import Table

    heading = "" if found.test_set is None else f", {wording.count(found.test_set.rows)} test rows"
    table = Table(
        title=f"{found.model} version {found.challenger} against {found.reference}{heading}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    lines = rows(found)
    for name in lines[0]:
        table.add_column(name, justify="right" if name in ("before", "challenger", "difference") else "left")
    for line, gate in zip(lines, found.gates, strict=True):
        table.add_row(*line.values(), style=None if gate.passed else "bold red")
    return table


def local(moment: datetime) -> str:
    """A time by the reader's own clock."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def history_table(moves: Sequence[Move]) -> "Table":
    """The history for a terminal, a line a move."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("#", "when", "what", "from", "to", "who", "why"):
        table.add_column(name, justify="right" if name == "#" else "left", overflow="fold")
    latest: datetime | None = None
    for move in moves:
        back = latest is not None and move.time < latest
        latest = move.time if latest is None else max(latest, move.time)
        table.add_row(
            str(move.sequence),
            local(move.time) + (" (the clock had gone back)" if back else ""),
            move.action,
            move.before or "\u2013",
            move.after or "\u2013",
            move.who,
            move.why,
        )
    return table
