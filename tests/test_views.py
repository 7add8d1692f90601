"""Views: the student sees just those images of which the teacher has spoken."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from distillery import models
from distillery.asking import write
from distillery.config import Augmentation, Mlp, TrainingConfig
from distillery.errors import UserError
from distillery.objectives.configs import ObjectiveConfig
from distillery.objectives.registry import build
from distillery.sampling import epoch_order
from distillery.saved import predict
from distillery.schema import Input
from distillery.signals import Batch, LiveTeacher
from distillery.soft_targets import SoftTargets
from distillery.training import _order, train
from distillery.views import Viewed, Views, check_images, draws
from tests.science import SCHEMA, digits

ALL = Views(count=3, augment=Augmentation(shift=2, flip=True, crop=0.7))
PLAIN = digits(0, 300)
TRAIN = Viewed(PLAIN, ALL)
PARTS = {"train": TRAIN, "validation": digits(300, 400)}


def network(seed: int = 0):
    return models.build(Mlp(name="mlp"), SCHEMA, seed=seed)


def test_a_view_is_the_same_bit_for_bit_whatever_batch_it_stands_in():
    (everything,) = TRAIN.gather(slice(None))
    assert len(everything) == TRAIN.shown == 900 and everything.dtype == torch.uint8
    order = np.random.default_rng(1).permutation(900)
    for size in (1, 7, 64):
        rows = order[:size]
        assert torch.equal(TRAIN.gather(rows)[0], everything[torch.from_numpy(rows)])
    # Another split with other neighbours, and the same key.
    tail = Viewed(digits(100, 200), ALL)
    assert torch.equal(tail.gather(slice(100, 200))[0], everything[400:500])


def test_views_differ_and_targets_do_not():
    first, second, third = TRAIN.gather(slice(None))[0].split(300)
    for one, other in ((first, second), (second, third), (first, torch.from_numpy(PLAIN.inputs["image"]))):
        assert (one != other).flatten(1).any(1).float().mean() > 0.9
    assert TRAIN.only("label").shown == TRAIN.select(SCHEMA).shown == 900
    targets = TRAIN.gather_targets(np.array([5, 305, 605]))["label"]
    assert (targets == int(PLAIN.target[5])).all()


def splitmix64(seed: int) -> int:
    """Steele, Lea, Flood 2014, figure 17, in Python's own integers."""
    mask = 2**64 - 1
    state = (seed + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_draws_follow_splitmix64():
    from zlib import crc32

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published first output of seed 0
    keys, mask = [0, 3, 2**64 - 1], 2**64 - 1
    drawn = draws(np.array(keys, np.uint64), np.full(3, 2, np.uint64), "image", Augmentation(shift=4, flip=True))
    for at, key in enumerate(keys):
        start = splitmix64((splitmix64((splitmix64(key) + crc32(b"image")) & mask) + 2) & mask)
        uniform = [(splitmix64((start + n * 0x9E3779B97F4A7C15) & mask) >> 11) / 2**53 for n in range(6)]
        assert drawn.moves[at].tolist() == [int(uniform[3] * 9) - 4, int(uniform[4] * 9) - 4]
        assert bool(drawn.mirrored[at]) == (uniform[5] < 0.5)


def test_draws_are_spread_evenly_and_apart():
    count = 20_000
    drawn = draws(np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64), "image", ALL.augment)
    shares = np.bincount(drawn.moves.flatten().numpy() + 2, minlength=5) / (2 * count)
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    assert abs(drawn.mirrored.float().mean() - 0.5) < 0.02
    together = np.column_stack([drawn.window.numpy(), drawn.moves.numpy(), drawn.mirrored.numpy()])
    assert np.abs(np.corrcoef(together.T) - np.eye(6)).max() < 0.03
    assert np.abs(np.corrcoef(together[1:, 0], together[:-1, 0])[0, 1]) < 0.03


def test_an_epoch_shows_its_view_of_every_row():
    config = TrainingConfig()
    for epoch in range(5):
        order = _order(TRAIN, np.arange(300), config, 7, epoch, None)
        np.testing.assert_array_equal(order % 300, epoch_order(np.arange(300), 7, epoch))
        assert set(order // 300) == {epoch % 3}


def test_the_store_says_of_each_view_what_a_live_teacher_says_of_it(tmp_path: Path):
    teacher = network()
    write(tmp_path / "s", teacher, "t", PARTS, partial=tmp_path / "p", dtype="float32", asked="stages", batch_size=128)
    store = SoftTargets.open(tmp_path / "s", "t", list(PARTS.values()), "stages")
    (layer,) = store.features
    rows = np.array([2, 899, 450, 301])
    batch = Batch(torch.from_numpy(rows), {"image": TRAIN.gather(rows)[0]}, SCHEMA, torch.device("cpu"))
    live, stored = LiveTeacher(teacher, [layer]).signals(batch), store.teacher("train", [layer]).signals(batch)
    torch.testing.assert_close(stored.logits, live.logits)
    torch.testing.assert_close(stored.features[layer], live.features[layer])
    np.testing.assert_allclose(store.part("validation"), predict(teacher, PARTS["validation"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(store.once(), np.concatenate([store.part("train")[:300], store.part("validation")]))
    assert store.manifest.rows == 1000 and len(store.keys) == 400


def test_other_views_are_refused(tmp_path: Path):
    write(tmp_path / "s", network(), "t", PARTS, partial=tmp_path / "p")
    validation = PARTS["validation"]
    for rows in (PLAIN, Viewed(PLAIN, Views(count=2, augment=ALL.augment))):
        with pytest.raises(UserError, match=r"holds 3 views .* soft_targets@s --force"):
            SoftTargets.open(tmp_path / "s", "t", [rows, validation])


def taught(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """A student of what is stored of views and of a layer, after an epoch; its weights and its loss."""
    store = SoftTargets.open(folder / "s", "t", list(PARTS.values()), "stages")
    objectives = TypeAdapter(list[ObjectiveConfig]).validate_python([{"name": "kd"}, {"name": "hints"}])
    student = network(1)
    loss = build(objectives, student, {"teacher": network()})
    teachers = {"teacher": store.teacher("train", loss.teacher_layers["teacher"])}
    config = TrainingConfig(epochs=1, learning_rate=0.01, optimizer="sgd")
    outcome = train(student, loss, TRAIN, PARTS["validation"], config, seed=0, rows=np.arange(300), teachers=teachers)
    return student.state_dict(), outcome.history[0]["loss"]


PARALLEL = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from tests.test_views import taught
folder = Path(sys.argv[1])
found = taught(folder)
torch.save(list(found), folder / str(torch.distributed.get_rank()))
"""


@pytest.mark.slow
def test_two_processes_hear_of_views_and_layers_what_one_hears(tmp_path: Path):
    write(tmp_path / "s", network(), "t", PARTS, partial=tmp_path / "p", dtype="float32", asked="stages")
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL.format(root=str(Path(__file__).parents[1])))
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run([*launched, str(tmp_path)], check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    expected, loss = taught(tmp_path)
    for rank in "01":
        weights, told = torch.load(tmp_path / rank, weights_only=True)
        assert told == pytest.approx(loss, rel=1e-5)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_data_without_images_are_told():
    schema = SCHEMA.model_copy(update={"inputs": {"x": Input(kind="numeric", shape=(2,), columns=("a", "b"))}})
    with pytest.raises(UserError, match=r"soft_targets\.views changes images, and the data hold none \(x\)"):
        check_images(schema, "soft_targets.views")
