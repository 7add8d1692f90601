"""What the files promise each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks import STAGES

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What every stage gets from its wrapper and never makes a result stale: parameters, tracking, bars.
WRAPPER = {
    f"tasks.{name}" for name in ("stage", "progress", "params", "tracking", "environment", "failures", "folders")
}
# Registries import their parts by name, so each of them may run.
BY_NAME = {"distillery.models", "distillery.sources"}


def file_of(module: str) -> Path | None:
    """The file of one of the project's own modules."""
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported(file: Path) -> set[str]:
    """The project's own modules that a file imports, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("tasks", "distillery") and file_of(name)}


def needed(stage: str) -> set[str]:
    """The files that a stage runs: its own and, through every import, the parts of distillery and its helpers."""
    waiting, seen = [f"tasks.{stage}"], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module in WRAPPER | {"tasks"}:
            continue
        seen.add(module)
        file = file_of(module)
        assert file is not None
        waiting += imported(file)
        if module in BY_NAME:
            waiting += [f"{module}.{part.stem}" for part in file.parent.glob("*.py") if part.stem != "__init__"]
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        parents = module.split(".")[:-1]
        waiting += [".".join(parents[: n + 1]) for n in range(len(parents)) if file_of(".".join(parents[: n + 1]))]
    files = {file_of(module) for module in seen}
    return {str(file.relative_to(ROOT)) for file in files if file is not None and file.read_text().count("\n") > 2}


def dependencies(stage: str) -> set[str]:
    definition = PIPELINE[stage].get("do", PIPELINE[stage])
    return set(definition["deps"])


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
