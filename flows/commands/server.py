"""`python -m flows server`: Prefect and MLflow with their dashboards, until Ctrl-C."""

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from distillery.errors import UserError
from flows.services.processes import Service, answers, check_port, free_port, stop
from tasks.folders import STATE

FILE = STATE / "servers.json"
PREFECT_VARIABLE = "PREFECT_API_URL"
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
WATCH_SECONDS = 1.0


def serve(root: Path, prefect_port: int, mlflow_port: int) -> int:
    """Starts both servers, says where they are, and keeps them; a port of 0 takes a free one.

    Raises:
        UserError: where a port is taken, a server does not start or dies, or servers of this project run already.
    """
    running = find(root)
    if running:
        raise UserError(f"this project's servers run already (PID {running['pid']}): {_told(running)}")
    if url := os.environ.get(PREFECT_VARIABLE):
        raise UserError(f"{PREFECT_VARIABLE} is {url}, so flows would not use a server started here; unset it first")
    if prefect_port:
        check_port(prefect_port, "--prefect-port")
    if mlflow_port and MLFLOW_VARIABLE not in os.environ:
        check_port(mlflow_port, "--mlflow-port")
    file = root / FILE
    services: list[Service] = []
    with ExitStack() as stack:
        stack.callback(stop, services)
        services.append(Service.prefect(root, prefect_port or free_port(), ui=True))
        addresses = {"prefect": services[0].url}
        if uri := os.environ.get(MLFLOW_VARIABLE):
            addresses["mlflow"] = uri
        else:
            services.append(Service.mlflow(root, mlflow_port or free_port()))
            addresses["mlflow"] = services[1].url
        print("starting ...", file=sys.stderr)
        for service in services:
            service.wait()
        stack.callback(file.unlink, missing_ok=True)
        found = addresses | {"pid": str(os.getpid())}
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(file)
        print(f"{_told(found)}\nflows use them from now on; Ctrl-C ends both", file=sys.stderr)
        while True:
            for service in services:
                if service.process.poll() is not None:
                    raise UserError(f"the {service.name} server has died; {service.log} may tell why")
            time.sleep(WATCH_SECONDS)


def find(root: Path) -> dict[str, str] | None:
    """Addresses of this project's servers: `prefect`, `mlflow` and the `pid` that keeps them; None: none answers."""
    try:
        found: dict[str, str] = json.loads((root / FILE).read_text(encoding="utf-8"))
        os.kill(int(found["pid"]), 0)
        return found if answers(f"{found['prefect']}/api/health") else None
    except (OSError, ValueError, KeyError):
        # Left by a process that was killed, or half gone.
        return None


def _told(found: dict[str, str]) -> str:
    return f"Prefect {found['prefect']}  MLflow {found['mlflow']}"
