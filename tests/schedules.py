"""Schedules of a project as its user would keep them, and what Prefect knows of their runs."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tests.projects import Project, until


@contextlib.contextmanager
def served(project: Project, **variables: str) -> Iterator[list[str]]:
    """Keeps `python -m flows serve`; yields the lines it has printed so far."""
    process = project.start(sys.executable, "-m", "flows", "serve", **variables)
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        lines.extend(iter(process.stdout.readline, ""))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        until(lambda: any("serving" in line for line in lines) or process.poll() is not None)
        assert process.poll() is None, lines
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        reader.join(10)


def scheduled_runs(project: Project) -> list[dict[str, Any]]:
    mine = {"tags": {"all_": [f"schedule:{project.root}"]}, "state": {"type": {"not_any_": ["SCHEDULED"]}}}
    return project.prefect("flow_runs/filter", flow_runs=mine, sort="EXPECTED_START_TIME_DESC")


def states_of(project: Project) -> list[str]:
    return [run["state_name"] for run in scheduled_runs(project)]
