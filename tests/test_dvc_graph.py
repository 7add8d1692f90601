"""The contract with DVC's internal API: an upgrade of DVC must pass it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from distillery.errors import UserError
from tasks.tracking.tracked import run as run_tracked
from tasks.tracking.tracker import Tracker
from tasks.versioning.graph import NEVER, BusyError, Graph
from tests.projects import Project

ORDER = ["ingest", "validate", "prepare"]


@pytest.fixture
def graph(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "PREFECT", "DVC"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(project.root)
    graph = Graph.open(project.root)
    graph.plan()
    yield graph


def compute(graph: Graph, name: str) -> None:
    """Runs and records a stage."""
    inputs = graph.inputs(name)
    run_tracked(name, graph.root, inputs, Tracker.connect(graph.root, "test"))
    graph.record(name, inputs)


def test_the_version_is_one_that_was_tried() -> None:
    assert Version("3.63") <= Version(version("dvc")) < Version("3.68")


def test_the_plan_is_dvcs(graph: Graph, project: Project) -> None:
    steps = graph.plan()
    before: set[str] = set()
    for step in steps:
        assert set(step.upstream) <= before
        before.add(step.name)
    assert [step.name for step in graph.plan(["prepare"])] == ORDER
    assert [step.name for step in graph.plan(["train_teacher"])] == [*ORDER, "snapshot", "train_teacher@wide"]
    listed = [line.split()[0] for line in project.dvc("stage", "list", "--name-only").splitlines()]
    assert sorted(listed) == sorted(step.name for step in steps)


def test_an_unknown_stage_is_told_with_the_list(graph: Graph) -> None:
    with pytest.raises(UserError, match=r"no stage is called 'destill'; there are ingest, .*distill"):
        graph.plan(["destill"])


def test_a_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no DVC project"):
        Graph.open(tmp_path)


def test_a_missing_section_of_params_is_named(graph: Graph, project: Project) -> None:
    file = project.root / "params.yaml"
    file.write_text(file.read_text().replace("ingest: {}\n", ""))
    with pytest.raises(UserError, match=r"'ingest' are missing from 'params\.yaml'"):
        graph.inputs("ingest")


@pytest.mark.slow
def test_one_stage_through_its_life(graph: Graph, project: Project) -> None:
    assert graph.changed("ingest") and graph.why("ingest").stage == (NEVER,)
    key = graph.key("ingest")
    assert not graph.restore("ingest")
    compute(graph, "ingest")
    first = project.lock

    # Recorded: fresh for us, for a new process, and for DVC.
    assert not graph.changed("ingest") and not graph.why("ingest") and graph.key("ingest") == key
    graph.plan()
    assert not graph.changed("ingest") and graph.key("ingest") == key
    assert "didn't change, skipping" in project.dvc("repro", "ingest")

    # Something else, and back: the run cache has it.
    project.set_params(data__split={"train": 0.6, "validation": 0.2, "test": 0.2})
    graph.plan()
    changes = {"data.split.train": "0.7 -> 0.6", "data.split.validation": "0.1 -> 0.2"}
    assert graph.why("ingest").dependencies == changes
    assert graph.key("ingest") != key and not graph.can_restore("ingest")
    assert graph.changed("ingest")  # asking the run cache has not changed the answer
    assert not graph.restore("ingest")
    compute(graph, "ingest")
    assert project.lock != first
    project.set_params()
    graph.plan()
    assert graph.changed("ingest") and graph.can_restore("ingest") and graph.changed("ingest")
    assert graph.restore("ingest")
    assert project.lock == first and graph.key("ingest") == key

    # A lost output comes back, also from a stage whose dependencies did not change.
    graph.plan()
    (project.root / "data/table/test.parquet").unlink()
    assert graph.why("ingest").is_about_outputs and graph.why("ingest").outputs == {
        "data/table/test.parquet": "deleted"
    }
    assert graph.is_kept("ingest") and graph.restore("ingest")
    assert (project.root / "data/table/test.parquet").exists() and project.lock == first

    # An input that changed since the start is refused, and nothing is recorded.
    inputs = graph.inputs("validate")
    (project.root / "tasks" / "validate.py").write_text("# changed\n")
    with pytest.raises(UserError, match=r"tasks/validate.py changed while validate ran"):
        graph.record("validate", inputs)
    assert project.lock == first

    graph.remove_outputs("ingest")
    assert not (project.root / "data/table/rows.parquet").exists()
    with pytest.raises(UserError, match=r"validate needs data/table/rows.parquet"):
        graph.inputs("validate")


def test_data_added_with_dvc_are_checked_and_recorded_never_made(project: Project, graph: Graph) -> None:
    raw = project.root / "data" / "raw"
    raw.mkdir()
    (raw / "rows.csv").write_text("a,label\n1,x\n")
    project.dvc("add", "data/raw")
    text = (project.root / "params.yaml").read_text()
    text = text.replace("source: digits", "source: table").replace("distillery/sources/digits.py", "data/raw")
    (project.root / "params.yaml").write_text(text)
    name = "data/raw.dvc"
    (source, ingest) = graph.plan(["ingest"])
    assert (source.name, source.is_source, ingest.upstream) == (name, True, (name,))
    assert not graph.record_source(name)
    (raw / "rows.csv").write_text("a,label\n1,x\n2,y\n")
    assert graph.record_source(name)
    assert "up to date" in project.dvc("status", name)
    (raw / "rows.csv").unlink()
    raw.rmdir()
    with pytest.raises(UserError, match=r"data/raw is missing: `dvc checkout data/raw\.dvc`"):
        graph.record_source(name)


def test_files_are_held_against_other_processes_and_not_against_ourselves(graph: Graph, project: Project) -> None:
    with graph.hold(["ingest", "prepare"]), graph.hold(["ingest"]):
        assert graph.changed("ingest")
        output = project.dvc("repro", "ingest", code=255)
        assert f"(PID {os.getpid()})" in output
    assert "ingest" in project.dvc("status", "ingest")


def test_a_holder_is_named_and_one_that_died_holds_nothing(graph: Graph, project: Project) -> None:
    code = (
        "import pathlib, sys, time; from tasks.versioning.graph import Graph; graph = Graph.open(pathlib.Path.cwd());"
        "graph.plan(); hold = graph.hold(['ingest']); hold.__enter__(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=project.root, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"held by PID {other.pid}: "), graph.hold(["ingest"]):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with graph.hold(["ingest"]):
        pass


def test_dvcs_own_lock_is_waited_for_when_a_finished_stage_is_recorded(graph: Graph, project: Project) -> None:
    seconds = 5  # DVC itself gives up after 3
    code = (
        "import time; from dvc.repo import Repo, lock_repo; repo = Repo()\n"
        f"with lock_repo(repo): print('held', flush=True); time.sleep({seconds})"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=project.root, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    began = time.monotonic()
    with pytest.raises(BusyError, match=f"held by PID {other.pid}: "), graph.hold(["ingest"]):
        pass
    assert graph.changed("ingest")
    assert time.monotonic() - began > seconds - 1
    other.wait()
    other.stdout.close()
