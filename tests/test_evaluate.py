"""What is measured is right, the validation split decides what ships, and the files for DVC read well."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.saved import load_model, predict
from flows import summary
from tasks.reporting import wording
from tasks.results import Evaluation, ExportReport, Shipped, candidates
from tests.small_project import copied, run

NAMES = ["teacher-wide", "baseline", "distilled", "finetuned"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated; only read."""
    return copied(tmp_path_factory.mktemp("evaluated"), "export", "evaluate")


@pytest.fixture(scope="module")
def evaluation(project: Path) -> Evaluation:
    return Evaluation.read(project / "reports/evaluation.json")


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_saved_models(project: Path, evaluation: Evaluation, name: str, split: str) -> None:
    columns = Columns.open(project / f"data/prepared/{split}")
    folders = {"teacher-wide": "teachers/wide"}
    outputs = predict(load_model(project / "models" / folders.get(name, name)), columns)
    predicted = outputs.argmax(axis=1)
    measured = evaluation.models[name]
    scores = (measured.test if split == "test" else measured.validation).only
    assert scores.accuracy.value == pytest.approx(accuracy_score(columns.target, predicted))
    assert scores.macro_f1.value == pytest.approx(f1_score(columns.target, predicted, average="macro"))
    assert scores.accuracy.low <= scores.accuracy.value <= scores.accuracy.high
    assert sum(map(sum, scores.confusion)) == len(columns)
    if name == "teacher-wide":
        assert scores.agreement is None and scores.kl is None
    else:
        teacher = predict(load_model(project / "models/teachers/wide"), columns).argmax(axis=1)
        assert scores.agreement is not None and scores.agreement.value == pytest.approx((teacher == predicted).mean())
        assert scores.kl is not None and scores.kl > 0


def test_the_exported_model_is_measured_too(evaluation: Evaluation) -> None:
    for model in evaluation.models.values():
        assert model.onnx is not None
        assert model.onnx.test.only.accuracy.value == pytest.approx(model.test.only.accuracy.value, abs=0.01)
        assert 0 < model.onnx.latency_ms <= model.onnx.latency_p95_ms
        assert model.onnx.throughput > 0
    assert evaluation.models["teacher-wide"].parameters > evaluation.student.parameters
    assert evaluation.models["teacher-wide"].onnx.size > evaluation.student.onnx.size


def test_paired_differences_are_differences_of_the_scores(evaluation: Evaluation) -> None:
    assert len(evaluation.comparisons) == 12
    for found in evaluation.comparisons:
        model, reference = evaluation.models[found.model], evaluation.models[found.reference]
        ours, theirs = (getattr(measured, found.split) for measured in (model, reference))
        expected = ours.figure(found.metric).value - theirs.figure(found.metric).value
        assert found.difference.value == pytest.approx(expected)
        assert found.difference.low <= found.difference.value <= found.difference.high


def test_the_shipped_student_is_the_better_one_on_validation(project: Path, evaluation: Evaluation) -> None:
    shipped = Shipped.read(project / "models/student/shipped.json")
    order = ("distilled", "finetuned", "baseline")
    assert shipped == evaluation.shipped
    assert shipped.candidate == max(order, key=lambda name: evaluation.models[name].validation.only.accuracy.value)
    folder = project / "models/student"
    source = project / "models" / shipped.candidate
    assert (folder / "weights.safetensors").read_bytes() == (source / "weights.safetensors").read_bytes()
    onnx = project / f"models/onnx/{shipped.candidate}.onnx"
    assert (folder / "model.onnx").read_bytes() == onnx.read_bytes()
    assert (folder / "model.int8.onnx").exists() == (evaluation.student.int8 is not None)
    # The folder stands alone: it loads as a saved model.
    assert load_model(folder).parameter_count == evaluation.student.parameters


def test_validation_alone_decides_and_a_tie_keeps_the_distilled_student(tmp_path: Path) -> None:
    """The fine-tuned student is made better on the test split and equal, then better, on validation."""
    root = copied(tmp_path, "export", "evaluate")
    shutil.rmtree(root / "models/finetuned")
    shutil.copytree(root / "models/distilled", root / "models/finetuned")
    run(root, "evaluate")
    tie = Evaluation.read(root / "reports/evaluation.json")
    assert tie.shipped.candidate == "distilled"
    assert "a tie keeps the distilled" in tie.shipped.because
    found = tie.comparison("finetuned", "distilled", "validation", "accuracy")
    assert (found.difference.value, found.p_value) == (0.0, 1.0)

    shutil.rmtree(root / "models/finetuned")
    shutil.copytree(root / "models/teachers/wide", root / "models/finetuned")
    run(root, "evaluate")
    better = Evaluation.read(root / "reports/evaluation.json")
    assert (
        better.models["finetuned"].validation.only.accuracy.value
        > better.models["distilled"].validation.only.accuracy.value
    )
    assert better.shipped.candidate == "finetuned"
    assert "that of the distilled student" in better.shipped.because


def test_a_student_alone_that_is_better_ships_and_that_is_said(tmp_path: Path) -> None:
    root = copied(tmp_path, "export", "evaluate")
    shutil.rmtree(root / "models/baseline")
    shutil.copytree(root / "models/teachers/wide", root / "models/baseline")
    run(root, "evaluate")
    found = Evaluation.read(root / "reports/evaluation.json")
    assert found.shipped.candidate == "baseline"
    assert "Distillation did not pay" in found.shipped.because
    assert wording.headline(found) == "The student alone ships: distillation did not pay off"
    assert (root / "models/student/weights.safetensors").read_bytes() == (
        root / "models/baseline/weights.safetensors"
    ).read_bytes()


def test_files_for_dvc_hold_every_model(project: Path, evaluation: Evaluation) -> None:
    table = json.loads((project / "reports/metrics.json").read_text())
    assert set(NAMES) <= set(table)
    assert table["distilled"]["accuracy"] == pytest.approx(
        evaluation.models["distilled"].test.only.accuracy.value, abs=1e-5
    )
    assert not [key for row in table.values() for key in row if "latency" in key], "times differ from run to run"
    with (project / "reports/plots/curves.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == ["epoch", "model", "accuracy", "macro_f1", "nll", "score"]
    assert {line["model"] for line in lines} == {"Teacher wide", "Student alone", "Distilled", "Fine-tuned"}
    assert sum(line["model"] == "Distilled" for line in lines) == 16
    with (project / "reports/plots/confusion.csv").open(newline="") as stream:
        pairs = [(line["actual"], line["predicted"]) for line in csv.DictReader(stream)]
    hits = np.mean([actual == predicted for actual, predicted in pairs])
    assert hits == pytest.approx(evaluation.student.test.only.accuracy.value)


def test_figures_repeat_but_for_times(tmp_path: Path, project: Path) -> None:
    root = copied(tmp_path, "export", "evaluate")
    run(root, "evaluate")
    for name in ("reports/metrics.json", "reports/plots/curves.csv", "models/student/shipped.json"):
        assert (root / name).read_bytes() == (project / name).read_bytes()


def test_unlabelled_test_rows_count_for_agreement_alone(tmp_path: Path) -> None:
    root = copied(tmp_path, "export", "evaluate")
    before = Evaluation.read(root / "reports/evaluation.json")
    test = Columns.open(root / "data/prepared/test")
    hidden = np.where(np.arange(len(test)) % 2 == 0, -1, test.target)
    Columns(
        test.schema, test.keys, {"label": hidden}, {name: np.array(column) for name, column in test.inputs.items()}
    ).write(root / "data/prepared/test")
    run(root, "evaluate")
    after = Evaluation.read(root / "reports/evaluation.json")
    assert after.splits["test"].labelled == len(test) // 2
    assert after.models["distilled"].test.only.agreement == before.models["distilled"].test.only.agreement
    assert sum(map(sum, after.models["distilled"].test.only.confusion)) == len(test) // 2

    nothing = np.full(len(test), -1)
    Columns(
        test.schema, test.keys, {"label": nothing}, {name: np.array(column) for name, column in after_inputs(root)}
    ).write(root / "data/prepared/test")
    with pytest.raises(UserError, match="the test split has no label in 'label'"):
        run(root, "evaluate")


def after_inputs(root: Path) -> list[tuple[str, np.ndarray]]:
    return [(name, np.array(column)) for name, column in Columns.open(root / "data/prepared/test").inputs.items()]


def test_an_export_without_a_candidate_is_told(tmp_path: Path) -> None:
    root = copied(tmp_path, "export")
    file = root / "models/onnx/export.json"
    report = ExportReport.read(file)
    fewer = {name: model for name, model in report.models.items() if name != "baseline"}
    report.model_copy(update={"models": fewer}).write(file)
    with pytest.raises(UserError, match="models/onnx has no baseline; run `python -m flows run export`"):
        run(root, "evaluate")
    assert not (root / "reports/evaluation.json").exists()
    assert not (root / "models/student").exists()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    with pytest.raises(UserError, match="is missing; run `python -m flows run` first"):
        Evaluation.read(file)
    file.write_text('{"targets": 3}')
    with pytest.raises(UserError, match="is damaged or of another version"):
        Evaluation.read(file)


def test_candidates_are_the_teachers_listened_to_and_the_students(project: Path) -> None:
    from tasks.params import load

    assert [candidate.name for candidate in candidates(load(project))] == NAMES


@pytest.mark.parametrize(("width", "intervals"), [(120, True), (100, True), (80, False)])
def test_the_terminal_shows_every_model_in_full(
    project: Path, evaluation: Evaluation, width: int, intervals: bool
) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, record=True)
    with console.capture() as capture:
        summary.show(project, console)
    text = capture.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    found = evaluation.models["distilled"].test.only.accuracy
    assert f"{100 * found.value:.1f}" in text
    assert (f"({100 * found.low:.1f}-{100 * found.high:.1f})" in text) == intervals
    shipped = {"distilled": "Distilled *", "finetuned": "Fine-tuned *", "baseline": "Student alone *"}[
        evaluation.shipped.candidate
    ]
    assert shipped in text
    for name in ("Teacher wide", "Student alone", "Distilled", "Fine-tuned"):
        assert name in text
