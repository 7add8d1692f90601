"""Mistakes in params.yaml are told by the path of the key, before anything heavy is imported."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillery.errors import UserError
from tasks.params import load, parse

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(path: str, value: object) -> dict:
    document = copy.deepcopy(DOCUMENT)
    section = document
    *parents, last = path.split(".")
    for part in parents:
        section = section[int(part) if part.isdigit() else part]
    section[last] = value
    return document


def test_the_committed_parameters_are_valid():
    assert load(ROOT).distill.teachers == ("resnet",)


def test_scenarios_are_valid():
    scenarios = sorted((ROOT / "scenarios").glob("*.yaml"))
    assert scenarios
    for file in scenarios:
        assert parse(yaml.safe_load(file.read_text())).teachers


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seeed", 1, "seeed: unknown key"),
        ("student.model.chanels", [1], "student.model.chanels: unknown key"),
        ("seed", "seven", "seed: .*integer"),
        ("seed", -1, "seed: .*greater than or equal to 0"),
        ("distill.training.epochs", "many", "distill.training.epochs: .*integer"),
        ("distill.training.learning_rate", 0, "distill.training.learning_rate: .*greater than 0"),
        ("distill.training.epochs", 0, "training.epochs must be at least 1"),
        ("distill.teachers", ["other"], "distill.teachers: 'other' is not among teachers: resnet"),
        ("distill.teachers", [], "distill: teachers: scheme offline listens to at least one"),
        ("distill.objectives", [{"name": "cross_entropy"}], "no objective listens to a teacher"),
        ("distill.objectives", [{"name": "kd"}, {"name": "kd"}], "an objective stands once"),
        (
            "distill.objectives.0.weight",
            {"start": 0, "end": 1, "over": 2},
            "distill.objectives.0.weight.over: .*less than or equal to 1",
        ),
        ("distill.objectives", [{"name": "hints", "layers": {"student": ["a"], "teacher": []}}], "layers.teacher"),
        ("distill.mixing", {"name": "fixed", "weights": {"other": 1}}, "mixing.weights must name just .*: resnet"),
        ("distill.teachers", ["resnet", "resnet"], "a teacher stands once"),
        ("distill.objectives.0.temperature", 0, "distill.objectives.0.temperature: .*greater than 0"),
        ("distill.objectives.0.name", "kdd", "distill.objectives.0: must name one of kd, dkd, .*adversarial"),
        ("data.split", {"train": 0.5, "validation": 0.1, "test": 0.1}, "data.split: .*must be 1, not 0.7"),
        ("data.path", "data/raw", "data: the built-in source mnist5k needs path"),
        ("data.source", "sql", "data.source: .*mnist5k"),
        ("data.columns", {"inputs": ["a"], "target": "a"}, "data.columns: .*named twice: a"),
        ("data.labelled", 0, "data.labelled"),
        ("teachers", {"Big One": DOCUMENT["teachers"]["resnet"]}, "a teacher's key may hold"),
        ("teachers.resnet.model.depth", 9, "teachers.resnet.model: .*6n"),
        ("teachers.resnet.model", {"name": "vit"}, "teachers.resnet.model: must name one of mlp, .*or package"),
        ("teachers.resnet.model", {"name": "a.b:c", "weights": "w.safetensors"}, "custom/"),
        ("student", {}, "student.model: is missing"),
        ("registry", {"teacher": "m", "student": "m"}, "registry: .*different names"),
        ("registry.student", "team/student", "registry.student: .*'team/student' is no name .*: use letters, digits"),
        ("registry.student", "models:student", "registry.student: .*use letters"),
        ("registry.teacher", "o'brien", "registry.teacher: .*use letters"),
        ("registry.teacher", "", "registry.teacher: .*use letters"),
    ],
)
def test_a_mistake_is_told_by_the_path_of_its_key(path, value, message):
    with pytest.raises(UserError, match=message):
        parse(changed(path, value))


NUMBER = {"inputs": ["image"], "target": {"ink": "number"}}
SEVERAL = {"inputs": ["image"], "target": {"label": "classes", "tags": "labels"}}
MSE = [{"name": "mse_teacher"}, {"name": "mse"}]


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (NUMBER, {}, "kd is about classes, and ink is number: take mse or mse_teacher"),
        (NUMBER, {"distill.objectives": [{"name": "dkd"}]}, "dkd is about classes, and ink is number"),
        (NUMBER, {"distill.objectives": MSE, "evaluate.primary": "accuracy"}, "accuracy is not measured here; take r2"),
        (NUMBER, {"distill.objectives": MSE, "finetune.training.monitor": "macro_f1"}, "finetune.training.monitor"),
        (NUMBER, {"distill.objectives": MSE, "finetune.training.balance": "sampling"}, "sampling is for one target"),
        (NUMBER, {"distill.objectives": MSE, "distill.mixing": {"name": "confidence"}}, "take mean or fixed"),
        (NUMBER, {"distill.objectives": MSE, "soft_targets.dtype": "float16"}, "float16"),
        (NUMBER, {"distill.objectives": MSE, "validation.classes": [1]}, "validation.classes is for one target with"),
        (SEVERAL, {}, "with several targets name a list for each of label, tags"),
        (SEVERAL, {"distill.objectives": {"label": [{"name": "kd"}]}}, "a list for each target and no other"),
        (
            SEVERAL,
            {"distill.objectives": {"label": [{"name": "kd"}], "tags": [{"name": "kd"}]}},
            "kd is about classes, and tags is labels: take .*multilabel_kd",
        ),
        (
            SEVERAL,
            {
                "distill.objectives": {"label": [{"name": "kd"}], "tags": [{"name": "multilabel_kd"}]},
                "distill.weighting": {"name": "fixed", "weights": {"label": 1}},
            },
            "weighting.weights must name just the targets: label, tags",
        ),
        (DOCUMENT["data"]["columns"], {"student.inputs": ["sound"]}, "student.inputs: 'sound' is not among"),
    ],
)
def test_what_does_not_fit_the_targets_is_refused(columns, changes, message):
    document = changed("data.columns", columns)
    for path, value in changes.items():
        section = document
        *parents, last = path.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    with pytest.raises(UserError, match=message):
        parse(document)


def test_a_loss_over_the_batch_is_refused_under_accumulation():
    document = changed("distill.training.accumulate", 2)
    assert parse(document).distill.training.accumulate == 2
    document["distill"]["objectives"].append({"name": "rkd"})
    with pytest.raises(UserError, match="rkd compare all rows of a batch"):
        parse(document)


def test_all_mistakes_are_told_at_once():
    document = changed("seed", "x")
    document["extra"] = 1
    with pytest.raises(UserError) as caught:
        parse(document)
    assert "seed" in str(caught.value) and "extra" in str(caught.value)


def test_a_missing_section_is_told():
    document = copy.deepcopy(DOCUMENT)
    del document["finetune"]
    with pytest.raises(UserError, match="finetune: is missing"):
        parse(document)


def test_missing_broken_and_empty_files_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        load(tmp_path)
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(UserError, match="must hold sections"):
        load(tmp_path)


def test_data_that_are_not_there_are_told(tmp_path: Path):
    document = changed("data.source", "table")
    document["data"]["path"] = "data/raw"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match=r"data\.path: data/raw does not exist"):
        load(tmp_path)


def test_parameters_are_checked_without_heavy_imports():
    code = (
        "import sys; from pathlib import Path; from tasks.params import load; load(Path('.')); "
        "print(sorted({'torch', 'mlflow', 'prefect', 'pandas', 'dvc', 'great_expectations'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
