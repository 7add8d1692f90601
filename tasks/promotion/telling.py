"""Promotions and the history as people read them; shared by the terminal and Prefect's artifacts."""

from collections.abc import Sequence
from datetime import datetime

from tasks.promotion.ledger import Move
from tasks.promotion.results import Gate, Promotion
from tasks.reporting import wording


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


def heading(found: Promotion) -> str:
    """Who was held against whom, on what."""
    on = "" if found.test_set is None else f", {wording.count(found.test_set.rows)} test rows"
    return f"{found.model} version {found.challenger} against {found.reference}{on}"


def local(moment: datetime) -> str:
    """A time by the reader's own clock."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moves_rows(moves: Sequence[Move]) -> list[dict[str, str]]:
    """A line for each move of the champion."""
    lines = []
    latest: datetime | None = None
    for move in moves:
        back = latest is not None and move.time < latest
        latest = move.time if latest is None else max(latest, move.time)
        lines.append(
            {
                "#": str(move.sequence),
                "when": local(move.time) + (" (the clock had gone back)" if back else ""),
                "what": move.action,
                "from": move.before or "\u2013",
                "to": move.after or "\u2013",
                "who": move.who,
                "why": move.why,
            }
        )
    return lines
