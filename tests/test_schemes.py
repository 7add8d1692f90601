"""Who teaches whom: peers each other, the deepest exit the shallower ones, each generation the next."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional

from distillery import models
from distillery.config import Mlp, Resnet, TrainingConfig
from distillery.errors import UserError
from distillery.exits import add_exits, drop_exits, shortened
from distillery.inference import open_session
from distillery.inference import predict as predict_by_onnx
from distillery.objectives.configs import CrossEntropy, Kd
from distillery.objectives.configs.feature import Hints
from distillery.objectives.registry import build
from distillery.onnx_export import export
from distillery.saved import load_model, predict, save_model
from distillery.signals import LiveTeacher
from distillery.training import Outcome, train
from tasks.params import parse
from tasks.results import EVALUATION, Evaluation
from tests.science import SCHEMA, digits
from tests.small_project import PARAMS, ROOT, run

DEEP = Mlp(name="mlp", hidden=(24, 16))
CE = [CrossEntropy(name="cross_entropy")]
KD = [Kd(name="kd", weight=0.5, temperature=2.0), CrossEntropy(name="cross_entropy")]
ONE_STEP = TrainingConfig(epochs=1, batch_size=64, learning_rate=0.1, optimizer="sgd", momentum=0.0)


def network(seed: int, model=DEEP):
    built = models.build(model, SCHEMA, seed=seed)
    built.fit_normalisation(digits(0, 500))
    return built


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def stepped(network, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Plain gradient descent by hand; a loss that a parameter does not reach leaves it."""
    named = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: value.detach() - 0.1 * (0 if gradient is None else gradient)
        for (name, value), gradient in zip(named.items(), gradients, strict=True)
    }


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """T^2 KL(teacher || student), mean over rows."""
    goal = functional.softmax(teacher.detach() / temperature, 1)
    said = functional.log_softmax(student / temperature, 1)
    return temperature**2 * (goal * (goal.log() - said)).sum(1).mean()


def one_step(student, **options):
    """64 rows, labels known, in one step; returns them as a model reads them, and their labels."""
    rows = digits(0, 64)
    train(student, options.pop("loss"), rows, rows, ONE_STEP, seed=0, rows=np.arange(64), **options)
    return torch.from_numpy(rows.inputs["image"]), torch.from_numpy(rows.target)


def same(found, expected) -> None:
    assert expected and set(found) >= set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_peers_move_at_once_on_what_the_others_said_in_the_same_step():
    peers = {"left": network(2), "right": network(3, Mlp(name="mlp", hidden=(8,)))}
    everyone = {"student": network(1), **peers}
    before = {name: copy.deepcopy(each) for name, each in everyone.items()}
    lessons = {
        name: build(KD, each, dict.fromkeys(other for other in everyone if other != name))
        for name, each in everyone.items()
    }
    images, labels = one_step(everyone["student"], loss=lessons.pop("student"), peers=peers, lessons=lessons)
    said = {name: each(images) for name, each in before.items()}
    for name, peer in peers.items():
        others = torch.stack([kl(said[name], said[other]) for other in said if other != name]).mean()
        expected = stepped(before[name], functional.cross_entropy(said[name], labels) + 0.5 * others)
        same(weights(peer), expected)


def test_exits_learn_from_the_deepest_which_learns_from_labels_alone():
    student = network(1)
    add_exits(student, seed=0)
    before = copy.deepcopy(student)
    lessons = {"exit_1": build(KD, student, {"student": student})}
    images, labels = one_step(student, loss=build(CE, student), lessons=lessons)
    hidden = before.body.hidden[:2](before.inputs[0](images).flatten(1))
    deepest, shallow = before(images), before.body.early_exits[0](hidden)
    loss = functional.cross_entropy(deepest, labels) + functional.cross_entropy(shallow, labels)
    expected = stepped(before, loss + 0.5 * kl(shallow, deepest))
    # Training keeps the best epoch; of one step that is the last unless the start was better.
    same(weights(student), expected)


def fit(student, config: TrainingConfig, kind: str, **options) -> Outcome:
    rows = digits(0, 1000, 50)
    if kind == "peers":
        peers = {"peer": network(2)}
        loss, lessons = build(KD, student, {"peer": None}), {"peer": build(KD, peers["peer"], {"student": None})}
        options |= {"peers": peers, "lessons": lessons}
    else:
        add_exits(student, seed=0)
        layers = (("hidden.0",), ("hidden.2",))
        loss = build(CE, student)
        objectives = [*KD, Hints(name="hints")]
        options["lessons"] = {"exit_1": build(objectives, student, {"student": student}, layers=layers)}
    return train(student, loss, rows, digits(1000, 1300), config, seed=1, rows=np.arange(1000), **options)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["peers", "exits"])
def test_schemes_resume_to_the_same_weights(kind, tmp_path: Path):
    config = TrainingConfig(epochs=3, learning_rate=0.01, checkpoint_seconds=0, clip_gradient=1.0)
    model = Mlp(name="mlp", hidden=(24, 16), dropout=0.2)
    steps = 0

    def stop_there() -> None:
        nonlocal steps
        steps += 1
        if steps > 11:
            raise Killed

    with pytest.raises(Killed):
        fit(network(1, model), config, kind, checkpoint=tmp_path / "training.pt", on_step=stop_there)
    resumed, straight = network(1, model), network(1, model)
    outcome = fit(resumed, config, kind, checkpoint=tmp_path / "training.pt")
    assert outcome == fit(straight, config, kind)
    assert all(torch.equal(value, weights(straight)[name]) for name, value in weights(resumed).items())


def test_exits_that_are_dropped_leave_the_network_as_it_was():
    plain = network(1)
    student = copy.deepcopy(plain)
    add_exits(student, seed=0)
    assert student.exits == ("early_exits.0",)
    drop_exits(student)
    assert student.exits == () and weights(student).keys() == weights(plain).keys()
    np.testing.assert_array_equal(predict(student, digits(0, 50)), predict(plain, digits(0, 50)))


@pytest.mark.parametrize("model", [DEEP, Resnet(name="resnet", width=4)])
def test_exits_that_are_kept_are_saved_and_shorter_in_onnx(model, tmp_path: Path):
    student, rows = network(1, model), digits(0, 64)
    add_exits(student, seed=0)
    save_model(tmp_path / "model", student, [], {})
    loaded = load_model(tmp_path / "model")
    assert loaded.exits == student.exits
    np.testing.assert_array_equal(predict(loaded, rows), predict(student, rows))
    export(loaded, tmp_path / "whole.onnx")
    sizes = [(tmp_path / "whole.onnx").stat().st_size]
    for number in range(len(loaded.exits), 0, -1):
        short = shortened(loaded, number)
        file = tmp_path / f"exit-{number}.onnx"
        export(short, file)
        np.testing.assert_allclose(predict_by_onnx(open_session(file), rows), predict(short, rows), atol=1e-4)
        sizes.append(file.stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


def test_a_teacher_is_not_taken_for_one_who_is_trained():
    student = network(1)
    with pytest.raises(UserError, match="student: a teacher has the name of one who is trained"):
        one_step(student, loss=build(KD, student, {"student": None}), teachers={"student": LiveTeacher(network(2))})


def test_a_model_with_a_single_stage_has_no_exits():
    with pytest.raises(UserError, match=r"single stage.*deeper"):
        add_exits(network(1, Mlp(name="mlp", hidden=(8,))), seed=0)


def project(root: Path, *stages: str, **sections) -> Path:
    """A project on digits in which some stages were run; `sections` are laid over its parameters."""
    params = yaml.safe_load(PARAMS)
    for name, section in sections.items():
        laid = {**params[name], **section} if section else {}
        params[name] = {key: value for key, value in laid.items() if value is not None}
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    loader = Path("distillery/sources/digits.py")
    (root / loader).parent.mkdir(parents=True)
    shutil.copy(ROOT / loader, root / loader)
    for stage in ("ingest", "validate", "prepare", "snapshot", *stages):
        run(root, stage)
    return root


BOTH = [{"name": "kd", "weight": 0.9}, {"name": "cross_entropy", "weight": 0.1}]
SCHEMES = {
    "online": {"scheme": "online", "teachers": [], "peers": {"big": {"model": {"name": "mlp", "hidden": [64]}}}},
    "exits": {"scheme": "self", "teachers": [], "self": {"name": "exits", "keep": True}},
    "born_again": {"scheme": "self", "teachers": [], "self": {"name": "born_again", "generations": 2}},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_without_a_teacher_runs_through_the_whole_graph(scheme, tmp_path: Path):
    distill = {**SCHEMES[scheme], "objectives": BOTH}
    student = {"model": {"name": "mlp", "hidden": [24, 12]}}
    stages = ("train_baseline", "distill", "finetune", "export", "evaluate", "report")
    root = project(tmp_path, *stages, teachers={}, distill=distill, student=student, export={"int8": False})
    metrics = json.loads((root / "reports/metrics.json").read_text())
    assert metrics["distilled"]["accuracy"] > 0.6
    facts = json.loads((root / "models/distilled/training.json").read_text())
    told = {"online": "score_big", "exits": "score_exit_1", "born_again": "generation_1"}[scheme]
    assert facts[told] > 0.6
    found = Evaluation.read(root / EVALUATION)
    distilled = found.models["distilled"]
    assert len(distilled.exits) == len(load_model(root / "models/distilled").exits) == (scheme == "exits")
    for early in distilled.exits:
        assert early.file == "models/onnx/distilled-exit-1.onnx" and early.size < distilled.onnx.size
        assert early.test.figure("accuracy").value > 0.6 and early.latency_ms > 0
        assert "exit 1" in (root / "reports/report.html").read_text()
    # The student alone may be the better one here, and has no exits.
    copied = [(root / early.file).read_bytes() for early in found.student.exits]
    assert [file.read_bytes() for file in sorted((root / "models/student").glob("exit-*.onnx"))] == copied
    assert (root / "models/distilled/peers/big/weights.safetensors").exists() == (scheme == "online")
    assert "teacher" not in (root / "reports/metrics.json").read_text()


def test_exits_that_are_not_kept_leave_a_student_as_before(tmp_path: Path):
    distill = {"scheme": "self", "self": {"name": "exits"}, "teachers": [], "objectives": BOTH}
    root = project(tmp_path, "distill", distill=distill, student={"model": {"name": "mlp", "hidden": [24, 12]}})
    assert load_model(root / "models/distilled").exits == ()
    assert not any("exit" in name for name in load_file(root / "models/distilled/weights.safetensors"))


def test_peers_listen_to_frozen_teachers_too(tmp_path: Path):
    distill = {**SCHEMES["online"], "teachers": ["wide"], "objectives": [*BOTH, {"name": "hints"}]}
    root = project(tmp_path, "train_teacher@wide", "soft_targets@wide", "distill", distill=distill)
    header = (root / "models/distilled/history.csv").read_text().splitlines()[0].split(",")
    heard = {"loss_kd_wide", "loss_kd_big", "loss_big.kd_wide", "loss_big.kd_student", "loss_hints_big", "score_big"}
    assert heard <= set(header)


SELF = {"scheme": "self", "teachers": []}
EXITS = {**SELF, "self": {"name": "exits"}}
PEER = {"peer": {"model": {"name": "mlp"}}}
ASKED = {"model": {"name": "api", "function": "custom.ask:ask"}}
SHALLOW = {"model": {"name": "mlp", "hidden": [8]}}
LAYERS = {"name": "hints", "layers": {"student": ["hidden.0"], "teacher": ["hidden.0"]}}
FROM_TEACHER = {"name": "teacher", "teacher": "wide", "layers": {"head": "head"}}
WRONG = [
    ({"distill": {"peers": PEER}}, "peers are trained under scheme online only, not offline"),
    ({"distill": {"scheme": "online"}}, "peers: scheme online trains at least one model beside"),
    ({"distill": {"scheme": "online", "peers": {"student": PEER["peer"]}}}, "peers.student: another one .* that name"),
    ({"distill": {"scheme": "online", "peers": {"wide": PEER["peer"]}}}, "peers.wide: another one .* that name"),
    ({"distill": {"scheme": "online", "peers": {"Big One": PEER["peer"]}}}, "a peer's name may hold"),
    (
        {"distill": {"scheme": "online", "peers": PEER, "mixing": {"name": "fixed", "weights": {"wide": 1}}}},
        "mixing.weights must name just those who are heard: wide, peer, student",
    ),
    (
        {"distill": {"scheme": "online", "peers": {"peer": {**PEER["peer"], "inputs": ["x"]}}}},
        "distill.peers.peer.inputs",
    ),
    ({"distill": {"scheme": "online", "peers": {"peer": ASKED}}}, "distill.peers.peer.model: must name one of mlp"),
    ({"distill": SELF}, "self: scheme self needs {name: exits} or {name: born_again}"),
    ({"distill": {"self": {"name": "exits"}}}, "self is read under scheme self only, not offline"),
    ({"distill": {**EXITS, "teachers": ["wide"]}}, "teachers: under scheme self the student has no teacher but itself"),
    ({"distill": {**EXITS, "self": {"name": "exit"}}}, "distill.self: must name one of exits, born_again"),
    ({"distill": {**EXITS, "self": {"name": "exits", "generations": 2}}}, "distill.self.generations: unknown key"),
    ({"distill": {**SELF, "self": {"name": "born_again", "keep": True}}}, "distill.self.keep: unknown key"),
    ({"distill": {**SELF, "self": {"name": "born_again", "generations": 0}}}, "distill.self.generations: .*equal to 1"),
    ({"distill": {**EXITS, "mixing": {"name": "fixed", "weights": {}}}}, "mixing is of several"),
    ({"distill": {**EXITS, "objectives": [*BOTH, LAYERS]}}, "hints: layers cannot be named under exits"),
    ({"distill": {**EXITS, "objectives": [*BOTH, {"name": "fsp"}]}}, "fsp compares flows between two layers"),
    ({"distill": EXITS, "student": SHALLOW}, "exits stand behind every stage but the last, and this mlp has 1 stage:"),
    (
        {"teachers": {"wide": ASKED}, "distill": {"objectives": [{"name": "rkd"}]}},
        "rkd compare layers, .* wide is an api",
    ),
    ({"teachers": {"wide": {**ASKED, "training": {"epochs": 3}}}}, "an api is asked, not trained"),
    ({"teachers": {"student": SHALLOW}}, "teachers.student: what the student itself says has that name"),
    (
        {"teachers": {"wide": {"model": {"name": "saved", "folder": "models/student"}}}},
        "folder: must lie under custom/",
    ),
    (
        {"teachers": {"wide": {"model": {"name": "saved", "folder": "custom/a"}, "inputs": ["image"]}}},
        "a saved model reads what it was trained on",
    ),
    (
        {"student": {"start": {"name": "checkpoint", "file": "custom/../x"}}},
        "student.start.file: must lie under custom/",
    ),
    (
        {"student": {"start": {**FROM_TEACHER, "teacher": "other"}}},
        "student.start.teacher: 'other' is not among .*wide",
    ),
    ({"student": {"start": FROM_TEACHER}, "teachers": {"wide": ASKED}}, "wide is an api, whose layers nobody can copy"),
    ({"student": {"start": {**FROM_TEACHER, "layers": {}}}}, "student.start.layers: .*at least 1"),
    (
        {
            "student": {
                "model": {"name": "custom.m:f", "weights": "custom/a"},
                "start": {"name": "checkpoint", "file": "custom/b"},
            }
        },
        "from a checkpoint or from model.weights, not from both",
    ),
]


@pytest.mark.parametrize(("sections", "message"), WRONG)
def test_what_does_not_go_together_is_refused_with_the_reason(sections, message):
    document = yaml.safe_load(PARAMS)
    document["student"]["model"]["hidden"] = [24, 12]
    for name, section in sections.items():
        document[name] = {**document[name], **section}
    with pytest.raises(UserError, match=message):
        parse(document)
