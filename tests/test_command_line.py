"""What somebody at a terminal meets: quick help, clear errors, servers that come and go."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.projects import Gate, Project, ended, until

HEAVY = {"prefect", "mlflow", "torch", "dvc", "pandas", "numpy", "great_expectations", "rich", "pydantic", "yaml"}
SERVER = (sys.executable, "-m", "flows", "server")


@pytest.mark.parametrize("module", ["flows", "tasks"])
def test_help_is_light_and_shows_examples(module: str) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        f"except SystemExit: print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert "examples:" in output and output.splitlines()[-1] == "[]"


def test_an_unknown_stage_is_told_with_the_list(project: Project) -> None:
    for output in (project.flows("run", "distil", code=1), project.tasks("distil", code=1)):
        assert "no stage is called 'distil'" in output and "train_baseline" in output
    assert "train_teacher@wide" in project.tasks("train_teacher", code=1)


@pytest.mark.parametrize(
    ("module", "arguments", "code", "told"),
    [
        ("flows", ["run", "--root", __file__], 1, "is no folder: name that of the project"),
        ("tasks", ["ingest", "--root", __file__], 1, "is no folder: name that of the project"),
        ("flows", ["clean", "--older-than", "99999999999d"], 2, "is no age: say 30d or 12h"),
        ("flows", ["compare", "--seeds", "0"], 2, "say 1 or more"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(
    project: Project, module: str, arguments: list[str], code: int, told: str
) -> None:
    assert told in project.run(sys.executable, "-m", module, *arguments, code=code)


def test_a_mistake_in_params_is_told_before_anything_starts(project: Project) -> None:
    project.set_params(distill__teachers=["nobody"])
    output = project.flows("run", code=1)
    assert "distill.teachers: 'nobody' is not among teachers: wide" in output
    assert "server" not in output


def test_a_dry_run_changes_nothing(project: Project) -> None:
    def everything() -> set[Path]:
        return {
            path for path in project.root.rglob("*") if "__pycache__" not in path.parts and ".dvc" not in path.parts
        }

    before = everything()
    output = project.flows("run", "--dry-run", "prepare", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert [line.split()[:2] for line in output.splitlines()[1:]] == [
        ["ingest", "run"],
        ["validate", "follows"],
        ["prepare", "follows"],
    ]
    assert everything() == before


def test_a_dead_server_that_the_user_named_is_told(project: Project) -> None:
    output = project.flows("run", code=1, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "the Prefect server http://127.0.0.1:9/api (PREFECT_API_URL) does not answer" in output


def test_a_tracking_server_that_is_dead_is_told_before_a_stage_runs(finished: Project) -> None:
    output = finished.flows("run", "ingest", code=1, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert output.count("http://127.0.0.1:9") == 1 and "ingest" not in output


def test_a_taken_port_is_told_with_its_owner_and_the_option(project: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for option, rest in (("--prefect-port", "--mlflow-port"), ("--mlflow-port", "--prefect-port")):
            output = project.run(*SERVER, option, port, rest, "0", code=1)
            assert f"port {port} cannot be used" in output and f"PID {os.getpid()}" in output and option in output
    assert not (project.root / ".state" / "servers.json").exists()


@pytest.mark.slow
def test_servers_answer_are_found_and_leave_nothing_behind(project: Project) -> None:
    state = project.root / ".state"
    state.mkdir()
    # Left by servers that were killed long ago.
    (state / "servers.json").write_text(json.dumps({"pid": "4194303", "prefect": "http://127.0.0.1:9", "mlflow": "-"}))
    assert "train_teacher" in project.flows("run", "--dry-run")
    (state / "servers.json").unlink()
    server = project.start(*SERVER, "--prefect-port", "0", "--mlflow-port", "0")
    until(lambda: (state / "servers.json").exists() or server.poll() is not None)
    found = json.loads((state / "servers.json").read_text())
    assert found["pid"] == str(server.pid)
    output = project.run(*SERVER, code=1)
    assert f"run already (PID {server.pid})" in output and found["prefect"] in output
    server.send_signal(signal.SIGINT)
    output = ended(server, 130)
    assert found["prefect"] in output and found["mlflow"] in output and "both servers are stopped" in output
    assert not (state / "servers.json").exists()
    for address in (found["prefect"], found["mlflow"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_a_scenario_replaces_params_but_no_unsaved_change(project: Project) -> None:
    file = project.root / "params.yaml"
    name = sorted((project.root / "scenarios").glob("*.yaml"))[0].stem
    for output in (project.flows("init"), project.flows("init", "nothing", code=1)):
        assert name in output
    project.flows("init", name)
    assert file.read_bytes() == (project.root / "scenarios" / f"{name}.yaml").read_bytes()
    project.set_params(seed=8)
    before = file.read_bytes()
    assert "--force" in project.flows("init", name, code=1)
    assert file.read_bytes() == before
    project.flows("init", name, "--force")
    assert yaml.safe_load(file.read_text())["seed"] == 7


@pytest.mark.slow
def test_a_stage_by_hand_says_what_dvc_will_think(finished: Project) -> None:
    finished.set_params(evaluate__resamples=150)
    before = finished.lock
    output = finished.tasks("evaluate")
    assert "`dvc status` tells: evaluate.resamples 200 -> 150" in output and "dvc commit evaluate" in output
    assert finished.lock == before
    finished.dvc("commit", "--force", "evaluate")
    assert "evaluate:" not in finished.dvc("status")


@pytest.mark.slow
def test_a_stage_by_hand_ends_cleanly_when_terminated(finished: Project, gate: Gate) -> None:
    finished.set_params(teachers__wide={"model": {"name": "custom.models:waiting"}, "training": {"epochs": 1}})
    weights = finished.root / "models" / "teachers" / "wide" / "weights.safetensors"
    before = weights.read_bytes()
    stage = finished.start(sys.executable, "-m", "tasks", "train_teacher@wide", **gate.variables)
    gate.wait(stage)
    stage.send_signal(signal.SIGTERM)
    assert "resumes train_teacher@wide" in ended(stage, 143)
    assert weights.read_bytes() == before
    assert not list((finished.root / ".state" / "staging").iterdir())
