"""What the loop promises: it learns, resumes bit for bit, and does not care how a step is cut."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from distillery import metrics, models
from distillery.config import Augmentation, Cnn, Confidence, Fixed, Mlp, Schedule, TrainingConfig
from distillery.errors import UserError
from distillery.objectives.configs import FITS, NAMES, CrossEntropy, Kd, ObjectiveConfig
from distillery.objectives.configs.relation import Rkd
from distillery.objectives.kd import kd
from distillery.objectives.registry import build
from distillery.saved import predict
from distillery.signals import LiveTeacher, Signals, Teacher
from distillery.soft_targets import StoredTeacher
from distillery.training import Outcome, class_weights, train
from tests.killing import command, kill_when
from tests.science import SCHEMA, digits

MLP = Mlp(name="mlp", hidden=(32,))
CE = [CrossEntropy(name="cross_entropy")]
RKD = [Rkd(name="rkd")]
# What a small student on tiny images needs.
OPTIONS = {"fsp": {"project": True}}
KD = [Kd(name="kd", weight=0.9), CrossEntropy(name="cross_entropy", weight=0.1)]


def fit(
    config: TrainingConfig,
    objectives=CE,
    teacher: Teacher | None = None,
    model=MLP,
    labelled=None,
    body=None,
    **options,
):
    """`body` is the teacher's network, where objectives compare layers."""
    rows_of = digits(0, 1000, labelled)
    network = models.build(model, SCHEMA, seed=1)
    network.fit_normalisation(rows_of)
    rows = options.pop("rows", rows_of.labelled if teacher is None else np.arange(len(rows_of)))
    teachers = {} if teacher is None else {"teacher": teacher}
    loss = build(objectives, network, dict.fromkeys(teachers, body))
    if body is not None:
        teachers = {"teacher": LiveTeacher(body, loss.teacher_layers["teacher"])}
    outcome = train(network, loss, rows_of, digits(1000, 1300), config, seed=1, rows=rows, teachers=teachers, **options)
    return network, outcome


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first, second) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("model", [MLP, Cnn(name="cnn", channels=(8, 16))])
def test_training_learns_and_keeps_the_best_epoch(model):
    network, outcome = fit(TrainingConfig(epochs=20, learning_rate=0.02, augment=Augmentation(shift=1)), model=model)
    scores = metrics.scores(predict(network, digits(1000, 1300)), digits(1000, 1300).target)
    assert scores["accuracy"] > 0.85
    assert outcome.score == max(entry["accuracy"] for entry in outcome.history) == pytest.approx(scores["accuracy"])


def test_a_student_of_a_good_teacher_beats_the_student_alone_on_few_labels():
    teacher, _ = fit(TrainingConfig(epochs=15, learning_rate=0.01), labelled=1000)
    stored = StoredTeacher(predict(teacher, digits(0, 1000)).astype(np.float16))
    config = TrainingConfig(epochs=30, learning_rate=0.01)
    test = digits(1300, 1797)
    alone, _ = fit(config, labelled=30, steps_per_epoch=8)
    distilled, _ = fit(config, KD, stored, labelled=30)
    accuracy = [metrics.scores(predict(each, test), test.target)["accuracy"] for each in (alone, distilled)]
    assert accuracy[1] > accuracy[0] + 0.05


def test_stored_and_live_teachers_teach_the_same():
    teacher, _ = fit(TrainingConfig(epochs=3, learning_rate=0.01))
    stored = StoredTeacher(predict(teacher, digits(0, 1000)))
    config = TrainingConfig(epochs=2, learning_rate=0.01)
    first, second = fit(config, KD, stored)[0], fit(config, KD, LiveTeacher(teacher))[0]
    for name, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[name], rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_seed_gives_the_same_weights(dropout):
    config = TrainingConfig(epochs=2, learning_rate=0.01)
    model = Mlp(name="mlp", hidden=(32,), dropout=dropout)
    assert same(weights(fit(config, model=model)[0]), weights(fit(config, model=model)[0]))


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps_before", [1, 11, 16, 23])
def test_a_training_interrupted_anywhere_ends_with_the_same_weights(tmp_path: Path, steps_before: int):
    """Eight steps an epoch: inside the first, inside the second, right at its end, in the last."""
    config = TrainingConfig(
        epochs=3, learning_rate=0.01, augment=Augmentation(shift=1), optimizer="sgd", checkpoint_seconds=0
    )
    model = Cnn(name="cnn", channels=(8,), dropout=0.2)
    steps = 0

    def stop_there() -> None:
        nonlocal steps
        steps += 1
        if steps > steps_before:
            raise Killed

    with pytest.raises(Killed):
        fit(config, model=model, checkpoint=tmp_path / "training.pt", on_step=stop_there)
    resumed, outcome = fit(config, model=model, checkpoint=tmp_path / "training.pt")
    straight, expected = fit(config, model=model)
    assert same(weights(resumed), weights(straight))
    assert outcome == expected


SCRIPT = """
import sys
from pathlib import Path
import torch
from distillery.config import TrainingConfig
from tests.test_training import fit, weights
config = TrainingConfig(epochs=40, learning_rate=0.01, checkpoint_seconds=0)
network, outcome = fit(config, checkpoint=Path(sys.argv[1]) / "training.pt")
torch.save(weights(network), Path(sys.argv[1]) / "final.pt")
"""


@pytest.mark.slow
def test_kill_9_during_training_loses_nothing(tmp_path: Path):
    kill_when(tmp_path / "training.pt", SCRIPT, tmp_path)
    assert not (tmp_path / "final.pt").exists()
    subprocess.run(command(SCRIPT, tmp_path), check=True)
    straight, _ = fit(TrainingConfig(epochs=40, learning_rate=0.01))
    assert same(weights(straight), torch.load(tmp_path / "final.pt", weights_only=True))


def test_accumulation_gives_the_same_step():
    # Rows differ in having labels, so that a mean of means would give other weights.
    teacher = StoredTeacher(np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32))
    plain = TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd")
    first, one = fit(plain, KD, teacher, labelled=300)
    second, other = fit(plain.model_copy(update={"accumulate": 4}), KD, teacher, labelled=300)
    for name, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[name], rtol=1e-4, atol=1e-6)
    assert one.history[0]["loss"] == pytest.approx(other.history[0]["loss"], rel=1e-5)


PARALLEL = """
import sys
sys.path.insert(0, {root!r})
import numpy as np, torch
from distillery.config import TrainingConfig
from distillery.soft_targets import StoredTeacher
from tests.test_training import KD, fit, weights
teacher = StoredTeacher(np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32))
network, outcome = fit(TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd"), KD, teacher, labelled=300)
torch.save([weights(network), outcome.history[0]["loss"]], sys.argv[1] + torch.distributed.get_rank().__str__())
"""


@pytest.mark.slow
def test_two_processes_give_the_same_step(tmp_path: Path):
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL.format(root=str(Path(__file__).parents[1])))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
         str(tmp_path / "rank")],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    teacher = StoredTeacher(np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32))
    config = TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd")
    alone, outcome = fit(config, KD, teacher, labelled=300)
    for rank in (0, 1):
        values, loss = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        assert loss == pytest.approx(outcome.history[0]["loss"], rel=1e-5)
        for name, value in weights(alone).items():
            torch.testing.assert_close(value, values[name], rtol=1e-4, atol=1e-6)


def test_early_stopping_ends_a_training_that_no_longer_improves():
    config = TrainingConfig(epochs=50, learning_rate=0.03, early_stopping=3)
    outcome: Outcome = fit(config)[1]
    assert len(outcome.history) == outcome.best_epoch + 3 < 50


def test_no_epochs_keep_the_starting_weights():
    network, outcome = fit(TrainingConfig(epochs=0))
    fresh = models.build(MLP, SCHEMA, seed=1)
    assert torch.equal(network.body.head.weight, fresh.body.head.weight)
    assert outcome.best_epoch == 0 and outcome.history == []


def test_fewer_rows_than_a_batch_train():
    _, outcome = fit(TrainingConfig(epochs=2, batch_size=5000))
    assert outcome.steps == 2


def test_no_labels_are_told_before_training():
    with pytest.raises(UserError, match="no training row"):
        fit(TrainingConfig(epochs=1), labelled=0)
    with pytest.raises(UserError, match="needs labels"):
        fit(TrainingConfig(epochs=1), labelled=0, rows=np.arange(10))


def test_a_loss_that_explodes_is_told():
    with pytest.raises(UserError, match="learning_rate"):
        fit(TrainingConfig(epochs=3, learning_rate=1e30, optimizer="sgd"))


def test_class_weights_balance_the_classes():
    target = np.array([0, 0, 0, 1, -1, -1])
    balanced = class_weights(target, 3)
    assert balanced.tolist() == pytest.approx([2 / 3, 2.0, 0.0])
    labelled = target[target >= 0]
    assert balanced[labelled].mean().item() == pytest.approx(1.0)


TEACHER_MODEL = Cnn(name="cnn", channels=(16, 32))
STUDENT_MODEL = Cnn(name="cnn", channels=(4, 8))


@pytest.fixture(scope="module")
def taught():
    return fit(TrainingConfig(epochs=10, learning_rate=0.01), model=TEACHER_MODEL)[0]


@pytest.mark.parametrize(
    "name", sorted(name for name in set(NAMES) - {"cross_entropy"} if "classes" in FITS.get(name, ("classes",)))
)
def test_every_objective_trains_and_resumes(name, taught, tmp_path: Path):
    """Beside cross-entropy on 100 labels; interrupted in the second epoch it ends with the same weights."""
    (objective,) = TypeAdapter(list[ObjectiveConfig]).validate_python([OPTIONS.get(name, {}) | {"name": name}])
    objectives = [objective, CrossEntropy(name="cross_entropy")]
    config = TrainingConfig(epochs=2, learning_rate=0.01, checkpoint_seconds=0)
    options = {"teacher": LiveTeacher(taught), "body": taught, "model": STUDENT_MODEL, "labelled": 100}
    straight, outcome = fit(config, objectives, **options)
    assert outcome.history[-1][f"loss_{name}"] < outcome.history[0][f"loss_{name}"] + 0.05
    assert all(np.isfinite(value) for entry in outcome.history for value in entry.values())
    steps = 0

    def stop_there() -> None:
        nonlocal steps
        steps += 1
        if steps > 11:
            raise Killed

    with pytest.raises(Killed):
        fit(config, objectives, checkpoint=tmp_path / "training.pt", on_step=stop_there, **options)
    resumed, _ = fit(config, objectives, checkpoint=tmp_path / "training.pt", **options)
    assert same(weights(resumed), weights(straight))


def test_what_objectives_train_beside_the_student_moves(taught):
    student = models.build(STUDENT_MODEL, SCHEMA, seed=1)
    rows = digits(0, 200)
    student.fit_normalisation(rows)
    configs = TypeAdapter(list[ObjectiveConfig]).validate_python(
        [{"name": "hints"}, {"name": "vid"}, {"name": "adversarial"}]
    )
    loss = build(configs, student, {"teacher": taught})
    before = {name: value.clone() for name, value in loss.named_parameters()}
    teachers = {"teacher": LiveTeacher(taught, loss.teacher_layers["teacher"])}
    everything = np.arange(200)
    train(student, loss, rows, rows, TrainingConfig(epochs=1), seed=0, rows=everything, teachers=teachers)
    assert before and all(not torch.equal(value, before[name]) for name, value in loss.named_parameters())


def test_an_objective_over_the_batch_refuses_to_be_cut(taught):
    with pytest.raises(UserError, match="accumulate must be 1"):
        fit(TrainingConfig(epochs=1, accumulate=2), RKD, LiveTeacher(taught), body=taught, model=STUDENT_MODEL)


def test_two_teachers_are_mixed_by_their_weights(taught):
    other, _ = fit(TrainingConfig(epochs=1, learning_rate=0.01), model=TEACHER_MODEL)
    train_rows = digits(0, 1000, 100)

    def run(mixing) -> dict[str, float]:
        student = models.build(STUDENT_MODEL, SCHEMA, seed=1)
        student.fit_normalisation(train_rows)
        loss = build(KD, student, {"good": None, "poor": None}, mixing=mixing)
        teachers = {"good": LiveTeacher(taught), "poor": LiveTeacher(other)}
        outcome = train(
            student, loss, train_rows, digits(1000, 1300), TrainingConfig(epochs=1, learning_rate=0.01), seed=1,
            rows=np.arange(1000), teachers=teachers,
        )  # fmt: skip
        return outcome.history[0]

    mean, fixed, confident = (
        run(None),
        run(Fixed(name="fixed", weights={"good": 3, "poor": 1})),
        run(Confidence(name="confidence")),
    )
    assert mean["loss_teacher_weight_good"] == pytest.approx(0.5)
    assert fixed["loss_teacher_weight_good"] == pytest.approx(0.75)
    assert confident["loss_teacher_weight_good"] > 0.55
    assert mean["loss_kd"] == pytest.approx(mean["loss_kd_good"] + mean["loss_kd_poor"], rel=1e-5)


def test_a_schedule_moves_weight_and_temperature():
    schedule = Schedule(start=0.0, end=2.0, over=0.5)
    assert [schedule.at(position) for position in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    student = models.build(MLP, SCHEMA, seed=0)
    loss = build([Kd(name="kd", weight=schedule, temperature=Schedule(start=4.0, end=1.0))], student, {"teacher": None})
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(8, 10, generator=generator) for _ in range(2))
    target = torch.full((8,), -1)
    for position, weight, temperature in ((0.0, 0.0, 4.0), (0.25, 1.0, 3.25), (1.0, 2.0, 1.0)):
        total, _ = loss(
            Signals(ours), {"teacher": Signals(theirs)}, {"label": target}, {"label": target}, position=position
        )
        assert total.item() == pytest.approx(weight * kd(ours, theirs, temperature).mean().item(), rel=1e-5)


BATCHWISE = """
import sys
sys.path.insert(0, {root!r})
import torch
from distillery.config import TrainingConfig
from distillery.signals import LiveTeacher
from tests.test_training import RKD, fit, weights, wide
body = wide()
config = TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd", batch_size=125)
network, outcome = fit(config, RKD, LiveTeacher(body), body=body)
torch.save([weights(network), outcome.history[0]["loss"]], sys.argv[1] + torch.distributed.get_rank().__str__())
"""


def wide():
    return models.build(Mlp(name="mlp", hidden=(64,)), SCHEMA, seed=5)


@pytest.mark.slow
def test_two_processes_compare_the_rows_of_the_whole_batch(tmp_path: Path):
    """Batches of 125 rows, so that the processes hold 63 and 62."""
    script = tmp_path / "parallel.py"
    script.write_text(BATCHWISE.format(root=str(Path(__file__).parents[1])))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
         str(tmp_path / "rank")],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    body = wide()
    config = TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd", batch_size=125)
    alone, outcome = fit(config, RKD, LiveTeacher(body), body=body)
    for rank in (0, 1):
        values, loss = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        assert loss == pytest.approx(outcome.history[0]["loss"], rel=1e-4)
        for name, value in weights(alone).items():
            torch.testing.assert_close(value, values[name], rtol=1e-3, atol=1e-5)
