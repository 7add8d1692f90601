"""A run with nothing to do, by both doors, in a copy of this project with the digits scenario."""

import contextlib
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.interleaved import Result, seconds
from benchmarks.project import Project

PORTS = ("4391", "5391")


def measure(folder: Path) -> list[Result]:
    """Both doors in turn, the flow with a running server; `dvc repro` of the same graph is the floor."""
    project = Project.copy(folder / "project")
    project.python("-m", "flows", "init", "digits", "--force")
    with _server(project):
        project.python("-m", "flows", "run")
        times = seconds(
            {
                "dvc": lambda: project.python("-m", "dvc", "repro"),
                "flow": lambda: project.python("-m", "flows", "run"),
            },
            rounds=5,
        )
    dvc, flow = (statistics.median(times[name]) for name in ("dvc", "flow"))
    return [
        Result("no-op run by `dvc repro`, s", f"{dvc:.1f}", "", True),
        Result("no-op run by the flow with a running server, s", f"{flow:.1f}", "<= 3", flow <= 3),
    ]


@contextlib.contextmanager
def _server(project: Project) -> Iterator[None]:
    """`python -m flows server` until it says where flows find it."""
    command = [sys.executable, "-m", "flows", "server", "--prefect-port", PORTS[0], "--mlflow-port", PORTS[1]]
    with subprocess.Popen(
        command, cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(120):
                if process.poll() is not None:
                    raise RuntimeError("`python -m flows server` did not start; are its ports free?")
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{PORTS[0]}/api/health", timeout=1).close()
                    if (project.root / ".state" / "servers.json").exists():
                        break
                time.sleep(1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
