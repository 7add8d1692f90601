"""Events about new data: that files in `data/incoming` have stopped growing, that a batch was refused."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from tasks.retraining import incoming

EVENT = "distillation.data.arrived"
REFUSED = "distillation.batch.quarantined"
SECONDS = 5.0

Snapshot = frozenset[tuple[str, int, int]]


def title(root: Path) -> str:
    """Names a project on a server that others use too."""
    return f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"


def resource(root: Path) -> str:
    """What events call a project."""
    return f"distillation.project.{title(root)}"


def watch(folder: Path, arrived: Callable[[list[str]], None], ended: threading.Event, seconds: float = SECONDS) -> None:
    """Calls `arrived` with the files that lie in a folder, once for each state of the folder, until `ended` is set.

    A file counts when it has stayed as it is from one look to the next, so that one still being copied is left in
    peace. Files that lie there at the start have arrived too. What counts: see `tasks.retraining.incoming.signs`.
    """
    told: Snapshot = frozenset()
    before: Snapshot = frozenset()
    while True:
        now = _look(folder)
        if now and now == before and now != told:
            arrived(sorted(name for name, _, _ in now))
        if now == before:
            told = now
        before = now
        if ended.wait(seconds):
            return


def _look(folder: Path) -> Snapshot:
    """Name, size and time of change of every file."""
    found = incoming.signs(folder)
    return frozenset((Path(name).relative_to(folder).as_posix(), size, time) for name, size, time in found)
