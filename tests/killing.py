"""kill -9 in the middle of work: a script that runs in a process of its own, and what is left of it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.projects import until

ROOT = Path(__file__).parents[1]


def command(script: str, folder: Path) -> list[str]:
    """Runs a script that finds the project's modules, and the folder in `sys.argv[1]`."""
    return [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{script}", str(folder)]


def kill_when(begun: Path, script: str, folder: Path) -> None:
    """Starts a script and kills it a moment after a file is there that tells that work has begun."""
    with subprocess.Popen(command(script, folder)) as process:
        until(lambda: begun.exists() or process.poll() is not None)
        time.sleep(0.2)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it had ended before"
