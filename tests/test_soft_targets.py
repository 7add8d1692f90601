"""The store of soft targets: complete, aligned, faithful, resumable."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distillery import models
from distillery.asking import write
from distillery.columns import Columns
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.saved import predict
from distillery.signals import Batch
from distillery.soft_targets import SoftTargets, StoredTeacher
from tests.killing import kill_when
from tests.science import SCHEMA, digits


@pytest.fixture(scope="module")
def network():
    return models.build(Mlp(name="mlp"), SCHEMA, seed=0)


PARTS = {"train": digits(0, 1000), "validation": digits(1000, 1300)}


def test_the_store_says_what_the_teacher_says(tmp_path: Path, network):
    manifest, _ = write(tmp_path / "store", network, "t", PARTS, partial=tmp_path / "partial")
    store = SoftTargets.open(tmp_path / "store", "t", list(PARTS.values()))
    for name, columns in PARTS.items():
        exact = predict(network, columns)
        np.testing.assert_allclose(store.part(name), exact, rtol=2**-10, atol=1e-6)
        # Stored without a temperature and in the order of the rows, so a batch is a gather.
    rows = torch.tensor([3, 998, 0])
    said = StoredTeacher(store.part("train")).signals(Batch(rows, {}, SCHEMA, torch.device("cpu")))
    torch.testing.assert_close(said.logits, torch.from_numpy(store.part("train")[rows.numpy()].astype(np.float32)))
    everything = np.concatenate([predict(network, columns) for columns in PARTS.values()])
    assert manifest.fidelity.largest_difference == np.abs(everything.astype(np.float16) - everything).max()


def test_the_store_takes_two_bytes_a_class(tmp_path: Path, network):
    write(tmp_path / "store", network, "t", PARTS, partial=tmp_path / "partial")
    assert (tmp_path / "store/logits.npy").stat().st_size <= 1.01 * 2 * 10 * 1300


class Killed(Exception):
    pass


def test_an_interrupted_store_goes_on_where_it_stopped(tmp_path: Path, network):
    asked: list[int] = []

    def interrupt(rows: int) -> None:
        asked.append(rows)
        if len(asked) == 4:
            raise Killed

    with pytest.raises(Killed):
        write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", batch_size=128, advance=interrupt)
    told: list[int] = []
    write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", batch_size=128, advance=told.append)
    assert told[0] == 3 * 128 and sum(told) == 1300
    write(tmp_path / "b", network, "t", PARTS, partial=tmp_path / "q", batch_size=128)
    for name in ("logits.npy", "keys.npy", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_teacher_does_not_continue_the_partial_store(tmp_path: Path, network):
    def interrupt(rows: int) -> None:
        if rows:
            raise Killed

    with pytest.raises(Killed):
        write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", advance=interrupt)
    told: list[int] = []
    write(tmp_path / "a", network, "another", PARTS, partial=tmp_path / "p", advance=told.append)
    assert told[0] == 0


SCRIPT = """
import sys
from pathlib import Path
from distillery import models
from distillery.asking import write
from distillery.config import Mlp
from distillery.asking import write
from tests.science import SCHEMA
from tests.test_soft_targets import PARTS
folder = Path(sys.argv[1])
def slowly(rows):
    import time
    time.sleep(0.05)
write(folder / "store", models.build(Mlp(name="mlp"), SCHEMA, seed=0), "t", PARTS, partial=folder / "p", batch_size=32,
      advance=slowly)
"""


@pytest.mark.slow
def test_kill_9_during_writing_loses_nothing(tmp_path: Path, network):
    kill_when(tmp_path / "p/position.json", SCRIPT, tmp_path)
    assert not (tmp_path / "store/manifest.json").exists()
    told: list[int] = []
    write(tmp_path / "store", network, "t", PARTS, partial=tmp_path / "p", batch_size=32, advance=told.append)
    assert 0 < told[0] < 1300
    store = SoftTargets.open(tmp_path / "store", "t", list(PARTS.values()))
    np.testing.assert_allclose(store.part("train"), predict(network, PARTS["train"]), rtol=2**-10, atol=1e-6)


def reordered(columns: Columns, order: np.ndarray) -> Columns:
    return Columns(
        columns.schema, columns.keys[order], {"label": columns.target[order]}, {"image": columns.inputs["image"][order]}
    )


def test_wrong_rows_or_teacher_are_refused(tmp_path: Path, network):
    write(tmp_path / "store", network, "t", PARTS, partial=tmp_path / "partial")
    train, validation = PARTS.values()
    shuffled = reordered(train, np.random.default_rng(0).permutation(len(train)))
    with pytest.raises(UserError, match="another order"):
        SoftTargets.open(tmp_path / "store", "t", [shuffled, validation])
    with pytest.raises(UserError, match="1 rows are missing and 0"):
        SoftTargets.open(tmp_path / "store", "t", [digits(0, 1000), digits(1000, 1301)])
    with pytest.raises(UserError, match="0 rows are missing and 1 "):
        SoftTargets.open(tmp_path / "store", "t", [digits(0, 1000), digits(1000, 1299)])
    changed = reordered(train, np.arange(1000))
    changed.contents = train.contents + (np.arange(1000) < 3).astype(np.uint64)
    with pytest.raises(UserError, match=r"3 rows had other inputs when the teacher was asked; .* --force"):
        SoftTargets.open(tmp_path / "store", "t", [changed, validation])
    with pytest.raises(UserError, match="another teacher"):
        SoftTargets.open(tmp_path / "store", "u", list(PARTS.values()))


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, network):
    write(tmp_path / "store", network, "t", PARTS, partial=tmp_path / "partial")
    logits = np.load(tmp_path / "store/logits.npy")
    np.save(tmp_path / "store/logits.npy", logits[::-1])
    with pytest.raises(UserError, match=r"logits.npy was changed .* soft_targets@store --force"):
        SoftTargets.open(tmp_path / "store")
    (tmp_path / "store/logits.npy").unlink()
    with pytest.raises(UserError, match="no complete store"):
        SoftTargets.open(tmp_path / "store")


def test_logits_beyond_float16_are_told_and_float32_holds_them(tmp_path: Path):
    loud = models.build(Mlp(name="mlp"), SCHEMA, seed=0)
    with torch.no_grad():
        loud.body.head.bias.fill_(1e5)
    with pytest.raises(UserError, match=r"soft_targets.dtype: float32"):
        write(tmp_path / "a", loud, "t", PARTS, partial=tmp_path / "p")
    manifest, _ = write(tmp_path / "b", loud, "t", PARTS, partial=tmp_path / "q", dtype="float32")
    assert manifest.fidelity.equal_argmax == 1.0
