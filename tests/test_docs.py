"""What docs/objectives.md shows can be typed in."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillery.objectives.configs import NAMES
from tasks.params import parse

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("block", [block for block in YAML if "objectives:" in block])
def test_every_block_of_objectives_is_valid(block: str) -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    document["distill"] = yaml.safe_load(block)["distill"]
    document["teachers"]["wide"] = document["teachers"]["resnet"]
    objectives = document["distill"]["objectives"]
    if isinstance(objectives, dict):
        targets = next(yaml.safe_load(each) for each in YAML if each.startswith("data:"))
        document["data"]["columns"] = targets["data"]["columns"]
    found = parse(document).distill
    shown = objectives.values() if isinstance(objectives, dict) else [objectives]
    assert [each.name for each in found.all_objectives] == [each["name"] for some in shown for each in some]


def test_the_assistant_is_valid() -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    document |= next(yaml.safe_load(block) for block in YAML if block.startswith("teachers:"))
    document["distill"]["teachers"] = ["assistant"]
    assert parse(document).teachers["assistant"].model.name == "saved"


def test_the_table_names_every_objective() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE)) == set(NAMES)


def test_the_example_of_a_new_objective_works(tmp_path: Path) -> None:
    for name in ("distillery", "tests", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    objectives = tmp_path / "distillery" / "objectives"
    module, config = PYTHON
    (objectives / "huber.py").write_text(module)
    with (objectives / "configs" / "response.py").open("a") as file:
        file.write(f"\n\n{config}")
    imports = (
        "from distillery.objectives.configs.response import Huber\n",
        "from distillery.objectives.huber import HuberObjective\n",
    )
    for file, line, block in zip(("configs/__init__.py", "registry.py"), imports, DIFFS, strict=True):
        text = (objectives / file).read_text()
        before = "\n".join(each[1:] for each in block.splitlines() if each[0] in " -")
        after = "\n".join(each[1:] for each in block.splitlines() if each[0] in " +")
        assert text.count(before) == 1
        head, rest = text.replace(before, after).split("\nfrom ", 1)
        (objectives / file).write_text(f"{head}\n{line}from {rest}")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for tests in ("tests/objectives/test_every_objective.py", "tests/test_training.py"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "huber", str(tmp_path / tests)]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0 and " passed" in found.stdout, found.stdout
