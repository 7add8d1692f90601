"""Prefect's and MLflow's servers as child processes on loopback: started, waited for, ended."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distillery.errors import UserError
from tasks.folders import STATE

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 5.0
LOGS = STATE / "servers"


@dataclass(frozen=True)
class Service:
    """A server that this process has started.

    Attributes:
        name: for messages.
        url: where it answers.
        health: what is asked whether it lives.
        log: what it prints.
        process: leads a process group of its own, so that Ctrl-C in the terminal reaches only us.
    """

    name: str
    url: str
    health: str
    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def prefect(cls, root: Path, port: int, *, ui: bool) -> Self:
        """Starts a Prefect server."""
        arguments = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
        # A dead PREFECT_API_URL of ours or the user's is nothing that a server should read.
        settings = {"PREFECT_UI_ENABLED": str(ui).lower(), "PREFECT_API_URL": f"http://{HOST}:{port}/api"}
        return cls._start(root, "Prefect", port, "/api/health", arguments, settings)

    @classmethod
    def mlflow(cls, root: Path, port: int) -> Self:
        """Starts MLflow's user interface on the project's database."""
        store = f"sqlite:///{root / 'mlflow.db'}"
        artifacts = (root / "mlartifacts").as_uri()
        arguments = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
        arguments += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
        return cls._start(root, "MLflow", port, "/health", arguments, {})

    @classmethod
    def model(cls, root: Path, port: int, folder: Path, service: str) -> Self:
        """Starts MLflow's scoring server of a downloaded model, which runs what its `MLmodel` names.

        Args:
            root: the project's folder.
            port: to listen on.
            folder: of the model.
            service: the address of the registry.
        """
        arguments = ["mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local"]
        arguments += ["--host", HOST, "--port", str(port), "--workers", "1"]
        # MLflow looks for uvicorn there, as an activated environment has it.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return cls._start(root, "model", port, "/ping", arguments, {"MLFLOW_TRACKING_URI": service, "PATH": path})

    @classmethod
    def _start(
        cls, root: Path, name: str, port: int, health: str, arguments: list[str], settings: dict[str, str]
    ) -> Self:
        log = root / LOGS / f"{name.lower()}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, "-m", "flows.services.watched", *arguments],
                cwd=root,
                env=os.environ | {"PYTHONPATH": path} | settings,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://{HOST}:{port}"
        return cls(name, url, url + health, log, process)

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Returns when the server answers.

        Raises:
            UserError: where it ends or does not answer in time, with the last lines it printed.
        """
        end = time.monotonic() + seconds
        while not answers(self.health, 1.0):
            code = self.process.poll()
            if code is not None or time.monotonic() > end:
                what = f"ended with code {code}" if code is not None else f"did not answer within {seconds:.0f} s"
                raise UserError(f"the {self.name} server {what}; {self.log} tells:\n{self._tail()}")
            time.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server and all it started."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-8:])


def stop(services: Sequence[Service]) -> None:
    """Ends servers and all they started."""
    for service in services:
        service.signal(signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for service in services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(max(0.0, end - time.monotonic()))
        # Helpers that have outlived their leader, or the leader itself.
        service.signal(signal.SIGKILL)
        service.process.wait()


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at all; an address that wants a login or another path counts."""
    # Loopback never goes through a proxy; elsewhere the user's environment decides.
    proxies = urllib.request.ProxyHandler({} if f"://{HOST}" in url or "://localhost" in url else None)
    try:
        with urllib.request.build_opener(proxies).open(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int, option: str) -> None:
    """Checks that a port can be used.

    Raises:
        UserError: where somebody listens on it; says who and which option takes another one.
    """
    with socket.socket() as probe:
        # As servers do: a port whose last connection is closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be used: {error.strerror}{_listener(port)}; give {option}") from None


def _listener(port: int) -> str:
    """Who listens on a port, where the system tells."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" (PID {connection.pid}: {command[:120]})"
    except psutil.Error:
        return ""
    return ""
