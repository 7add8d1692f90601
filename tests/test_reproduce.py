"""Promises to operators about files: a model can be made again, and a clone gets everything from a remote."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.projects import Project, states

pytestmark = pytest.mark.slow
CLEAN = "Data and pipelines are up to date."


def forget(project: Project, lock: str, *stages: str) -> None:
    """Takes what stages made out of DVC's cache, and all that the run cache knows."""
    cache = project.root / ".dvc" / "cache"
    for stage in stages:
        for out in yaml.safe_load(lock)["stages"][stage]["outs"]:
            (cache / "files" / "md5" / out["md5"][:2] / out["md5"][2:]).unlink()
    shutil.rmtree(cache / "runs")


def test_a_model_is_made_again_elsewhere_while_the_project_goes_on(finished: Project) -> None:
    first, first_lock = finished.files, finished.lock
    finished.set_params(distill__training={"epochs": 1, "learning_rate": 0.01})
    finished.flows("run")
    assert finished.files["models/student"] != first["models/student"]
    now, params = finished.lock, (finished.root / "params.yaml").read_text()
    output = finished.flows("reproduce", "models:/student/1")
    assert "weights  equal" in output and "model    equal" in output
    assert "Running stage" not in output  # DVC's cache holds all of it
    # What the cache has lost is computed, from its beginnings, to the same bytes.
    forget(finished, first_lock, "distill", "evaluate")
    output = finished.flows("reproduce", "models:/student/1", "--into", str(finished.root.parent / "again"))
    assert "Running stage 'distill'" in output and "Running stage 'train_teacher@wide'" not in output
    assert "weights  equal" in output and "model    equal" in output
    assert "weights  equal" in finished.flows("reproduce", "models:/teacher/1")
    assert (finished.lock, (finished.root / "params.yaml").read_text()) == (now, params)
    assert CLEAN in finished.dvc("status")


def test_a_model_that_comes_out_otherwise_is_said_to_differ(finished: Project) -> None:
    client = MlflowClient(f"sqlite:///{finished.root}/mlflow.db")
    client.set_model_version_tag("student", "1", "digest", "0" * 64)
    output = finished.flows("reproduce", "models:/student/1", code=1)
    assert "weights  equal" in output and "model    DIFFERENT" in output


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("models:/student/7", r"the registry has no models:/student/7"),
        ("models:/student@best", r"the registry has no models:/student@best .*it has 1 and the aliases @challenger"),
        ("student", r"'student' names no version: say models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_a_version_that_does_not_exist_is_told(finished: Project, model: str, told: str) -> None:
    output = " ".join(finished.flows("reproduce", model, code=1).split())
    assert re.search(told, output), output


def test_a_clone_that_pulls_finds_everything_up_to_date(finished: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    finished.dvc("remote", "add", "--local", "--default", "store", str(store))
    finished.dvc("push", "--run-cache")
    finished.git("add", "--all")
    finished.git("-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "Run")
    clone = Project(tmp_path / "clone")
    finished.git("clone", "--quiet", str(finished.root), str(clone.root))
    clone.dvc("remote", "add", "--local", "--default", "store", str(store))
    clone.dvc("pull", "--run-cache")
    assert CLEAN in clone.dvc("status")
    forecast = clone.flows("run", "--dry-run")
    assert {line.split()[1] for line in forecast.splitlines()[1:] if line.strip()} == {"cached"}
    assert states(clone.flows("run", "evaluate"))["evaluate"] == "Cached"
