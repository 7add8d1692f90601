"""Writes a method's block into `params.yaml`: only the lines of keys that differ change, comments stay."""

import difflib
from pathlib import Path

import yaml

from distillery.errors import UserError
from tasks.comparison import leaderboard
from tasks.comparison.leaderboard import Leaderboard
from tasks.comparison.plan import PLAIN
from tasks.params import FILE
from tasks.params.file import change

# All students of a comparison are trained alike, so a method has nothing to say about that.
_KEPT: dict[str, set[str]] = {"student": set(), "distill": {"training"}}


def adopt(root: Path, name: str | None) -> tuple[str, str]:
    """Puts a method of the leaderboard in the place of the present one.

    Args:
        root: the project's folder.
        name: as the leaderboard calls it; None: the winner.

    Returns:
        The name, and the difference to the file before, as `diff -u` shows it; empty where nothing changed.

    Raises:
        UserError: for an unknown name (with the list), for the student alone, or where the file would not be valid.
    """
    board = Leaderboard.read(root / leaderboard.FILE)
    known = {board.name(standing): standing for standing in board.standings}
    name = name or board.name(board.winner)
    if name not in known:
        raise UserError(f"--adopt: {name!r} is not on the leaderboard; there are {', '.join(known)}")
    if known[name].method == PLAIN:
        best = next(other for other, standing in known.items() if standing.method != PLAIN)
        raise UserError(
            f"--adopt: {name} is the student without a teacher, which `train_baseline` trains already; "
            f"the best that listens is {best}"
        )
    present = yaml.safe_load((root / FILE).read_bytes())
    wanted = {
        section: {**block, **{key: value for key, value in present[section].items() if key in _KEPT[section]}}
        for section, block in known[name].blocks.items()
    }
    before, after = change(root, wanted)
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), FILE, f"{FILE}, {name}", n=1)
    return name, "".join(lines)
