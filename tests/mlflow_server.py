"""Real MLflow databases and servers on loopback for tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.tracking.service import VARIABLE
from tasks.tracking.tracker import Tracker


def project_with_database(factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared `mlflow.db` to copy: making one takes seconds, so all tests share it."""
    root = factory.getbasetemp() / "prepared database"
    if not root.exists():
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(VARIABLE, raising=False)
            Tracker.connect(root, "template")
        shutil.rmtree(root / ".state")
    return root


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(arguments: Sequence[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `mlflow ARGUMENTS` on a port until the block ends, then kills it; its output goes to `folder`.

    Raises:
        RuntimeError: with that output, where it does not listen within a minute.
    """
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    # Background jobs would double the time to start.
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # MLflow looks for uvicorn there, as an activated environment has it.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = folder / f"{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait(process, port, log)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kills a server and its workers, as a power cut would."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def server_arguments(folder: Path) -> list[str]:
    """A tracking server with everything in one folder; `mlflow.db` may lie there already."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    return ["server", *store, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no server on port {port}:\n{log.read_text()[-4000:]}")
