"""What docs/objectives.md shows can be typed in."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from distillery.objectives.configs import NAMES, response
from distillery.objectives.objective import Setting
from distillery.signals import Signals
from tasks.params import parse

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
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


def test_the_example_of_a_new_objective_works() -> None:
    module, config = PYTHON
    exec(config, vars(response))  # as if it stood in that file
    names: dict[str, object] = {}
    exec(module, names)
    objective = names["HuberObjective"](vars(response)["Huber"](name="huber"), Setting(classes=3))
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    found = objective(Signals(student), Signals(teacher), torch.tensor([0, -1, 2, 1]))
    assert found.mean().item() == pytest.approx(functional.huber_loss(student, teacher).item())
