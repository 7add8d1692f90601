"""What entry points put into the environment before anything is imported; what the user has set there wins."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.folders import STATE

TELEMETRY = {
    "DVC_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true",  # Prefect's client
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PREFECT = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    # Own lines tell what failed; Prefect's would repeat it with a traceback. The log of the run in Prefect has both.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    # A server that went away is told after some seconds, not after minutes.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}


def prepare(root: Path) -> None:
    """Turns telemetry off, and keeps what Prefect stores inside the project."""
    defaults = TELEMETRY | PREFECT | {"PREFECT_HOME": str(root.resolve() / STATE / "prefect")}
    if "PREFECT_LOGGING_LEVEL" in os.environ:
        # Who asks for Prefect's log wants to see it.
        del defaults["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"], defaults["PREFECT_INTERNAL_LOGGING_LEVEL"]
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def enter(root: Path) -> None:
    """Makes a project the working directory, and its `custom` the one that is imported."""
    os.chdir(root)
    sys.path.insert(0, str(root))


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pauses the search for garbage: heavy imports make next to none, and it costs a quarter of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            # What was imported stays, so it need not be searched later either.
            gc.freeze()
            gc.enable()
