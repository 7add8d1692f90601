"""Promises of shared servers: PostgreSQL behind both, a login before both, and nothing but the environment changes."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.services.processes import answers
from tests.mlflow_server import free_port, serving
from tests.postgresql import postgresql
from tests.projects import Project, states, until

pytestmark = pytest.mark.slow
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a password of ours"}


@contextlib.contextmanager
def prefect_server(url: str, folder: Path) -> Iterator[str]:
    """A Prefect server on a PostgreSQL database that wants a login; yields its address."""
    port = free_port()
    variables = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_API_AUTH_STRING": "operator:secret",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "prefect.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=os.environ | variables, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/api/health") or server.poll() is not None)
        assert server.poll() is None, (folder / "prefect.log").read_text()
        yield f"http://127.0.0.1:{port}/api"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def test_a_run_registers_through_servers_on_postgresql(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "servers"
    home.mkdir()
    with postgresql("mlflow", "auth", "prefect") as place, contextlib.ExitStack() as servers:
        (home / "auth.ini").write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"admin_password = {LOGIN['MLFLOW_TRACKING_PASSWORD']}\n"
            f"database_uri = postgresql+psycopg2://{place.replace('%', '%%')}/auth\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(home / "auth.ini"))
        monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a key of ours")
        port = free_port()
        store = [
            "--backend-store-uri",
            f"postgresql+psycopg2://{place}/mlflow",
            "--artifacts-destination",
            str(home / "files"),
        ]
        servers.enter_context(serving(["server", "--app-name", "basic-auth", *store, "--workers", "1"], port, home))
        prefect = servers.enter_context(prefect_server(f"postgresql+asyncpg://{place}/prefect", home))
        addresses = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "PREFECT_API_URL": prefect}
        keys = LOGIN | {"PREFECT_API_AUTH_STRING": "operator:secret"}

        told = finished.flows("run", code=1, **addresses, **LOGIN)
        assert "wants a login: set PREFECT_API_AUTH_STRING" in told
        told = finished.flows("run", code=1, **addresses, PREFECT_API_AUTH_STRING="operator:secret")
        assert "wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told

        first = states(finished.flows("run", **addresses, **keys))
        assert first.pop("register") == "Completed" and set(first.values()) == {"Cached"}
        assert states(finished.flows("run", **addresses, **keys))["register"] == "Cached"
        finished.flows("run", "report", "--force", **addresses, **keys)

        for name, value in LOGIN.items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(addresses["MLFLOW_TRACKING_URI"])
        assert [one.version for one in client.search_model_versions("name = 'student'")] in (["1"], [1])
        (experiment,) = client.search_experiments(filter_string="name = 'distillation'")
        runs = client.search_runs([experiment.experiment_id], "tags.stage = 'report'")
        assert [run.info.status for run in runs] == ["FINISHED"]
        output = tmp_path / "out.parquet"
        rows = finished.root / "data" / "table" / "test.parquet"
        arguments = ("--input", str(rows), "--output", str(output), "--model", "models:/student/1")
        assert "student version 1 predicted" in finished.flows("predict", *arguments, **addresses, **keys)
