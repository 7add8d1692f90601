"""Promises of schedules: due once, run once, made up for once, tried again only where that helps."""

import re
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow

from distillery.errors import UserError
from flows.arrivals import watch
from flows.commands.serve import FLOWS
from tasks.params import parse
from tasks.retraining.results import RETRAINING, Retrained
from tests.arrivals import Digits, put
from tests.mlflow_server import free_port, server_arguments, serving
from tests.projects import Gate, Project, until
from tests.schedules import scheduled_runs, served, states_of

ROOT = Path(__file__).parents[1]
WAITING = {"model": {"name": "custom.models:waiting"}}


def test_files_are_told_once_when_they_have_stopped_growing(tmp_path: Path) -> None:
    told: list[list[str]] = []
    ended = threading.Event()
    (tmp_path / "old.csv").write_text("1")
    watcher = threading.Thread(target=watch, args=(tmp_path, told.append, ended, 0.1))
    watcher.start()
    until(lambda: len(told) == 1)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # a copy that takes its time
        with (tmp_path / "new.csv").open("a") as file:
            file.write("row\n")
        time.sleep(0.02)
        assert len(told) == 1
    (tmp_path / ".hidden").touch()
    (tmp_path / "later.csv.part").touch()
    until(lambda: len(told) == 2)
    time.sleep(0.5)
    ended.set()
    watcher.join()
    assert told == [["old.csv"], ["new.csv", "old.csv"]]


def test_folders_that_come_and_go_do_not_end_the_watch(tmp_path: Path) -> None:
    told: list[list[str]] = []
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(tmp_path / "incoming", told.append, ended, 0.0))
    watcher.start()
    for number in range(200):
        folder = tmp_path / "incoming" / "batch" / str(number)
        folder.mkdir(parents=True)
        (folder / "rows.csv").touch()
        shutil.rmtree(tmp_path / "incoming")
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "last.csv").touch()
    until(lambda: ["last.csv"] in told)
    ended.set()
    watcher.join()
    assert told[-1] == ["last.csv"]


def test_every_deployment_is_a_flow_and_stands_in_prefect_yaml() -> None:
    written = {one["entrypoint"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert set(written) == set(FLOWS.values())
    for name, place in FLOWS.items():
        module, _, function = place.rpartition(".")
        flow = getattr(import_module(module), function)
        assert isinstance(flow, Flow) and flow.name == name
        assert written[place]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_without_a_schedule_there_is_nothing_to_serve(project: Project) -> None:
    assert "params.yaml asks for no schedule" in project.flows("serve", code=1)


@pytest.mark.slow
def test_new_data_run_the_flow_once_at_a_time(finished: Project, gate: Gate) -> None:
    finished.set_params(schedules={"distillation": {"on_new_data": True}}, student=WAITING)
    with served(finished, **gate.variables):
        assert "is served already" in finished.flows("serve", code=1)
        (finished.root / "data" / "incoming" / "batch.csv").write_text("a,b\n1,2\n")
        until((gate.folder / "reached").exists)
        (finished.root / "data" / "incoming" / "more.csv").write_text("a,b\n1,2\n")
        until(lambda: sorted(states_of(finished)) == ["Cancelled", "Running"])
        gate.open()
        until(lambda: sorted(states_of(finished)) == ["Cancelled", "Completed"])
    assert "Data and pipelines are up to date." in finished.dvc("status")
    (run,) = (run for run in scheduled_runs(finished) if run["state_name"] == "Completed")
    found = finished.prefect("artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    kinds = {artifact["key"]: artifact["type"] for artifact in found}
    assert kinds == {"progress": "progress", "metrics": "table", "report": "markdown"}
    assert {artifact["key"]: artifact["data"] for artifact in found}["progress"] == 100.0


@pytest.mark.slow
def test_a_batch_that_arrives_is_taken_in_and_decided_upon(finished: Project) -> None:
    finished.set_params(schedules={"retraining": {"on_new_data": True}})
    with served(finished):
        put(finished, "week.parquet", Digits().table(range(100), lambda pixels: 255 - pixels))
        until(lambda: states_of(finished) == ["Completed"], 300)
    report = Retrained.read(finished.root / RETRAINING)
    assert [(batch.outcome, batch.new, batch.drifted) for batch in report.batches] == [
        ("accepted", 100, ("input image",))
    ]
    assert report.outcome in ("promoted", "kept")
    assert "nothing new" in finished.flows("retrain")
    found = finished.prefect("artifacts/filter", artifacts={"key": {"any_": ["batches", "gates"]}})
    assert {artifact["key"] for artifact in found} == {"batches", "gates"}


@pytest.mark.slow
def test_a_missed_run_is_made_up_for_once(finished: Project) -> None:
    # A whole minute that lies far enough ahead for the schedule to be known before it, however slow the machine.
    due = (datetime.now(UTC) + timedelta(seconds=100)).replace(second=0, microsecond=0)
    cron = f"{due.minute} {due.hour} * * *"
    finished.set_params(schedules={"distillation": {"cron": cron}})
    with served(finished) as lines:
        assert not any("missed" in line for line in lines)
    assert datetime.now(UTC) < due, "nothing can be missed that was served"
    until(lambda: datetime.now(UTC) > due + timedelta(seconds=5))
    with served(finished) as lines:
        assert any("missed its time" in line for line in lines)
        until(lambda: states_of(finished) == ["Completed"])
    with served(finished) as lines:
        assert not any("missed" in line for line in lines)
    assert states_of(finished) == ["Completed"]


@pytest.mark.slow
def test_a_run_waits_for_a_server_that_comes_back_but_not_for_bad_parameters(finished: Project, tmp_path: Path) -> None:
    finished.set_params(schedules={"distillation": {"on_new_data": True}})
    port = free_port()
    with served(finished, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}"):
        (finished.root / "data" / "incoming" / "batch.csv").write_text("a\n1\n")

        def connecting() -> list[str]:
            runs = {"id": {"any_": [run["id"] for run in scheduled_runs(finished)]}}
            found = finished.prefect("task_runs/filter", flow_runs=runs, task_runs={"name": {"any_": ["connect"]}})
            return [task["state_name"] for task in found]

        until(lambda: connecting() == ["AwaitingRetry"])
        home = tmp_path / "server"
        home.mkdir()
        with serving(server_arguments(home), port, home):
            until(lambda: states_of(finished) == ["Completed"])
        params = finished.root / "params.yaml"
        params.write_text(params.read_text().replace("seed: 7", "seed: seven"))
        (finished.root / "data" / "incoming" / "batch.csv").write_text("a\n2\n")
        until(lambda: states_of(finished) == ["Failed", "Completed"])


@pytest.mark.slow
def test_promotions_and_comparisons_run_by_schedule_as_by_hand(finished: Project) -> None:
    due = {"on_new_data": True}
    finished.set_params(
        schedules={"promotion": due, "comparison": due},
        comparison={"methods": {"soft": {"objectives": [{"name": "kd"}]}}, "seeds": 1},
    )
    with served(finished):
        (finished.root / "data" / "incoming" / "batch.csv").write_text("a\n1\n")
        until(lambda: states_of(finished) == ["Completed", "Completed"])
    runs = {"any_": [run["id"] for run in scheduled_runs(finished)]}
    found = finished.prefect("artifacts/filter", artifacts={"flow_run_id": runs})
    assert "gates" in {artifact["key"] for artifact in found}
    for name in ("promotion.json", "leaderboard.json"):
        assert (finished.root / "reports" / name).exists()


def test_the_schedules_that_operate_md_shows_are_valid() -> None:
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL) if "schedules:" in block)
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | yaml.safe_load(block)
    assert parse(document).schedules.keys() <= FLOWS.keys()


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({}, "give a cron, or on_new_data: true"),
        ({"cron": "at three"}, "five fields"),
        ({"cron": "0 3 * * 1", "timezone": "Mars"}, "is no time zone"),
    ],
)
def test_a_schedule_that_cannot_come_due_is_told(schedule: dict[str, Any], told: str) -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    with pytest.raises(UserError, match=told):
        parse(document | {"schedules": {"distillation": schedule}})
