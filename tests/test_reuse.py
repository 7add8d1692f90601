"""A teacher is asked about new rows alone: what it has said of the others is copied, bit for bit."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from distillery import models
from distillery.api import ApiNetwork
from distillery.asking import write
from distillery.columns import Columns
from distillery.config import Api, Augmentation, Mlp
from distillery.reuse import code, earlier, keep
from distillery.saved import predict
from distillery.soft_targets import SoftTargets
from distillery.views import Viewed, Views
from tests.killing import kill_when
from tests.science import SCHEMA, digits
from tests.small_project import PARAMS, copied, run

ALL = digits(0, 1000)
NEW = np.arange(7, 1000, 20)  # one in twenty, scattered
OLD = np.setdiff1d(np.arange(1000), NEW)
FILES = ("logits.npy", "keys.npy", "contents.npy", "manifest.json")
AUGMENT = Augmentation(shift=2, flip=True)


def some(numbers: np.ndarray | Sequence[int], columns: Columns = ALL) -> Columns:
    inputs = {name: column[numbers] for name, column in columns.inputs.items()}
    targets = {name: column[numbers] for name, column in columns.targets.items()}
    return Columns(columns.schema, columns.keys[numbers], targets, inputs, columns.contents[numbers])


def of(numbers: np.ndarray, views: int = 0, augment: Augmentation = AUGMENT) -> dict[str, Columns]:
    """The splits of a project that holds some rows: the last of all, from 800 on, are for validation."""
    train = some(numbers[numbers < 800])
    shown = Viewed(train, Views(count=views, augment=augment)) if views else train
    return {"train": shown, "validation": some(numbers[numbers >= 800])}


class Teacher:
    """A network that remembers which images it has seen."""

    def __init__(self) -> None:
        self.network = models.build(Mlp(name="mlp", hidden=(16,)), SCHEMA, seed=0)
        self.seen: list[torch.Tensor] = []
        self.network.register_forward_hook(lambda module, rows, output: self.seen.append(rows[0].clone()))

    def write(self, folder: Path, parts: dict[str, Columns], teacher: str = "t", **more) -> int:
        self.seen.clear()
        manifest, asked = write(folder, self.network, teacher, parts, partial=folder / ".." / "partial", **more)
        SoftTargets.open(folder, teacher, list(parts.values()))
        assert manifest.rows == sum(part.shown for part in parts.values())
        return asked

    @property
    def rows(self) -> int:
        return sum(len(block) for block in self.seen)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_five_per_cent_new_rows_are_all_that_the_teacher_sees(tmp_path: Path, teacher: Teacher, dtype):
    parts = of(np.arange(1000))
    assert teacher.write(tmp_path / "old", of(OLD), dtype=dtype) == teacher.rows == 950
    old = SoftTargets.open(tmp_path / "old")
    told: list[int] = []
    asked = teacher.write(tmp_path / "new", parts, known=old, dtype=dtype, batch_size=16, advance=told.append)
    assert asked == teacher.rows == 50 and told[0] == 950 and sum(told) == 1000
    np.testing.assert_array_equal(torch.cat(teacher.seen).numpy(), ALL.inputs["image"][NEW])
    new = SoftTargets.open(tmp_path / "new")
    np.testing.assert_array_equal(new.logits[OLD], old.logits)
    exact = predict(teacher.network, some(NEW))
    np.testing.assert_allclose(new.logits[NEW], exact, rtol=2**-10 if dtype == "float16" else 1e-5, atol=1e-5)
    before, now = old.manifest.fidelity, new.manifest.fidelity
    difference = np.abs(exact.astype(dtype).astype(np.float32) - exact).max()
    assert now.largest_difference == pytest.approx(max(before.largest_difference, difference), rel=1e-3)
    equal = (exact.argmax(1) == exact.astype(dtype).argmax(1)).mean()
    assert now.equal_argmax == pytest.approx(0.95 * before.equal_argmax + 0.05 * equal)


def test_nothing_new_asks_nothing_and_gives_the_same_bytes(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "a", of(OLD))
    assert teacher.write(tmp_path / "b", of(OLD), known=SoftTargets.open(tmp_path / "a")) == teacher.rows == 0
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rows_that_left_moved_or_changed_places_keep_their_words(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "a", of(np.arange(1000)), dtype="float32")
    order = np.random.default_rng(0).permutation(1000)[:600]
    parts = {"train": some(order[:300]), "validation": some(order[300:])}
    known = SoftTargets.open(tmp_path / "a")
    assert teacher.write(tmp_path / "b", parts, known=known, dtype="float32") == teacher.rows == 0
    np.testing.assert_array_equal(SoftTargets.open(tmp_path / "b").logits, known.logits[order])


def test_a_row_is_known_by_its_inputs_not_by_its_key(tmp_path: Path, teacher: Teacher):
    parts = of(OLD)
    teacher.write(tmp_path / "a", parts)
    train = some(np.arange(len(parts["train"])), parts["train"])
    train.inputs["image"][5] = 255 - train.inputs["image"][5]
    train.contents[5] = 123456
    train.keys = train.keys.copy()
    train.keys[6] = 98765
    known = SoftTargets.open(tmp_path / "a")
    assert teacher.write(tmp_path / "b", {**parts, "train": train}, known=known) == 1
    np.testing.assert_array_equal(torch.cat(teacher.seen).numpy(), train.inputs["image"][[5]])
    same = np.arange(950) != 5
    np.testing.assert_array_equal(SoftTargets.open(tmp_path / "b").logits[same], known.logits[same])


def test_features_are_reused_with_the_logits(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "old", of(OLD), asked="stages")
    old = SoftTargets.open(tmp_path / "old")
    assert teacher.write(tmp_path / "new", of(np.arange(1000)), known=old, asked="stages") == 50
    assert teacher.rows == 2 + 50  # two rows of zeros find the shapes
    new = SoftTargets.open(tmp_path / "new")
    (layer,) = old.features
    np.testing.assert_array_equal(new.features[layer][OLD], old.features[layer])
    assert (new.features[layer][NEW] != 0).any(1).all()
    assert new.manifest.features[layer].largest_value >= old.manifest.features[layer].largest_value
    # Logits alone are there too, and layers that nobody asked for before are not.
    assert teacher.write(tmp_path / "alone", of(OLD), known=old) == 0
    plain = SoftTargets.open(tmp_path / "alone")
    assert teacher.write(tmp_path / "more", of(OLD), known=plain, asked="stages") == 950


def test_every_view_of_a_new_row_is_asked_and_of_known_rows_only_new_views(tmp_path: Path, teacher: Teacher):
    parts = of(np.arange(1000), views=3)
    teacher.write(tmp_path / "old", of(OLD, views=2), dtype="float32")
    old = SoftTargets.open(tmp_path / "old")
    assert teacher.write(tmp_path / "new", of(np.arange(1000), views=2), known=old, dtype="float32") == 2 * 40 + 10
    first = np.concatenate([NEW[NEW < 800], 800 + NEW[NEW < 800]])
    expected = np.concatenate([parts["train"].gather(first)[0], ALL.inputs["image"][NEW[NEW >= 800]]])
    np.testing.assert_array_equal(torch.cat(teacher.seen).numpy(), expected)
    new = SoftTargets.open(tmp_path / "new")
    for view in range(2):
        np.testing.assert_array_equal(
            new.part("train")[800 * view + OLD[OLD < 800]], old.part("train")[760 * view : 760 * (view + 1)]
        )
    assert teacher.write(tmp_path / "more", parts, known=new, dtype="float32") == 800
    everything = np.concatenate([predict(teacher.network, part) for part in parts.values()])
    np.testing.assert_allclose(SoftTargets.open(tmp_path / "more").logits, everything, rtol=1e-5, atol=1e-5)
    # A view is made from the row's key, and by what may happen in it.
    keyed = some(np.arange(800))
    keyed.keys = keyed.keys + np.uint64(5000)
    renamed = {**parts, "train": Viewed(keyed, Views(count=2, augment=AUGMENT))}
    assert teacher.write(tmp_path / "keyed", renamed, known=new, dtype="float32") == 1600
    other = of(np.arange(1000), views=2, augment=Augmentation(shift=1, flip=True))
    assert teacher.write(tmp_path / "other", other, known=new, dtype="float32") == 1600
    assert teacher.write(tmp_path / "plain", of(np.arange(1000)), known=new, dtype="float32") == 800


def test_another_teacher_or_precision_is_asked_about_all(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "a", of(OLD))
    known = SoftTargets.open(tmp_path / "a")
    assert teacher.write(tmp_path / "b", of(OLD), teacher="another", known=known) == teacher.rows == 950
    assert teacher.write(tmp_path / "c", of(OLD), dtype="float32", known=known) == teacher.rows == 950


class Killed(Exception):
    pass


def test_an_interrupted_store_goes_on_with_what_it_was_asking(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "old", of(OLD))
    old = SoftTargets.open(tmp_path / "old")
    told: list[int] = []

    def interrupt(rows: int) -> None:
        told.append(rows)
        if len(told) == 3:
            raise Killed

    more = {"known": old, "batch_size": 16}
    with pytest.raises(Killed):
        teacher.write(tmp_path / "a", of(np.arange(1000)), advance=interrupt, **more)
    shutil.copytree(tmp_path / "partial", tmp_path / "else" / "partial")
    told = []
    assert teacher.write(tmp_path / "a", of(np.arange(1000)), advance=told.append, **more) == 50
    assert told[0] == 950 + 32 and teacher.rows == 18
    shutil.rmtree(tmp_path / "partial")
    teacher.write(tmp_path / "b", of(np.arange(1000)), **more)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # Where the earlier store is gone, what was copied from it is not taken for asked.
    assert teacher.write(tmp_path / "else" / "a", of(np.arange(1000))) == teacher.rows == 1000


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from distillery.soft_targets import SoftTargets
from tests.test_reuse import Teacher, of
folder = Path(sys.argv[1])
Teacher().write(folder / "store", of(np.arange(1000)), known=SoftTargets.open(folder / "old"), batch_size=2,
                advance=lambda rows: time.sleep(0.05))
"""


@pytest.mark.slow
def test_kill_9_while_new_rows_are_asked_loses_nothing(tmp_path: Path, teacher: Teacher):
    teacher.write(tmp_path / "old", of(OLD))
    kill_when(tmp_path / "partial/position.json", SCRIPT, tmp_path)
    old = SoftTargets.open(tmp_path / "old")
    assert teacher.write(tmp_path / "store", of(np.arange(1000)), known=old, batch_size=2) == 50
    assert 0 < teacher.rows < 50
    store = SoftTargets.open(tmp_path / "store")
    np.testing.assert_array_equal(store.logits[OLD], old.logits)
    np.testing.assert_allclose(store.logits[NEW], predict(teacher.network, some(NEW)), rtol=2**-10, atol=1e-5)


def test_the_latest_store_is_kept_by_links(tmp_path: Path, teacher: Teacher):
    for name in ("first", "second"):
        teacher.write(tmp_path / name, of(OLD))
        keep(tmp_path / name, tmp_path / "kept" / "wide" / name)
    assert [each.name for each in (tmp_path / "kept").glob("*/*")] == ["second"]
    kept = tmp_path / "kept" / "wide" / "second"
    assert all((kept / name).samefile(tmp_path / "second" / name) for name in FILES)
    shutil.rmtree(tmp_path / "second")
    known = earlier(kept)
    assert known is not None and teacher.write(tmp_path / "third", of(np.arange(1000)), known=known) == 50


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_store_says_nothing(tmp_path: Path, teacher: Teacher, file: str):
    teacher.write(tmp_path / "store", of(OLD))
    assert earlier(tmp_path / "store") is not None
    damaged = bytearray((tmp_path / "store" / file).read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "store" / file).write_bytes(damaged)
    assert earlier(tmp_path / "store") is None
    (tmp_path / "store" / file).unlink()
    assert earlier(tmp_path / "store") is None


def test_what_cannot_be_linked_is_copied(tmp_path: Path, teacher: Teacher):
    memory = Path("/dev/shm")
    teacher.write(tmp_path / "store", of(OLD))
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        kept = Path(folder) / "wide" / "a"
        keep(tmp_path / "store", kept)
        known = earlier(kept)
        assert known is not None and (known.logits == SoftTargets.open(tmp_path / "store").logits).all()


ASK = """
import numpy as np
calls = []
def ask(inputs):
    calls.append(inputs["image"])
    return inputs["image"].reshape(len(inputs["image"]), -1)[:, 20:30] / 255
"""


def test_a_service_is_paid_for_new_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "paid_service.py").write_text(ASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = ApiNetwork(Api(name="api", function="paid_service:ask"), SCHEMA).eval()
    write(tmp_path / "old", network, "t", of(OLD), partial=tmp_path / "p")
    calls = __import__("paid_service").calls
    calls.clear()
    old = SoftTargets.open(tmp_path / "old")
    _, asked = write(tmp_path / "new", network, "t", of(np.arange(1000)), partial=tmp_path / "p", known=old)
    assert asked == 50
    np.testing.assert_array_equal(np.concatenate(calls), ALL.inputs["image"][NEW])
    assert code(network, tmp_path) == code(network, tmp_path / "nowhere")  # its digest tells of its code


def test_the_stage_asks_only_about_rows_that_it_has_not_seen(tmp_path: Path):
    root = copied(tmp_path / "project")
    store, kept = root / "data/soft_targets/wide", root / ".state/soft_targets/wide"

    def again(*stages: str):
        for stage in stages:
            run(root, stage)
        shutil.rmtree(store)  # as DVC does before a stage runs
        return run(root, "soft_targets@wide")

    before = {name: (store / name).read_bytes() for name in FILES}
    assert again()["asked"] == 0
    assert {name: (store / name).read_bytes() for name in FILES} == before
    # A smaller test split leaves rows to the others that nobody was asked about.
    keys = np.load(store / "keys.npy")
    params = yaml.safe_load(PARAMS)
    params["data"]["split"] = {"train": 0.65, "validation": 0.2, "test": 0.15}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    summary = again("ingest", "validate", "prepare")
    new = len(np.setdiff1d(np.load(store / "keys.npy"), keys))
    assert 0 < summary["asked"] == new < 0.1 * len(keys) and summary["rows"] == len(keys) + new
    run(root, "validate_soft_targets@wide")
    # A damaged store, and one that other code has made, are no error and say nothing.
    (file,) = kept.glob("*/contents.npy")
    file.unlink()
    file.touch()
    assert again()["asked"] == summary["rows"]
    (root / "custom").mkdir()
    (root / "custom" / "layers.py").write_text("SLOPE = 0.1\n")
    assert again()["asked"] == summary["rows"]
    assert again()["asked"] == 0 and len([*kept.parent.glob("*/*")]) == 1
