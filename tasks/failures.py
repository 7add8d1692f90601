"""How a command line ends when something goes wrong."""

import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from distillery.errors import UserError

FOLDER = Path("reports") / "failed"
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM, as an exception: what is open gets closed on the way out."""


def told(error: BaseException, root: Path, name: str) -> str:
    """What the user gets to see of an error: its message, or the file that holds the traceback of an unexpected one."""
    if isinstance(error, UserError):
        return str(error)
    kind = f"{type(error).__name__}: {error}".strip(": ")
    text = "".join(traceback.format_exception(error))
    file = root / FOLDER / f"{name.replace('@', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError:
        # A full or read-only disk may be what went wrong.
        return f"{name} failed unexpectedly: {kind}\n{text}"
    return f"{name} failed unexpectedly: {kind}\nThe traceback is in {file.relative_to(root)}"


def guarded(work: Callable[[], int], root: Path, name: str, resume: str) -> int:
    """Runs a command and turns every way in which it can end into an exit code; SIGTERM ends it cleanly.

    Args:
        work: the command; returns an exit code.
        root: the project's folder.
        name: of the command, for messages.
        resume: what to tell when it was interrupted.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if not root.is_dir():
            raise UserError(f"--root {root} is no folder: name that of the project")
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; {resume}", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print(f"terminated; {resume}", file=sys.stderr)
        return TERMINATED
    except Exception as error:
        print(f"error: {told(error, root, name)}", file=sys.stderr)
        return 1


def _terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated
