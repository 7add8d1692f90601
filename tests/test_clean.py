"""Promises of cleaning: shown first, and nothing goes that the workspace, an alias or `reproduce` needs."""

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.versioning.cache import OBJECTS, of_workspace, unneeded
from tests.projects import Project

pytestmark = pytest.mark.slow
CLEAN = "Data and pipelines are up to date."


def objects(project: Project) -> set[str]:
    cache = project.root / ".dvc" / "cache" / OBJECTS
    return {file.parent.name + file.name for file in cache.glob("*/*")}


def age(folder: Path, days: float = 40) -> None:
    """Makes everything in a folder look old."""
    then = time.time() - timedelta(days=days).total_seconds()
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def test_only_what_nothing_needs_goes_and_only_when_told(finished: Project) -> None:
    client = MlflowClient(f"sqlite:///{finished.root}/mlflow.db")
    client.set_registered_model_alias("student", "champion", "1")
    # Version 1 is the champion, 2 nobody's, 3 the challenger and what the workspace holds.
    for epochs in (1, 2):
        finished.set_params(distill__training={"epochs": epochs, "learning_rate": 0.01})
        finished.flows("run")
    of_workspace_now = of_workspace(finished.root)
    state = finished.root / ".state"
    abandoned = (state / "checkpoints" / "distill" / "0123", state / "soft_targets" / "gone")
    for folder in abandoned:
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"0" * 1000)
    assert "nothing can go" in finished.flows("clean")  # all of it is young
    age(state / "checkpoints")
    age(state / "soft_targets")
    age(finished.root / ".dvc" / "cache")
    before = objects(finished)

    shown = finished.flows("clean", "--older-than", "0h")
    assert "student version 2" in shown and "student version 1" not in shown and "student version 3" not in shown
    assert "checkpoints/distill/0123" in shown and "soft_targets/gone" in shown and "soft_targets/wide" not in shown
    assert "nothing is removed yet; --yes removes" in shown
    assert "Prefect" in shown
    assert objects(finished) == before and all(folder.exists() for folder in abandoned)

    finished.flows("clean", "--older-than", "0h", "--yes")
    assert not any(folder.exists() for folder in abandoned) and (state / "soft_targets" / "wide").exists()
    assert sorted(str(one.version) for one in client.search_model_versions("name = 'student'")) == ["1", "3"]
    assert objects(finished) < before
    assert of_workspace(finished.root) == of_workspace_now
    assert CLEAN in finished.dvc("status")
    assert not finished.flow_runs()
    shutil.rmtree(finished.root / "models" / "distilled")
    finished.dvc("checkout")
    told = finished.flows("reproduce", "models:/student@champion")
    assert "weights  equal" in told and "Running stage" not in told
    assert "nothing can go" in finished.flows("clean", "--older-than", "1d")


def test_a_folder_of_the_cache_keeps_its_files(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, text in {"aa1.dir": '[{"md5": "bb2", "relpath": "x"}]', "bb2": "x", "cc3": "y", "dd4": "z"}.items():
        file = cache / OBJECTS / name[:2] / name[2:]
        file.parent.mkdir(parents=True)
        file.write_text(text)
    age(cache)
    young = cache / OBJECTS / "ee" / "5"
    young.parent.mkdir()
    young.touch()
    left = unneeded(cache, ["aa1.dir", "dd4"], time.time() - 60)
    assert [file.relative_to(cache / OBJECTS).as_posix() for file in left] == ["cc/3"]
