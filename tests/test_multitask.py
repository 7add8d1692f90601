"""Three targets of three kinds and two teachers through every stage: shared, judged one by one, and reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from distillery.columns import Columns
from distillery.saved import load_model, predict
from distillery.scores import scores
from tasks.folders import make_standing
from tasks.results import Evaluation
from tests.data_fixtures import stages

ROOT = Path(__file__).parents[1]
BEFORE = [
    *("ingest", "validate", "prepare", "snapshot", "train_teacher@wide", "train_teacher@deep", "soft_targets@wide"),
    *("soft_targets@deep", "validate_soft_targets@wide", "validate_soft_targets@deep", "train_baseline", "distill"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario with short trainings."""
    root = tmp_path_factory.mktemp("multitask")
    document = yaml.safe_load((ROOT / "scenarios/multitask.yaml").read_text())
    document["teachers"]["wide"]["training"]["epochs"] = 60
    document["distill"]["training"]["epochs"] = 25
    document["evaluate"]["resamples"] = 200
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    loader = Path("distillery/sources/digits.py")
    (root / loader).parent.mkdir(parents=True)
    shutil.copy(ROOT / loader, root / loader)
    make_standing(root)
    stages(root, *BEFORE, "finetune", "train_ablations", "export", "evaluate", "report")
    return root


@pytest.fixture(scope="module")
def evaluation(project: Path) -> Evaluation:
    return Evaluation.read(project / "reports/evaluation.json")


def test_every_target_is_learned_and_measured(project: Path, evaluation: Evaluation) -> None:
    assert {name: target.kind for name, target in evaluation.targets.items()} == {
        "label": "classes", "ink": "number", "traits": "labels",
    }  # fmt: skip
    test = Columns.open(project / "data/prepared/test")
    found = scores(predict(load_model(project / "models/distilled"), test), test.targets, test.schema)
    measured = evaluation.models["distilled"].test
    assert measured.score.value == pytest.approx(found["score"])
    assert measured.targets["ink"].r2.value == pytest.approx(found["ink.r2"])
    assert measured.targets["ink"].rmse.value == pytest.approx(found["ink.rmse"])
    assert measured.targets["traits"].micro_f1.value == pytest.approx(found["traits.micro_f1"])
    assert min(found["label.accuracy"], found["ink.r2"], found["traits.micro_f1"]) > 0.6
    assert evaluation.primary == "score"


def test_each_target_alone_and_each_teacher_alone_stand_beside_the_shared_student(evaluation: Evaluation) -> None:
    alone = {one.target: one for one in evaluation.ablations if one.target}
    assert alone.keys() == evaluation.targets.keys()
    shared = evaluation.models["distilled"].test.targets
    assert alone["ink"].distilled.value == pytest.approx(shared["ink"].r2.value)
    for one in evaluation.ablations:
        assert one.difference.value == pytest.approx(one.distilled.value - one.value.value)
    assert {one.teacher for one in evaluation.ablations if one.teacher} == {"wide", "deep"}
    assert evaluation.contributions.keys() == {"wide", "deep"}
    assert sum(gave.weight for gave in evaluation.contributions.values()) == pytest.approx(1.0)
    assert {"label.kd", "ink.mse_teacher", "traits.multilabel_kd"} <= evaluation.contributions["wide"].losses.keys()


def test_the_onnx_file_answers_in_the_targets_own_units(project: Path) -> None:
    test = Columns.open(project / "data/prepared/test")
    session = onnxruntime.InferenceSession(project / "models/student/model.onnx")
    (outputs,) = session.run(["logits"], {"image": np.array(test.inputs["image"][:200])})
    assert outputs.shape == (200, 14)
    assert np.corrcoef(outputs[:, 10], test.targets["ink"][:200])[0, 1] > 0.8
    assert np.abs(outputs[:, 10] - test.targets["ink"][:200]).mean() < 3


def test_the_page_and_the_card_tell_of_every_target(project: Path) -> None:
    page = (project / "reports/report.html").read_text(encoding="utf-8")
    for text in (
        "Did sharing hurt?",
        "What each teacher gave",
        "ink: how far answers are off",
        "which labels are found",
    ):
        assert text in page
    card = (project / "reports/model_card.md").read_text(encoding="utf-8")
    assert "14)" in card and "ink: one number, in its own unit" in card
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert {"score", "label.accuracy", "ink.r2", "traits.micro_f1"} <= metrics["distilled"].keys()
