"""What the files promise each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import STAGES
from tests.code_dependencies import PIPELINE, ROOT, dependencies, needed


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_runs(stage):
    stated = dependencies(stage)
    missing = {
        file
        for file in needed(stage)
        if file not in stated and not any(str(parent) in stated for parent in Path(file).parents)
    }
    assert not missing, f"dvc.yaml: {stage} must list {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_no_code_that_it_does_not_run(stage):
    code = {dep for dep in dependencies(stage) if dep.startswith(("tasks/", "distillery/")) and dep.endswith(".py")}
    assert code <= needed(stage), f"dvc.yaml: {stage} need not list {sorted(code - needed(stage))}"


def test_stages_are_those_of_the_pipeline():
    assert tuple(PIPELINE) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_plain_process(stage):
    definition = PIPELINE[stage]
    command = definition["do"]["cmd"] if "do" in definition else definition["cmd"]
    assert command == f"python -m tasks {stage}" + ("@${key}" if "do" in definition else "")


def test_nothing_of_this_is_too_big_for_git():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all((ROOT / name).stat().st_size < 1_000_000 for name in files.split("\0") if (ROOT / name).is_file())


def test_importing_a_room_touches_nothing(tmp_path: Path):
    code = "import distillery, tasks, flows, tasks.params, tasks.stage; import sys; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False" and not list(tmp_path.iterdir())
