"""Runs in MLflow. Losing the service never loses a training: what could not be logged waits on disk."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

from distillery.errors import UserError
from tasks.folders import STATE
from tasks.tracking.journal import Journal, Record
from tasks.tracking.service import (
    DIGEST_LIMIT,
    VARIABLE,
    clean_key,
    experiment_id,
    first_line,
    health_problem,
    is_http,
    open_service,
    refused,
    send,
    shown,
    texts,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tasks.tracking.system_metrics import SystemMetrics

Status = Literal["FINISHED", "FAILED", "KILLED"]

KEY_TAG = "stage_key"
PARENT_TAG = "mlflow.parentRunId"
JOURNAL_TAG = "journal"
PENDING = "pending-"
LOCK_SECONDS = 120.0
METRIC_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Run(Protocol):
    """Where a stage tells what it does. Nothing here raises because the service went away or refuses."""

    @property
    def id(self) -> str | None:
        """MLflow's id, `pending-...` while the service does not know the run yet, None without a service."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters as text."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures; NaN and infinities are allowed."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a file or a folder."""

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Notes a data set as input; `digest` is DVC's hash, `source` its path in the project."""

    def finish(self, status: Status) -> None:
        """Ends the run; what is logged later is ignored."""


class NoRun:
    """A run that goes nowhere, for notebooks and tests."""

    id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Does nothing."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Does nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Does nothing."""

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Does nothing."""

    def finish(self, status: Status) -> None:
        """Does nothing."""


class Tracker:
    """One experiment in one MLflow service.

    Attributes:
        client: MLflow's client; what it raises is not translated.
        uri: of the service.
        experiment_id: of the experiment.
    """

    def __init__(self, root: Path, uri: str, experiment: str, client: "MlflowClient", experiment_id: str) -> None:
        self.root = root
        self.uri = uri
        self.experiment = experiment
        self.client = client
        self.experiment_id = experiment_id
        self._said: set[str] = set()
        self._was_lost = False

    @classmethod
    def connect(cls, root: Path, experiment: str) -> Self:
        """Finds the service and the experiment, and makes the experiment where there is none.

        The service is MLFLOW_TRACKING_URI, else `mlflow.db` in the project with artifacts in `mlartifacts`.

        Raises:
            UserError: where the service does not answer, or the database cannot be used.
        """
        from filelock import FileLock, Timeout

        root = root.resolve()
        uri = os.environ.get(VARIABLE) or f"sqlite:///{root / 'mlflow.db'}"
        lock = root / STATE / "mlflow.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that make the tables of one fresh database at once break it.
            with ExitStack() if is_http(uri) else FileLock(lock, timeout=LOCK_SECONDS):
                return cls(root, uri, experiment, *open_service(root, uri, experiment))
        except Timeout:
            raise UserError(f"another process has prepared {shown(uri)} for {LOCK_SECONDS:.0f} s; end it") from None
        except OSError as error:
            raise UserError(f"{lock.parent} cannot be written ({error}): check its permissions and the disk") from error

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None, *, watched: bool = True) -> Run:
        """Starts a run, under the run `parent` where there is one.

        Args:
            name: of the run.
            tags: of the run.
            parent: id of a run.
            watched: log the load of the machine until it ends.

        Raises:
            OSError: where the project's folder cannot be written.
        """
        identity = uuid.uuid4().hex
        marks = {JOURNAL_TAG: identity} | ({PARENT_TAG: parent} if parent else {})
        start: Record = {
            "kind": "start",
            "service": self._service,
            "experiment": self.experiment,
            "name": name,
            "time": _now(),
            "tags": texts(tags) | marks,
        }
        journal = Journal.create(self._folder, identity)
        journal.append(start)
        run_id = None
        try:
            # A server that was lost is asked one short question, not MLflow's patient ones.
            problem = health_problem(self.uri) if self._was_lost and is_http(self.uri) else None
            if problem is None:
                run_id = self._create(self.experiment_id, start)
                journal.append({"kind": "created", "run_id": run_id})
        except Exception as error:
            self.lost(error)
        return _LoggedRun(self, journal, run_id or PENDING + identity, run_id is not None, watched)

    def find(self, key: str) -> str | None:
        """The newest finished run of the stage with this key; None also while the service is lost."""
        try:
            runs = self.client.search_runs(
                [self.experiment_id],
                f"tags.{KEY_TAG} = '{key}' and attributes.status = 'FINISHED'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        except Exception as error:
            self.lost(error)
            return None
        return str(runs[0].info.run_id) if runs else None

    def flush_pending(self) -> int:
        """Ships what earlier runs could not log, and marks runs that were killed.

        It may be killed itself and repeated: no run is lost or made twice.

        Returns:
            How many runs were completed in the service.
        """
        shipped = 0
        with Journal.left_behind(self._folder) as journals:
            for journal in journals:
                try:
                    shipped += self._ship(journal)
                except Exception as error:
                    if not (refused(error) or isinstance(error, UserError)):
                        self.say(
                            f"MLflow does not take earlier runs ({first_line(error)}); they wait in {self._folder}"
                        )
                        break
                    kept = journal.reject()
                    self.say(f"MLflow refuses an earlier run ({first_line(error)}); it is kept in {kept}")
        return shipped

    def say(self, message: str) -> None:
        """Warns, of the same thing once."""
        if message not in self._said:
            self._said.add(message)
            _log.warning(message)

    def lost(self, error: Exception) -> None:
        """Says once that the service is lost."""
        if not self._was_lost:
            self._was_lost = True
            self.say(
                f"MLflow ({shown(self.uri)}) is lost: {first_line(error)}. The work goes on; what cannot be logged "
                f"is kept in {self._folder} and logged at the next start"
            )

    def _ship(self, journal: Journal) -> bool:
        """Logs everything that a journal holds; False where it holds nothing for this service."""
        # Shipping writes to the journal, so look first when the run was last heard of.
        touched = journal.touched()
        records = journal.read()
        if not records or records[0]["kind"] != "start":
            journal.remove()
            return False
        start, rest = records[0], records[1:]
        if start["service"] != self._service:
            self.say(f"earlier runs wait in {self._folder} for {start['service']}")
            return False
        experiment = experiment_id(self.client, self.root, self.uri, start["experiment"])
        identity = start["tags"][JOURNAL_TAG]
        run_id = next((record["run_id"] for record in rest if record["kind"] == "created"), None)
        if run_id is None:
            # Perhaps a process was killed between making the run and noting so.
            made = self._tagged(experiment, JOURNAL_TAG, identity)
            run_id = made[0] if made else self._create(experiment, start)
            journal.append({"kind": "created", "run_id": run_id})
        for child in self._tagged(experiment, PARENT_TAG, PENDING + identity):
            self.client.set_tag(child, PARENT_TAG, run_id)
        if not any(record["kind"] == "finish" for record in rest):
            rest = [*rest, {"kind": "finish", "status": "KILLED", "time": touched}]
        for record in rest:
            send(self.client, run_id, record)
        journal.remove()
        return True

    def _create(self, experiment: str, start: Record) -> str:
        """Makes the run that a start record tells of."""
        run = self.client.create_run(experiment, start["time"], dict(start["tags"]), start["name"])
        return str(run.info.run_id)

    def _tagged(self, experiment: str, tag: str, value: str) -> list[str]:
        runs = self.client.search_runs([experiment], f"tags.`{tag}` = '{value}'")
        return [str(run.info.run_id) for run in runs]

    @property
    def _folder(self) -> Path:
        return self.root / STATE / "tracking"

    @property
    def _service(self) -> str:
        """Names the service in journals: without a password, and the same after the project has moved."""
        return shown(self.uri).replace(str(self.root), ".")


class _LoggedRun:
    """A run in MLflow; see `Run`."""

    def __init__(self, tracker: Tracker, journal: Journal, run_id: str, online: bool, watched: bool) -> None:
        self.id: str | None = run_id
        self._tracker = tracker
        self._journal = journal
        self._online = online
        self._finished = False
        self._points: list[tuple[str, float, int, int]] = []
        self._next_metrics = 0.0
        self._lock = threading.Lock()
        self._monitor = self._start_monitor(run_id) if watched else None

    def log_params(self, params: Mapping[str, object]) -> None:
        self._log({"kind": "params", "values": texts(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = _now()
        points = [(clean_key(name), float(value), now, step or 0) for name, value in metrics.items()]
        with self._lock:
            self._points += points
            # A call to a server costs some 30 ms, which short epochs would feel.
            if time.monotonic() > self._next_metrics:
                self._log_points()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._log({"kind": "tags", "values": texts(tags)})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            self._log({"kind": "artifact", "path": str(path), "folder": folder})
        else:
            self._tracker.say(f"{path} does not exist, so MLflow does not get it")

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        self._log({"kind": "dataset", "name": name, "digest": digest[:DIGEST_LIMIT], "source": source})

    def finish(self, status: Status) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        record: Record = {"kind": "finish", "status": status, "time": _now()}
        with self._lock:
            if self._finished:
                return
            self._log_points()
            self._finished = True
            # Noted before it is sent: a kill in between must not turn a finished run into a killed one.
            self._keep(record)
            if self._online and self._sent(record):
                self._journal.remove()
            else:
                self._journal.close()

    def _log(self, record: Record) -> None:
        with self._lock:
            self._pass_on(record)

    def _log_points(self) -> None:
        """Logs the metrics of the last second in one go."""
        if self._points:
            self._pass_on({"kind": "metrics", "points": self._points})
            self._points = []
            self._next_metrics = time.monotonic() + METRIC_SECONDS

    def _pass_on(self, record: Record) -> None:
        """Sends a record, or keeps it, from the first one on that could not be sent."""
        if not self._finished and not (self._online and self._sent(record)):
            self._keep(record)

    def _sent(self, record: Record) -> bool:
        """Sends a record; False where the service is lost, from then on."""
        self._journal.touch()
        try:
            send(self._tracker.client, str(self.id), record)
        except Exception as error:
            if refused(error):
                self._tracker.say(f"MLflow refuses {record['kind']} of a run: {first_line(error)}")
                return True
            self._online = False
            self._tracker.lost(error)
        return self._online

    def _keep(self, record: Record) -> None:
        """Writes a record to the journal; a full disk must not end a training either."""
        try:
            if record["kind"] == "artifact":
                record = record | {"path": str(self._journal.keep(Path(record["path"])))}
            self._journal.append(record)
        except OSError as error:
            self._tracker.say(f"what run {self.id} tells MLflow is incomplete: {first_line(error)}")

    def _start_monitor(self, run_id: str) -> "SystemMetrics | None":
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0"):
            return None
        from tasks.tracking.system_metrics import SystemMetrics

        monitor = SystemMetrics(run_id, self._tracker.uri, self.log_metrics)
        monitor.start()
        return monitor


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
