"""Where weights begin: chance, a file, an earlier run, a teacher's layers; or there are none and a service is asked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distillery import models
from distillery.config import Mlp, Resnet
from distillery.errors import UserError
from distillery.saved import load_model, predict, save_model
from distillery.schema import Input, Target
from distillery.soft_targets import SoftTargets
from distillery.starts import from_checkpoint, from_run, from_teacher
from tasks.results import EVALUATION, Evaluation
from tests.science import SCHEMA, digits
from tests.small_project import run
from tests.test_schemes import BOTH, project

SMALL = Mlp(name="mlp", hidden=(12,))


def network(seed: int, model=SMALL):
    built = models.build(model, SCHEMA, seed=seed)
    built.fit_normalisation(digits(0, 100 * seed))
    return built


def saved(folder: Path, seed: int = 1, model=SMALL):
    built = network(seed, model)
    save_model(folder, built, [], {})
    return built


def test_a_saved_model_starts_another_with_its_normalisation(tmp_path: Path):
    first, second = saved(tmp_path), network(2)
    from_checkpoint(second, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(predict(second, digits(0, 50)), predict(first, digits(0, 50)))


def test_the_bodys_own_weights_start_it_behind_the_present_normalisation(tmp_path: Path):
    first, second = network(1), network(2)
    save_file(first.body.state_dict(), tmp_path / "body.safetensors")
    mean = second.inputs[0].mean.clone()
    from_checkpoint(second, tmp_path / "body.safetensors")
    assert torch.equal(second.body.head.weight, first.body.head.weight) and torch.equal(second.inputs[0].mean, mean)


def test_a_checkpoint_that_does_not_fit_is_told_by_names_and_shapes(tmp_path: Path):
    saved(tmp_path, model=Mlp(name="mlp", hidden=(13,)))
    with pytest.raises(UserError, match=r"body\.hidden\.0\.weight has shape \(13, 64\), and the model's \(12, 64\)"):
        from_checkpoint(network(1), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"it lacks body\.hidden\.2\.bias.* and has body\.hidden\.3"):
        saved(tmp_path, model=Mlp(name="mlp", hidden=(12, 5), dropout=0.1))
        from_checkpoint(network(1, Mlp(name="mlp", hidden=(12, 5))), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is missing"):
        from_checkpoint(network(1), tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no safetensors file"):
        from_checkpoint(network(1), tmp_path / "broken.safetensors")


def test_layers_of_a_teacher_are_copied_and_the_others_stay():
    student, teacher = (
        network(1, Resnet(name="resnet", depth=8, width=4)),
        network(2, Resnet(name="resnet", depth=14, width=4)),
    )
    teacher.body.trunk.stem[1].running_mean += 1
    before = {name: value.clone() for name, value in student.state_dict().items()}
    from_teacher(student, teacher, {"trunk.stem": "trunk.stem", "trunk.stage3.0": "trunk.stage3.0"})
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        copied = name.startswith(("body.trunk.stem.", "body.trunk.stage3.0."))
        assert torch.equal(value, (theirs if copied else before)[name]), name


def test_layers_that_do_not_fit_are_told():
    student, teacher = network(1), network(2, Mlp(name="mlp", hidden=(20,)))
    with pytest.raises(
        UserError, match=r"head from the teacher's head: weight has shape \(10, 20\).*model's \(10, 12\)"
    ):
        from_teacher(student, teacher, {"head": "head"})
    with pytest.raises(UserError, match=r"no layer 'hidden\.00'; did you mean hidden\.0.* It has: hidden"):
        from_teacher(student, teacher, {"hidden.00": "hidden.0"})
    with pytest.raises(UserError, match=r"no layer 'had'; did you mean head"):
        from_teacher(student, teacher, {"head": "had"})


def test_a_run_that_does_not_fit_the_data_is_told(tmp_path: Path):
    first = saved(tmp_path)
    found = from_run(tmp_path, SCHEMA, "model.folder")
    np.testing.assert_array_equal(predict(found, digits(0, 50)), predict(first, digits(0, 50)))
    larger = {"image": Input(kind="image", shape=(1, 9, 9), columns=("image",))}
    with pytest.raises(UserError, match=r"model\.folder: .* reads image \(image \(1, 8, 8\).*data have.*\(1, 9, 9\)"):
        from_run(tmp_path, SCHEMA.model_copy(update={"inputs": larger}), "model.folder")
    fewer = {"label": Target(kind="classes", names=("0", "1"))}
    with pytest.raises(UserError, match=r"predicts label \(classes 0, 1, 2.*data have label \(classes 0, 1\)"):
        from_run(tmp_path, SCHEMA.model_copy(update={"targets": fewer}), "model.folder")
    with pytest.raises(UserError, match=r"holds no saved model; copy one there: cp -r models/student"):
        from_run(tmp_path / "nothing", SCHEMA, "model.folder")


def test_a_student_is_the_next_runs_teacher(tmp_path: Path):
    """Teacher, assistant, student: the chain of the documentation."""
    teacher = ("train_teacher@wide", "soft_targets@wide", "distill")
    first = project(tmp_path / "first", *teacher, student={"model": {"name": "mlp", "hidden": [32]}})
    middle = first / "models" / "distilled"
    second = tmp_path / "second"
    shutil.copytree(middle, second / "custom" / "assistant")
    assistant = {"model": {"name": "saved", "folder": "custom/assistant"}, "training": {"epochs": 0}}
    distill = {"teachers": ["assistant"], "objectives": [*BOTH, {"name": "hints", "weight": 0.01}]}
    stages = ("train_teacher@assistant", "soft_targets@assistant", "distill")
    project(second, *stages, teachers={"assistant": assistant, "wide": None}, distill=distill)
    taken = second / "models" / "teachers" / "assistant"
    assert load_file(taken / "weights.safetensors").keys() == load_file(middle / "weights.safetensors").keys()
    rows = digits(0, 50)
    np.testing.assert_array_equal(predict(load_model(taken), rows), predict(load_model(middle), rows))
    assert json.loads((second / "models/distilled/training.json").read_text())["best_score"] > 0.6


def test_a_student_starts_from_its_teacher_and_the_baseline_does_not(tmp_path: Path):
    same = {"name": "mlp", "hidden": [256]}
    start = {"name": "teacher", "teacher": "wide", "layers": {"hidden": "hidden"}}
    still = {"objectives": BOTH, "training": {"epochs": 1, "learning_rate": 1e-9}}
    root = project(
        tmp_path, "train_baseline", "train_teacher@wide", "soft_targets@wide", "distill",
        student={"model": same, "start": start}, distill=still,
    )  # fmt: skip
    layer = "body.hidden.0.weight"
    teacher, student, alone = (
        load_file(root / "models" / name / "weights.safetensors") for name in ("teachers/wide", "distilled", "baseline")
    )
    torch.testing.assert_close(student[layer], teacher[layer], rtol=0, atol=1e-6)
    assert (alone[layer] - teacher[layer]).abs().max() > 0.01


def test_both_students_start_from_a_checkpoint(tmp_path: Path):
    (tmp_path / "custom").mkdir()
    wanted = network(5).body.state_dict()
    save_file(wanted, tmp_path / "custom" / "start.safetensors")
    start = {"name": "checkpoint", "file": "custom/start.safetensors"}
    still = {"scheme": "self", "self": {"name": "born_again"}, "teachers": [], "objectives": BOTH}
    still["training"] = {"epochs": 1, "learning_rate": 1e-9}
    student = {"model": {"name": "mlp", "hidden": [12]}, "start": start}
    root = project(tmp_path, "train_baseline", "distill", student=student, distill=still)
    for name in ("distilled", "baseline"):
        found = load_file(root / "models" / name / "weights.safetensors")
        torch.testing.assert_close(found["body.head.weight"], wanted["head.weight"], rtol=0, atol=1e-6)


ASK = """
from pathlib import Path

import numpy as np

calls = []


def ask(inputs):
    calls.append(len(inputs["image"]))
    if len(calls) == FAIL:
        raise OSError("too many requests")
    assert inputs["image"].dtype == np.uint8 and inputs["image"].shape[1:] == (1, 8, 8)
    means = np.load(Path(__file__).parent / "means.npy")
    pixels = inputs["image"].reshape(len(inputs["image"]), 1, 64).astype(float)
    return -((pixels - means) ** 2).sum(2) / 2e4


def short(inputs):
    return np.zeros((1, 10))


def certain(inputs):
    with np.errstate(divide="ignore"):
        return np.log(np.eye(10)[np.zeros(len(inputs["image"]), int)])
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch):
    """A module of the user's that is asked; its name is new, because Python keeps modules."""
    name = f"service_{tmp_path.name.replace('-', '_')}"
    rows = digits(0, 1797)
    means = np.stack([rows.inputs["image"][rows.target == label].reshape(-1, 64).mean(0) for label in range(10)])
    folder = tmp_path / "asked"
    folder.mkdir()
    np.save(folder / "means.npy", means)
    (folder / f"{name}.py").write_text(ASK.replace("FAIL", "3"))
    monkeypatch.syspath_prepend(str(folder))
    return name


def teacher(service: str, function: str = "ask") -> dict:
    return {"api": {"model": {"name": "api", "function": f"{service}:{function}"}}, "wide": None}


def test_a_service_is_asked_once_about_every_row_and_teaches(service, tmp_path: Path):
    """It breaks down at the third block: what it said before is kept."""
    distill = {"teachers": ["api"], "objectives": BOTH}
    root = project(
        tmp_path / "project", "train_teacher@api", teachers=teacher(service), distill=distill,
        soft_targets={"batch_size": 200},
    )  # fmt: skip
    with pytest.raises(UserError, match="failed: too many requests; answers so far are kept, run again"):
        run(root, "soft_targets@api")
    run(root, "soft_targets@api")
    calls = __import__(service).calls
    rows = SoftTargets.open(root / "data/soft_targets/api").manifest.rows
    assert sum(calls) - calls[2] == rows and max(calls) == 200
    for stage in ("validate_soft_targets@api", "train_baseline", "distill", "finetune", "export", "evaluate", "report"):
        run(root, stage)
    found = Evaluation.read(root / EVALUATION)
    asked = found.models["teacher-api"]
    assert asked.onnx is None and asked.parameters is None and asked.test.only.accuracy.value > 0.8
    assert found.student.test.only.accuracy.value > 0.8 and found.student.test.only.agreement is not None
    assert not (root / "models/onnx/teacher-api.onnx").exists()
    assert "asked, not exported" in (root / "reports/report.html").read_text()
    assert f"distilled from `{service}:ask`, which was asked" in (root / "reports/model_card.md").read_text()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", r"must return outputs of shape \(512, 10\), not \(1, 10\)"),
        ("certain", r"not finite; of probabilities log\(p \+ 1e-6\) is"),
    ],
)
def test_answers_that_cannot_be_used_are_told(service, tmp_path: Path, function, message):
    root = project(
        tmp_path / "project", "train_teacher@api", teachers=teacher(service, function), distill={"teachers": ["api"]}
    )
    with pytest.raises(UserError, match=message):
        run(root, "soft_targets@api")


def test_a_service_that_is_not_there_is_told(service, tmp_path: Path):
    wrong = {"teachers": teacher(service, "aks"), "distill": {"teachers": ["api"]}}
    with pytest.raises(UserError, match="has no attribute 'aks'; is the file in custom/"):
        project(tmp_path / "project", "train_teacher@api", **wrong)
