"""Promises of the tracking: everything arrives, nobody waits, and a lost service loses nothing."""

import logging
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.entities import Run as MlflowRun

from distillery.errors import UserError
from tasks.tracking import service as mlflow_service
from tasks.tracking.journal import Journal
from tasks.tracking.tracker import KEY_TAG, PARENT_TAG, NoRun, Run, Status, Tracker
from tests.mlflow_server import free_port, project_with_database, server_arguments, serving, stop

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project_with_database(tmp_path_factory)


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, in a folder whose name needs quoting."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "a project"
    root.mkdir()
    shutil.copy(template / "mlflow.db", root)
    return root


@pytest.fixture
def tracker(root: Path) -> Tracker:
    return Tracker.connect(root, "distillation")


def get(tracker: Tracker, run: Run) -> MlflowRun:
    assert run.id is not None
    return tracker.client.get_run(run.id)


def all_runs(tracker: Tracker) -> list[MlflowRun]:
    return list(tracker.client.search_runs([tracker.experiment_id]))


def journals(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".state" / "tracking").iterdir())


@contextmanager
def renamed(file: Path) -> Iterator[None]:
    """Breaks a database that is in use: its tables are gone for as long as the block lasts."""
    tables = ("runs", "metrics", "params", "tags", "experiments")
    with sqlite3.connect(file) as connection:
        for table in tables:
            connection.execute(f"ALTER TABLE {table} RENAME TO hidden_{table}")
    yield
    with sqlite3.connect(file) as connection:
        for table in tables:
            connection.execute(f"ALTER TABLE hidden_{table} RENAME TO {table}")


def in_process(code: str, root: Path, **environment: str) -> subprocess.Popen[str]:
    """Runs code in a process of its own with `tracker` connected."""
    start = (
        "from pathlib import Path\nfrom tasks.tracking.tracker import Tracker\n"
        f"tracker = Tracker.connect(Path({str(root)!r}), 'distillation')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        cwd=HERE,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_everything_a_stage_tells_arrives(tracker: Tracker, root: Path) -> None:
    parent = tracker.start_run("flow", {}, None)
    run = tracker.start_run("distill", {KEY_TAG: "k1"}, parent.id)
    run.log_params({f"p{index}": index for index in range(250)} | {"long": "x" * 10_000})
    for epoch in range(3):
        run.log_metrics({"loss": 1.0 / (epoch + 1), "loss_kd": math.nan, "worst": math.inf}, step=epoch)
    run.set_tags({"revision": "abc"})
    (root / "params.yaml").write_text("seed: 7\n")
    run.log_artifact(root / "params.yaml", "lineage")
    run.log_dataset("data/prepared/train", "0123456789abcdef0123456789abcdef.dir", "data/prepared/train")
    run.finish("FINISHED")
    run.log_metrics({"late": 1.0})
    parent.finish("FINISHED")

    seen = get(tracker, run)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "distill"
    assert len(seen.data.params) == 251
    assert seen.data.params["p249"] == "249"
    assert seen.data.tags[PARENT_TAG] == parent.id
    assert seen.data.tags["revision"] == "abc"
    history = tracker.client.get_metric_history(str(run.id), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    assert math.isnan(seen.data.metrics["loss_kd"])
    assert "late" not in seen.data.metrics
    assert [file.path for file in tracker.client.list_artifacts(str(run.id), "lineage")] == ["lineage/params.yaml"]
    assert (root / "mlartifacts").is_dir()
    assert seen.inputs is not None
    dataset = seen.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("data/prepared/train", "0123456789abcdef0123456789abcdef.dir")
    assert journals(root) == []


def test_names_of_users_classes_never_break_logging(tracker: Tracker) -> None:
    run = tracker.start_run("evaluate", {}, None)
    run.log_metrics({"recall/a|b": 0.1, "/x": 0.2, "../y": 0.3, "größe/€": 0.4, "z" * 400: 0.5})
    run.finish("FINISHED")
    names = {name for name in get(tracker, run).data.metrics if not name.startswith("system/")}
    assert names == {"recall/a_b", "_x", "_y", "größe/_", "z" * 250}


def test_a_refused_record_costs_only_itself(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    run = tracker.start_run("distill", {}, None)
    run.log_params({"seed": 1})
    run.log_params({"seed": 2})
    run.log_metrics({"loss": 1.0})
    run.finish("FINISHED")
    seen = get(tracker, run)
    assert (seen.data.params["seed"], seen.data.metrics["loss"], seen.info.status) == ("1", 1.0, "FINISHED")
    assert "refuses params" in caplog.text


def test_a_short_stage_has_system_metrics_and_ends_at_once(tracker: Tracker) -> None:
    run = tracker.start_run("prepare", {}, None)
    time.sleep(0.2)
    start = time.perf_counter()
    run.finish("FINISHED")
    assert time.perf_counter() - start < 0.5
    metrics = get(tracker, run).data.metrics
    assert metrics["system/system_memory_usage_percentage"] > 0
    assert "system/cpu_utilization_percentage" in metrics


def test_fast_epochs_are_logged_together_and_completely(tracker: Tracker, root: Path) -> None:
    run = tracker.start_run("distill", {}, None)
    start = time.perf_counter()
    for epoch in range(2000):
        run.log_metrics({"loss": float(epoch)}, step=epoch)
    assert time.perf_counter() - start < 1.0
    run.finish("FINISHED")
    history = tracker.client.get_metric_history(str(run.id), "loss")
    assert [metric.value for metric in history] == [float(epoch) for epoch in range(2000)]


def test_the_key_finds_the_newest_finished_run(tracker: Tracker) -> None:
    statuses: list[Status] = ["FINISHED", "FINISHED", "FAILED"]
    for status in statuses:
        run = tracker.start_run("distill", {KEY_TAG: "key"}, None)
        run.finish(status)
        if status == "FINISHED":
            newest = run.id
        time.sleep(0.01)
    assert tracker.find("key") == newest
    assert tracker.find("another") is None


def test_a_lost_database_loses_nothing(tracker: Tracker, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tracker.start_run("distill", {}, None)
    run.log_metrics({"loss": 3.0}, step=0)
    (root / "dvc.lock").write_text("before")
    with renamed(root / "mlflow.db"):
        run.log_params({"seed": 7})
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_artifact(root / "dvc.lock")
        unborn = tracker.start_run("finetune", {}, run.id)
        child = tracker.start_run("part", {}, unborn.id)
        assert tracker.find("key") is None
        for one in (child, unborn, run):
            one.finish("FINISHED")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert len([name for name in journals(root) if name.endswith(".jsonl")]) == 3
    ended = time.time() * 1000
    (root / "dvc.lock").write_text("after")

    again = Tracker.connect(root, "distillation")
    assert again.flush_pending() == 3
    assert again.flush_pending() == 0
    runs = {one.info.run_name: one for one in all_runs(again)}
    assert len(all_runs(again)) == len(runs) == 3
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert all(one.info.end_time <= ended for one in runs.values())
    assert runs["distill"].info.run_id == run.id
    assert runs["distill"].data.params == {"seed": "7"}
    assert [metric.value for metric in again.client.get_metric_history(str(run.id), "loss")] == [3.0, 2.0]
    assert runs["finetune"].data.tags[PARENT_TAG] == run.id
    assert runs["part"].data.tags[PARENT_TAG] == runs["finetune"].info.run_id
    assert Path(again.client.download_artifacts(str(run.id), "dvc.lock")).read_text() == "before"
    assert journals(root) == []


def test_a_child_of_a_run_that_is_not_known_yet_finds_its_parent(tracker: Tracker, root: Path) -> None:
    with renamed(root / "mlflow.db"):
        parent = tracker.start_run("flow", {}, None)
    child = tracker.start_run("distill", {}, parent.id)
    child.finish("FINISHED")
    parent.finish("FINISHED")
    again = Tracker.connect(root, "distillation")
    assert again.flush_pending() == 1
    flow = next(run for run in all_runs(again) if run.info.run_name == "flow")
    assert get(again, child).data.tags[PARENT_TAG] == flow.info.run_id


@pytest.mark.parametrize("moment", ["create_run", "log_batch", "set_terminated"])
def test_a_flush_stopped_at_any_moment_is_repeated_without_doubles(
    tracker: Tracker, root: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with renamed(root / "mlflow.db"):
        run = tracker.start_run("distill", {}, None)
        run.log_metrics({"loss": 2.0}, step=1)
        run.finish("FAILED")
    # The service does its part, and then the process ends.
    again = Tracker.connect(root, "distillation")
    done = getattr(again.client, moment)

    def last_step(*args: object, **kwargs: object) -> None:
        done(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(again.client, moment, last_step)
        with pytest.raises(KeyboardInterrupt):
            again.flush_pending()
    assert again.flush_pending() == 1
    (seen,) = all_runs(again)
    assert seen.info.status == "FAILED"
    assert [metric.value for metric in again.client.get_metric_history(seen.info.run_id, "loss")] == [2.0]


def test_a_killed_run_is_marked_at_the_next_start_and_a_living_one_is_left_alone(tracker: Tracker, root: Path) -> None:
    alive = tracker.start_run("alive", {}, None)
    victim = in_process(
        "import time\nrun = tracker.start_run('victim', {}, None)\nprint(run.id, flush=True)\ntime.sleep(60)", root
    )
    assert victim.stdout is not None
    run_id = victim.stdout.readline().strip()
    assert tracker.flush_pending() == 0
    victim.kill()
    victim.wait()
    assert tracker.flush_pending() == 1
    assert tracker.client.get_run(run_id).info.status == "KILLED"
    assert get(tracker, alive).info.status == "RUNNING"
    alive.finish("FINISHED")


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "x")
    journal.append({"kind": "start"})
    with journal.file.open("ab") as stream:
        stream.write(b'{"kind": "met')
    journal.append({"kind": "finish"})
    assert [record["kind"] for record in journal.read()] == ["start", "finish"]


def test_runs_of_another_service_wait_for_it(
    tracker: Tracker, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with renamed(root / "mlflow.db"):
        tracker.start_run("distill", {}, None).finish("FINISHED")
    (root / "other").mkdir()
    shutil.copy(root / "mlflow.db", root / "other" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/other/mlflow.db")
    assert Tracker.connect(root, "distillation").flush_pending() == 0
    assert "wait in" in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Tracker.connect(root, "distillation").flush_pending() == 1


def test_what_the_service_refuses_is_set_aside_and_told(
    tracker: Tracker, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracker.start_run("distill", {}, None)
    with renamed(root / "mlflow.db"):
        run.log_metrics({"loss": 1.0})
        run.finish("FINISHED")
    tracker.client.delete_run(str(run.id))
    again = Tracker.connect(root, "distillation")
    assert again.flush_pending() == 0
    assert "refuses an earlier run" in caplog.text
    assert [name.rpartition(".")[2] for name in journals(root)] == ["rejected"]


def test_two_processes_share_a_fresh_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = "tracker.start_run('x', {}, None).finish('FINISHED')"
    both = [in_process(code, tmp_path) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output, errors) == (0, "", "")
    assert len(all_runs(Tracker.connect(tmp_path, "distillation"))) == 2


def test_a_dead_server_is_told_quickly_and_without_its_password(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    start = time.perf_counter()
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}.*does not answer.*python -m flows server") as caught:
        Tracker.connect(root, "distillation")
    assert time.perf_counter() - start < 4
    assert "secret" not in str(caught.value)


def test_a_port_that_takes_and_says_nothing_is_told_quickly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(mlflow_service, "PROBE_SECONDS", 0.5)
        with pytest.raises(UserError, match="does not answer within"):
            Tracker.connect(root, "distillation")


def test_a_locked_database_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_service, "PROBE_SECONDS", 0.5)
    with sqlite3.connect(root / "mlflow.db") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="locked by another program"):
            Tracker.connect(root, "distillation")


def test_a_corrupt_database_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db is no usable database"):
        Tracker.connect(tmp_path, "distillation")


def test_a_database_of_another_mlflow_is_told(root: Path) -> None:
    with sqlite3.connect(root / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(UserError, match="another version of MLflow"):
        Tracker.connect(root, "distillation")


def test_a_database_in_a_missing_folder_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/missing/mlflow.db")
    with pytest.raises(UserError, match="cannot be opened"):
        Tracker.connect(root, "distillation")


def test_a_deleted_experiment_is_told(tracker: Tracker, root: Path) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match="experiments restore"):
        Tracker.connect(root, "distillation")


def test_no_run_takes_everything() -> None:
    run: Run = NoRun()
    run.log_params({"a": 1})
    run.log_metrics({"a": 1.0}, step=1)
    run.finish("FINISHED")
    assert run.id is None


def test_importing_loads_no_mlflow() -> None:
    code = "import sys, tasks.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False).returncode == 0


@pytest.mark.slow
def test_a_server_killed_in_the_middle_gets_everything_when_it_is_back(
    root: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    home = root.parent / "server"
    home.mkdir()
    shutil.copy(template / "mlflow.db", home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    with serving(server_arguments(home), port, home) as process:
        tracker = Tracker.connect(root, "distillation")
        parent = tracker.start_run("flow", {}, None)
        run = tracker.start_run("distill", {}, parent.id)
        run.log_metrics({"loss": 3.0, "nothing": math.nan}, step=0)
        stop(process)
        start = time.perf_counter()
        run.log_metrics({"loss": 2.0}, step=1)
        (root / "dvc.lock").write_text("lock")
        run.log_artifact(root / "dvc.lock")
        run.finish("FINISHED")
        second = tracker.start_run("finetune", {}, parent.id)
        second.finish("FINISHED")
        parent.finish("FINISHED")
        assert time.perf_counter() - start < 15
        assert sum("is lost" in record.message for record in caplog.records) == 1

    with serving(server_arguments(home), port, home):
        again = Tracker.connect(root, "distillation")
        assert again.flush_pending() == 3
        runs = {one.info.run_name: one for one in all_runs(again)}
        assert len(all_runs(again)) == 3
        assert {name: one.info.status for name, one in runs.items()} == dict.fromkeys(
            ("flow", "distill", "finetune"), "FINISHED"
        )
        assert runs["finetune"].data.tags[PARENT_TAG] == parent.id
        assert [metric.value for metric in again.client.get_metric_history(str(run.id), "loss")] == [3.0, 2.0]
        assert math.isnan(runs["distill"].data.metrics["nothing"])
        assert [file.path for file in again.client.list_artifacts(str(run.id))] == ["dvc.lock"]
        experiment = again.client.get_experiment(again.experiment_id)
        assert experiment.artifact_location.startswith("mlflow-artifacts")
    assert capfd.readouterr() == ("", "")
