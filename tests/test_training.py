"""What the loop promises: it learns, resumes bit for bit, and does not care how a step is cut."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery import metrics, models
from distillery.config import Augmentation, Cnn, CrossEntropy, Kd, Mlp, TrainingConfig
from distillery.errors import UserError
from distillery.objectives import build
from distillery.saved import predict
from distillery.signals import LiveTeacher, Teacher
from distillery.soft_targets import StoredTeacher
from distillery.training import Outcome, class_weights, train
from tests.science import SCHEMA, digits

MLP = Mlp(name="mlp", hidden=(32,))
CE = [CrossEntropy(name="cross_entropy")]
KD = [Kd(name="kd", weight=0.9), CrossEntropy(name="cross_entropy", weight=0.1)]


def fit(config: TrainingConfig, objectives=CE, teacher: Teacher | None = None, model=MLP, labelled=None, **options):
    rows_of = digits(0, 1000, labelled)
    network = models.build(model, SCHEMA, seed=1)
    network.fit_normalisation(rows_of)
    rows = options.pop("rows", rows_of.labelled if teacher is None else np.arange(len(rows_of)))
    outcome = train(
        network, build(objectives), rows_of, digits(1000, 1300), config, seed=1, rows=rows, teacher=teacher, **options
    )
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
sys.path.insert(0, {root!r})
import torch
from distillery.config import TrainingConfig
from tests.test_training import fit, weights
config = TrainingConfig(epochs=40, learning_rate=0.01, checkpoint_seconds=0)
network, outcome = fit(config, checkpoint=Path(sys.argv[1]) / "training.pt")
torch.save(weights(network), Path(sys.argv[1]) / "final.pt")
"""


@pytest.mark.slow
def test_kill_9_during_training_loses_nothing(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT.format(root=str(Path(__file__).parents[1])), str(tmp_path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "training.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "final.pt").exists()
    subprocess.run(command, check=True)
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
