"""One MLflow service: found quickly or refused clearly, and told records. MLflow itself is imported on use."""

import json
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from distillery.errors import UserError
from tasks.tracking.journal import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
PROBE_SECONDS = 3.0
KEY_LIMIT = 250
VALUE_LIMIT = 5000  # Of tags; parameters may have 6000.
DIGEST_LIMIT = 36
DEFAULTS = {
    # MLflow itself asks a dead server for minutes: whoever trains must not wait for whoever takes notes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class AwayError(UserError):
    """A service does not answer; it may later."""


def open_service(root: Path, uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    """A client that was answered, and the experiment's id; an experiment that does not exist is made.

    Raises:
        UserError: where the service does not answer, or the database cannot be used.
    """
    if is_http(uri):
        problem = health_problem(uri)
        if problem:
            raise AwayError(
                f"the MLflow server {shown(uri)} ({VARIABLE}) {problem}; start it, for example with "
                "`python -m flows server`, or unset the variable"
            )
    elif uri.startswith("sqlite"):
        _probe_database(uri)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    _quiet()
    try:
        client = MlflowClient(uri)
        return client, experiment_id(client, root, uri, experiment)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explained(uri, error)) from error


def experiment_id(client: "MlflowClient", root: Path, uri: str, name: str) -> str:
    """The id of an experiment; it is made where there is none.

    Raises:
        UserError: where it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A server knows where its artifacts go; a database does not.
        location = None if is_http(uri) else (root / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, location))
        except MlflowException:
            # Somebody else made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted; run `mlflow experiments restore -x {found.experiment_id}`, "
            "or choose another name for registry.experiment in params.yaml"
        )
    return str(found.experiment_id)


@contextmanager
def default_service(uri: str) -> Iterator[None]:
    """Makes a service MLflow's default: what has no client looks there."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def send(client: "MlflowClient", run_id: str, record: Record) -> None:
    """Logs one record of a journal; doing so twice is the same as once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    match record["kind"]:
        case "params":
            client.log_batch(run_id, params=[Param(key, value) for key, value in record["values"].items()])
        case "metrics":
            client.log_batch(run_id, [Metric(*point) for point in record["points"]])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])
        case "artifact":
            client.log_artifact(run_id, record["path"], record["folder"])
        case "dataset":
            dataset = Dataset(record["name"], record["digest"], "local", json.dumps({"uri": record["source"]}))
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])
        case "finish":
            client.set_terminated(run_id, record["status"], record["time"])


def health_problem(uri: str) -> str | None:
    """What is wrong with a server, found out quickly; None where it answers."""
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS)
    except requests.exceptions.SSLError:
        return None  # It answers; whether its certificate is trusted is MLflow's to say.
    except requests.exceptions.Timeout:
        return f"does not answer within {PROBE_SECONDS:.0f} s"
    except requests.exceptions.RequestException:
        return "does not answer"
    # Behind a gateway a dead server has these codes; others come from a living one that may want a login.
    return f"does not answer (status {answer.status_code})" if answer.status_code in (502, 503, 504) else None


def refused(error: Exception) -> bool:
    """Whether the service answered that it will never take this."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


def is_http(uri: str) -> bool:
    """Whether the service is a server, not a database."""
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """A URI without its password."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    return uri.replace(f"{user}@", "***@", 1) if user else uri


def first_line(error: Exception) -> str:
    """An error's message, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def clean_key(name: str) -> str:
    """A name that MLflow takes for a parameter, metric or tag, whatever a user's column or class is called."""
    name = re.sub(r"[^/\w.\- :]", "_", name)[:KEY_LIMIT]
    if posixpath.normpath(name) != name or name.startswith(("/", "..")):
        name = name.replace("/", "_").strip(".") or "_"
    return name


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Parameters or tags within MLflow's limits."""
    return {clean_key(key): str(value)[:VALUE_LIMIT] for key, value in values.items()}


def _probe_database(uri: str) -> None:
    """Asks SQLite itself, which says at once what MLflow retries for minutes.

    Raises:
        UserError: where the file is locked, cannot be written or is no database.
    """
    import sqlite3

    from sqlalchemy.engine import make_url

    file = make_url(uri).database
    if not file or file == ":memory:":
        return
    try:
        connection = sqlite3.connect(file, timeout=PROBE_SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(f"{file} is locked by another program; end that program and run again") from error
        raise UserError(f"{file} cannot be opened for writing ({error}): check permissions and disk") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file} is no usable database ({error}); move it away and run again") from error


def _explained(uri: str, error: Exception) -> str:
    """What is wrong with a service that answered, and the mend."""
    if "database schema" in str(error) or "locate revision" in str(error):
        return (
            f"{shown(uri)} was made by another version of MLflow; install that version, or, where it is older than "
            f"this one, keep a copy of it and run `mlflow db upgrade {shown(uri)}`"
        )
    if is_http(uri) and "error code 401" in str(error):
        return f"{shown(uri)} wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if is_http(uri):
        return f"{shown(uri)} answers, but not as an MLflow server should ({first_line(error)}); check {VARIABLE}"
    mend = f"check {VARIABLE}" if VARIABLE in os.environ else "move it away and run again"
    return f"{shown(uri)} cannot be used ({first_line(error)}); {mend}"


def _quiet() -> None:
    """Leaves standard error to our own lines; what goes wrong is told by exceptions."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
