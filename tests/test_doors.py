"""Two doors, one truth: what `dvc repro` has done the flow finds done, and the other way round."""

import re
import shutil
import signal
import sys

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.projects import Gate, Project, ended, states, until

pytestmark = pytest.mark.slow
FLOW = (sys.executable, "-m", "flows", "run")
REPRO = (sys.executable, "-m", "dvc", "repro")
WAITING = {"model": {"name": "custom.models:waiting"}, "training": {"epochs": 3}}
CLEAN = "Data and pipelines are up to date."
TEACHER = "train_teacher@wide"


def test_after_the_flow_nothing_is_left_for_either_door(finished: Project) -> None:
    before = finished.lock
    assert CLEAN in finished.dvc("status")
    output = finished.dvc("repro")
    assert "Running stage" not in output and "up to date" in output
    order = re.findall(r"Stage '(.*)' didn't change", output)
    output = finished.flows("run")
    assert set(states(output).values()) == {"Cached"}
    assert len(states(output)) == len(yaml.safe_load(before)["stages"]) + 1  # and the registry
    assert list(states(output))[:-1] == order
    assert finished.lock == before
    run, *_ = finished.flow_runs()
    assert run["state_name"] == "Completed"
    query = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    until(lambda: len(finished.prefect("task_runs/filter", **query)) == len(states(output)))
    seen = {task["name"]: task["state"] for task in finished.prefect("task_runs/filter", **query)}
    assert {name: state["name"] for name, state in seen.items()} == states(output)
    made_by = [state["message"].rpartition(" ")[2] for name, state in seen.items() if name != "register"]
    assert "unknown" not in made_by and len(set(made_by)) == len(made_by)


def test_one_changed_parameter_reruns_what_depends_on_it_and_switching_back_restores(finished: Project) -> None:
    before = finished.lock
    finished.set_params(evaluate__resamples=300)
    told = finished.flows("run", "--dry-run")
    assert "evaluate.resamples 200 -> 300" in told
    found = states(finished.flows("run"))
    assert {name for name, state in found.items() if state == "Completed"} == {"evaluate", "report"}
    assert CLEAN in finished.dvc("status")
    finished.set_params()
    assert "restore" in finished.flows("run", "--dry-run")
    found = states(finished.flows("run"))
    assert {name for name, state in found.items() if state != "Cached"} == {"evaluate", "report"}
    assert found["evaluate"] == found["report"] == "Restored"
    assert finished.lock == before


def test_what_dvc_has_run_the_flow_finds_done_with_its_mlflow_run(finished: Project) -> None:
    finished.set_params(finetune__training={"epochs": 2})
    output = finished.dvc("repro", "export")
    assert output.count("Running stage") == 2  # finetune and export
    output = finished.flows("run", "export")
    assert set(states(output).values()) == {"Cached"}
    run, *_ = finished.flow_runs()
    query = {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"name": {"any_": ["finetune"]}}}
    until(lambda: bool(finished.prefect("task_runs/filter", **query)))
    assert not finished.prefect("task_runs/filter", **query)[0]["state"]["message"].endswith("unknown")


def test_deleted_outputs_are_restored_not_computed(finished: Project) -> None:
    shutil.rmtree(finished.root / "models" / "distilled")
    shutil.rmtree(finished.root / "models" / "teachers" / "wide")
    told = {line.split()[0]: line.split()[1] for line in finished.flows("run", "--dry-run").splitlines()[1:] if line}
    restored = {"distill", TEACHER}
    assert {name for name, action in told.items() if action == "restore"} == restored
    assert {name for name, action in told.items() if action in ("run", "follows")} == set()
    found = states(finished.flows("run"))
    assert {name for name, state in found.items() if state != "Cached"} == restored
    assert CLEAN in finished.dvc("status")


def test_from_scratch_both_doors_write_the_same_lock_and_a_temporary_server_loses_nothing(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = project.copy(tmp_path_factory.mktemp("other") / "project")
    output = project.flows("run", "prepare")
    other.dvc("repro", "prepare")
    assert project.lock == other.lock
    with project.server():
        (run,) = project.flow_runs()
        found = project.prefect("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        assert run["state_name"] == "Completed"
        assert {task["name"]: task["state_name"] for task in found} == states(output)


def test_a_stage_that_breaks_half_way_leaves_lock_and_outputs_right(finished: Project) -> None:
    before = finished.files
    finished.set_params(
        teachers__wide={"model": {"name": "custom.models:breaking"}, "training": {"epochs": 3}},
        distill__training={"epochs": 2},
    )
    output = finished.flows("run", code=1)
    found = states(output)
    assert found[TEACHER] == "Failed"
    assert found["train_baseline"] == "Completed"
    assert found["soft_targets@wide"] == found["distill"] == found["report"] == found["register"] == "NotReady"
    assert output.count("the network is worn out") == 1
    (log,) = (finished.root / "reports" / "failed").glob("train_teacher-wide-*.txt")
    assert "Traceback" in log.read_text() and str(log.relative_to(finished.root)) in output
    assert not (finished.root / "models" / "teachers" / "wide").exists()
    after = finished.files
    assert {path for path in after if after[path] != before[path]} == {"models/baseline"}
    assert finished.flow_runs()[0]["state_name"] == "Failed"
    finished.set_params(distill__training={"epochs": 2})
    found = states(finished.flows("run", "soft_targets", "train_baseline"))
    assert {name for name, state in found.items() if state != "Cached"} == {TEACHER}
    assert found[TEACHER] == "Restored"


def test_an_input_that_changes_while_a_stage_runs_is_refused(finished: Project, gate: Gate) -> None:
    before = finished.lock
    finished.set_params(teachers__wide=WAITING)
    flow = finished.start(*FLOW, TEACHER, **gate.variables)
    gate.wait(flow)
    (finished.root / "custom" / "other.py").write_text("changed = True\n")
    gate.open()
    output = ended(flow, 1)
    assert f"custom changed while {TEACHER} ran" in output
    assert finished.lock == before
    assert not (finished.root / "models" / "teachers" / "wide").exists()
    client = MlflowClient(f"sqlite:///{finished.root / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run, *_) = client.search_runs(experiments, f"tags.stage = '{TEACHER}'", order_by=["attributes.start_time DESC"])
    assert run.info.status == "FAILED"


def test_two_runs_at_once(finished: Project, gate: Gate) -> None:
    finished.set_params(teachers__wide=WAITING)
    flow = finished.start(*FLOW, TEACHER, **gate.variables)
    gate.wait(flow)
    for second in (finished.flows("run", code=1), finished.tasks("distill", code=1), finished.dvc("repro", code=255)):
        assert f"PID {flow.pid}" in second
    waiting = finished.start(*FLOW, TEACHER, "--wait")
    assert waiting.stdout is not None
    assert f"waiting for the pipeline, held by PID {flow.pid}" in waiting.stdout.readline()
    gate.open()
    assert states(ended(flow))[TEACHER] == "Completed"
    assert set(states(ended(waiting)).values()) == {"Cached"}


def test_a_flow_that_meets_dvc_and_dvc_killed(finished: Project, gate: Gate) -> None:
    before = finished.lock
    finished.set_params(teachers__wide=WAITING)
    repro = finished.start(*REPRO, TEACHER, **gate.variables)
    gate.wait(repro)
    assert f"held by PID {repro.pid}" in finished.flows("run", code=1)
    children = psutil.Process(repro.pid).children(recursive=True)
    assert children
    repro.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    repro.communicate()
    assert finished.lock == before
    gate.open()
    assert states(finished.flows("run", TEACHER))[TEACHER] == "Completed"
    assert TEACHER not in finished.dvc("status", TEACHER)


def test_a_flow_that_was_killed_is_marked_and_either_door_goes_on(finished: Project, gate: Gate) -> None:
    before = finished.lock
    finished.set_params(teachers__wide=WAITING)
    flow = finished.start(*FLOW, TEACHER, **gate.variables)
    gate.wait(flow)
    flow.kill()
    flow.communicate()
    killed = finished.flow_runs()[0]
    assert killed["state_name"] == "Running"
    assert finished.lock == before
    gate.open()
    assert "Running stage" in finished.dvc("repro", TEACHER)
    assert set(states(finished.flows("run", TEACHER)).values()) == {"Cached"}
    assert {run["id"]: run["state_name"] for run in finished.flow_runs()}[killed["id"]] == "Crashed"
    found = finished.prefect("task_runs/filter", flow_runs={"id": {"any_": [killed["id"]]}})
    assert "Running" not in {task["state_name"] for task in found}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_flow_that_is_interrupted_ends_quickly_and_resumes(
    finished: Project, gate: Gate, number: signal.Signals, code: int
) -> None:
    before = finished.lock
    finished.set_params(teachers__wide=WAITING)
    flow = finished.start(*FLOW, TEACHER, **gate.variables)
    gate.wait(flow)
    flow.send_signal(number)
    assert "the next run resumes" in ended(flow, code)
    assert finished.flow_runs()[0]["state_name"] == "Crashed"
    assert finished.lock == before
    assert not (finished.root / "models" / "teachers" / "wide").exists()
    gate.open()
    assert states(finished.flows("run", TEACHER))[TEACHER] == "Completed"


def test_leftovers_of_a_teacher_that_is_gone_are_pruned_before_distilling(finished: Project) -> None:
    for place in ("models/teachers/old", "data/soft_targets/old"):
        shutil.copytree(finished.root / place.replace("old", "wide"), finished.root / place)
    shutil.copy(finished.root / "reports/soft_targets/wide.json", finished.root / "reports/soft_targets/old.json")
    output = finished.flows("run", "distill")
    assert "removed models/teachers/old" in output
    left = [path for path in finished.root.rglob("*") if path.stem == "old" and ".dvc" not in path.parts]
    assert not left
    assert "distill" not in finished.dvc("status", "distill")
