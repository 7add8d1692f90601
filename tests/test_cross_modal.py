"""A teacher that reads other columns than its student: what it says reaches the student through the rows' identity."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from distillery import models
from distillery.columns import Columns
from distillery.config import TrainingConfig
from distillery.objectives.configs import Kd
from distillery.objectives.registry import build
from distillery.saved import load_model, predict
from distillery.schema import UNLABELLED, Schema
from distillery.scores import scores
from distillery.soft_targets import SoftTargets, StoredTeacher
from distillery.training import train
from tasks.folders import make_standing
from tasks.params.sections import StudentConfig
from tests.data_fixtures import stages

ROOT = Path(__file__).parents[1]
SCENARIO = ROOT / "scenarios" / "multifeat.yaml"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario up to its soft targets."""
    root = tmp_path_factory.mktemp("multifeat")
    shutil.copy(SCENARIO, root / "params.yaml")
    loader = Path("distillery/sources/multifeat.py")
    (root / loader).parent.mkdir(parents=True)
    shutil.copy(ROOT / loader, root / loader)
    make_standing(root)
    stages(root, "ingest", "prepare", "snapshot", "train_teacher@wide", "soft_targets@wide")
    return root


def accuracy(root: Path, stored: np.ndarray) -> float:
    """Of a student that reads zer alone and hears what was stored."""
    document = yaml.safe_load(SCENARIO.read_text())
    student = StudentConfig.model_validate(document["student"])
    rows, validation, test = (Columns.open(root / "data/prepared" / name) for name in ("train", "validation", "test"))
    network = models.build(student.model, rows.schema.select(student.inputs or (), "inputs"), seed=1)
    network.fit_normalisation(rows)
    loss = build([Kd(name="kd")], network, {"wide": None})
    config = TrainingConfig.model_validate(document["distill"]["training"])
    teachers = {"wide": StoredTeacher(stored)}
    train(network, loss, rows, validation, config, seed=1, rows=np.arange(len(rows)), teachers=teachers)
    assert network.schema.inputs.keys() == {"zer"}
    return scores(predict(network, test), test.targets, test.schema)["accuracy"]


def test_a_student_learns_from_a_view_that_it_never_reads(taught: Path) -> None:
    stored = SoftTargets.open(taught / "data/soft_targets/wide").part("train")
    assert accuracy(taught, stored) >= 0.80
    shuffled = np.random.default_rng(0).permutation(len(stored))
    assert accuracy(taught, stored[shuffled]) < 0.40


def test_the_student_sees_fifty_labels_and_the_teacher_all(taught: Path) -> None:
    folder = taught / "data/prepared/train"
    assert (Columns.open(folder).target != UNLABELLED).sum() == 50
    assert (Columns.open(folder, hidden=True).target != UNLABELLED).all()
    assert Schema.read(folder / "schema.json").inputs.keys() == {"pix", "kar", "zer"}
    assert load_model(taught / "models/teachers/wide").schema.inputs.keys() == {"pix", "kar"}
