"""Writes a method's block into `params.yaml`: comments and everything else stay as they are."""

import difflib
import io
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from tasks.comparison.leaderboard import Leaderboard
from tasks.comparison.plan import PLAIN
from tasks.params import FILE, parse


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
    from ruamel.yaml import YAML

    board = Leaderboard.read(root)
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
    file = root / FILE
    before = file.read_bytes().decode()
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(before)
    for section, block in known[name].blocks.items():
        _lay(document[section], block, _KEPT[section])
    stream = io.StringIO()
    yaml.dump(document, stream)
    after = stream.getvalue()
    parse(YAML(typ="safe").load(after))
    beside = file.with_name(f"{FILE}.tmp")
    beside.write_text(after, encoding="utf-8")
    beside.replace(file)
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), FILE, f"{FILE}, {name}", n=1)
    return name, "".join(lines)


# All students of a comparison are trained alike, so a method has nothing to say about that.
_KEPT = {"student": set[str](), "distill": {"training"}}


def _lay(present: Any, block: dict[str, Any], kept: set[str]) -> None:
    """Changes what differs, so that comments beside what does not stay where they are."""
    for key in [key for key in present if key not in block and key not in kept]:
        del present[key]
    for key, value in block.items():
        if key not in present or _plain(present[key]) != value:
            present[key] = _flowing(value)


def _plain(value: Any) -> Any:
    """The same without what YAML remembers of its form."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _flowing(value: Any, depth: int = 0) -> Any:
    """Lists of mappings a line each, all else in one line, as `params.yaml` is written."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, dict):
        laid = CommentedMap({key: _flowing(one, depth + 1) for key, one in value.items()})
        laid.fa.set_flow_style()
        return laid
    if isinstance(value, list):
        rows = CommentedSeq([_flowing(one, depth + 1) for one in value])
        if depth or not any(isinstance(one, dict) for one in value):
            rows.fa.set_flow_style()
        return rows
    return value
