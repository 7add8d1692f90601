"""A whole project on scikit-learn's digits, built by the real stages in seconds, for what comes after training."""

import functools
import shutil
import tempfile
from pathlib import Path

from tasks.stage import Summary, execute
from tasks.tracking.tracker import NoRun

ROOT = Path(__file__).parents[1]
PARAMS = """
seed: 3
data:
  source: digits
  path: distillery/sources/digits.py
  columns: {inputs: [image], target: label}
  split: {train: 0.6, validation: 0.2, test: 0.2}
  labelled: 60
ingest: {}
validation: {soft_targets: {}}
teachers:
  wide:
    model: {name: mlp, hidden: [256]}
    training: {epochs: 60, learning_rate: 0.01}
soft_targets: {}
student:
  model: {name: mlp, hidden: [12]}
distill:
  teachers: [wide]
  objectives: [{name: kd, weight: 0.9, temperature: 2.0}, {name: cross_entropy, weight: 0.1}]
  training: {epochs: 16, learning_rate: 0.01}
finetune:
  training: {epochs: 3, learning_rate: 0.003}
export: {}
evaluate: {resamples: 500}
registry: {}
retraining: {snapshot: 0}
"""
TRAINED = (
    "ingest",
    "validate",
    "prepare",
    "snapshot",
    "train_teacher@wide",
    "soft_targets@wide",
    "validate_soft_targets@wide",
    "train_baseline",
    "distill",
    "finetune",
    "train_ablations",
)


def run(root: Path, stage: str) -> Summary:
    """Runs one stage as a flow would."""
    return execute(stage, root, run=NoRun(), key="0" * 32)


@functools.cache
def _built(*stages: str) -> "tempfile.TemporaryDirectory[str]":
    """Removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="small-project-")
    root = Path(folder.name)
    if stages == TRAINED:
        (root / "params.yaml").write_text(PARAMS, encoding="utf-8")
        (root / "distillery" / "sources").mkdir(parents=True)
        loader = "distillery/sources/digits.py"
        shutil.copy(ROOT / loader, root / loader)
        new = stages
    else:
        shutil.copytree(_built(*stages[:-1]).name, root, dirs_exist_ok=True)
        new = stages[-1:]
    for stage in new:
        run(root, stage)
    return folder


def copied(target: Path, *more: str) -> Path:
    """A project of its own, trained, with some of export, evaluate and report done too."""
    shutil.copytree(_built(*TRAINED, *more).name, target, dirs_exist_ok=True)
    return target
