"""`python -m flows history`: every move of the champion, and which version was champion when."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from distillery.errors import UserError
from flows.registry import champion
from flows.terminal import say, table_of, wide
from tasks import environment
from tasks.params import load
from tasks.promotion.ledger import Move, champion_at
from tasks.promotion.telling import local, moves_rows
from tasks.tracking.tracker import Tracker


def show(root: Path, *, at: str | None, as_json: bool) -> int:
    """Prints the history, the latest move last; what a killed process left is finished or undone first.

    Args:
        root: the project's folder.
        at: a time, as `2026-11-24T12:00`; without an offset in this machine's zone. Only the champion of then is told.
        as_json: for programs.

    Raises:
        UserError: where the time is none, or the registry does not answer.
    """
    params = load(root)
    moment = None if at is None else _moment(at)
    with environment.quick_imports():
        tracker = Tracker.connect(root, params.registry.experiment)
    name = params.registry.student
    with champion.settled(root, tracker, name, say) as ledger:
        moves = ledger.history()
    if moment is None:
        print(json.dumps([plain(move) for move in moves], indent=2)) if as_json else _table(name, moves)
        return 0
    version = champion_at(moves, moment)
    if as_json:
        print(json.dumps({"model": name, "at": moment.isoformat(), "champion": version}))
    else:
        said = f"{name} version {version} was champion" if version else f"{name} had no champion"
        print(f"{said} at {local(moment)}")
    return 0


def plain(move: Move) -> dict[str, object]:
    """A move for JSON."""
    return asdict(move) | {"time": move.time.isoformat(), "figures": dict(move.figures)}


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise UserError(
            f"--at {text!r} is no time: say 2026-11-24T12:00, or with an offset 2026-11-24T12:00+01:00"
        ) from None


def _table(name: str, moves: Sequence[Move]) -> None:
    console = wide()
    if not moves:
        console.print(f"the champion of {name} has never moved: `python -m flows promote`", highlight=False)
        return
    console.print(table_of(moves_rows(moves), right=("#",)))
