"""prepare: columns in the table's order, labels hidden in proportion; and the gate of the soft targets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillery import models
from distillery.columns import Columns
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.saved import save_model
from distillery.schema import Schema
from distillery.table import hash64
from tasks import prepare
from tasks.prepare import keep_labels
from tasks.validate_soft_targets import read_frame
from tests.data_fixtures import images, project, rows, stage, stages, table_of, write_table

COLUMNS = {"inputs": ["a", "image", "b"], "target": "label", "key": "key", "split": "part"}


def test_columns_hold_the_rows_in_the_order_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "BATCH_BYTES", 100)  # several batches
    write_table(project(tmp_path, data={"columns": COLUMNS}), rows(50) | {"image": images(50)})
    stages(tmp_path, "ingest", "prepare")
    table = table_of(tmp_path).to_pandas()
    pixels = images(50).to_numpy_ndarray()
    for split in ("train", "validation", "test"):
        columns = Columns.open(tmp_path / f"data/prepared/{split}")
        expected = table[table["split"] == split]
        numbers = expected["id"].str.removeprefix("k").astype(int).to_numpy()
        np.testing.assert_array_equal(
            columns.keys, hash64(pq.read_table(tmp_path / "data/raw.parquet")["key"].take(numbers))
        )
        np.testing.assert_array_equal(columns.contents, hash64(pa.array(expected["content"])))
        np.testing.assert_array_equal(columns.inputs["numeric"], expected[["a", "b"]].to_numpy())
        np.testing.assert_array_equal(columns.inputs["image"], pixels[numbers])
        np.testing.assert_array_equal(columns.target, (expected["target"] == "yes").astype(int))
        assert columns.inputs["image"].dtype == np.uint8
        assert columns.inputs["numeric"].dtype == np.float32


def test_prepare_writes_the_same_bytes_again(tmp_path: Path) -> None:
    write_table(project(tmp_path), rows())
    stage(tmp_path, "ingest")
    contents = []
    for _ in range(2):
        stage(tmp_path, "prepare")
        contents.append({file: file.read_bytes() for file in (tmp_path / "data/prepared").rglob("*.*")})
    assert contents[0] == contents[1]


def test_only_training_labels_are_hidden(tmp_path: Path) -> None:
    write_table(project(tmp_path, data={"labelled": 6}), rows())
    stage(tmp_path, "ingest")
    assert stage(tmp_path, "prepare") == {"labelled": 6, "train": 18, "validation": 6, "test": 6}
    train, validation, test = (Columns.open(tmp_path / f"data/prepared/{s}") for s in ("train", "validation", "test"))
    assert np.bincount(train.target[train.labelled]).tolist() == [3, 3]
    assert len(train) == 18
    assert (validation.target >= 0).all()
    assert (test.target >= 0).all()


def test_unlabelled_rows_train_but_are_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = rows()
    for row in (0, 3, 4, 9):
        columns["label"][row] = None
    write_table(project(tmp_path), columns)
    stage(tmp_path, "ingest")
    assert stage(tmp_path, "prepare") == {"labelled": 17, "train": 18, "validation": 5, "test": 4}
    assert "2 test rows without a label are left out" in capsys.readouterr().err


def test_more_labels_than_there_are(tmp_path: Path) -> None:
    write_table(project(tmp_path, data={"labelled": 19}), rows())
    stage(tmp_path, "ingest")
    with pytest.raises(UserError, match=r"data\.labelled: 19 is more than the 18 labelled training rows"):
        stage(tmp_path, "prepare")
    assert not (tmp_path / "data/prepared").exists()


def kept(counts: list[int], labelled: int) -> list[int]:
    """How many labels each class keeps."""
    target = np.repeat(np.arange(len(counts)), counts)
    keys = np.random.default_rng(0).integers(0, 2**63, len(target)).astype(np.uint64)
    keep = keep_labels(target, keys, np.arange(len(target)), labelled, len(counts))
    return [int(count) for count in np.bincount(target[keep], minlength=len(counts))]


@pytest.mark.parametrize(
    ("counts", "labelled", "expected"),
    [
        ([100, 100, 100], 30, [10, 10, 10]),
        ([70, 20, 10], 10, [7, 2, 1]),
        ([60, 30, 10], 9, [5, 3, 1]),
        ([1000, 5, 5], 4, [2, 1, 1]),
        ([500, 500, 1, 1], 4, [1, 1, 1, 1]),
        ([98, 1, 1], 2, [2, 0, 0]),
        ([5, 0, 5], 3, [2, 0, 1]),
        ([3, 2, 1], 6, [3, 2, 1]),
    ],
)
def test_classes_share_the_labels_in_proportion(counts: list[int], labelled: int, expected: list[int]) -> None:
    assert kept(counts, labelled) == expected


def test_every_number_of_labels_is_met_exactly() -> None:
    counts = np.random.default_rng(1).integers(1, 60, 25).tolist()
    for labelled in range(1, sum(counts) + 1):
        shares = np.array(kept(counts, labelled))
        assert shares.sum() == labelled
        assert (shares <= counts).all()
        assert labelled < len(counts) or (shares >= 1).all()


def test_the_choice_of_labels_stays_when_rows_come_or_are_moved() -> None:
    random = np.random.default_rng(0)
    target = random.integers(0, 2, 1000)
    keys = random.integers(0, 2**63, 1000).astype(np.uint64)
    keep = keep_labels(target, keys, np.arange(1000), 100, 2)
    order = random.permutation(1000)
    np.testing.assert_array_equal(keep_labels(target[order], keys[order], np.arange(1000), 100, 2), keep[order])
    more = keep_labels(target, keys, np.arange(1000), 120, 2)
    assert (more[keep]).all(), "more labels keep those chosen before"


def test_several_targets_are_hidden_together_and_numbers_know_their_scale(tmp_path: Path) -> None:
    columns = COLUMNS | {"inputs": ["a", "b"], "target": {"label": "classes", "price": "number"}}
    prices = [float(number) if number % 5 else None for number in range(30)]
    objectives = {"label": [{"name": "kd"}], "price": [{"name": "mse_teacher"}]}
    root = project(
        tmp_path,
        data={"columns": columns, "labelled": 8},
        distill={"teachers": ["small"], "objectives": objectives, "training": {}},
    )
    write_table(root, rows(30) | {"price": prices})
    stages(root, "ingest", "validate", "prepare")
    train, test = (Columns.open(root / f"data/prepared/{name}") for name in ("train", "test"))
    assert len(train.labelled) == 8
    hidden = np.setdiff1d(np.arange(len(train)), train.labelled)
    assert np.isnan(train.targets["price"][hidden]).all() and (train.targets["label"][hidden] == -1).all()
    known = train.targets["price"][~np.isnan(train.targets["price"])]
    price = test.schema.targets["price"]
    assert (price.mean, price.deviation) == pytest.approx((known.mean(), known.std()), rel=1e-6)


def test_fewer_labels_than_classes_are_refused(tmp_path: Path) -> None:
    write_table(project(tmp_path, data={"labelled": 1}), rows())
    stage(tmp_path, "ingest")
    with pytest.raises(UserError, match=r"data\.labelled: 1 labels cannot show all 2 classes"):
        stage(tmp_path, "prepare")


def with_soft_targets(root: Path, **gate: float) -> Path:
    """A project whose untrained teacher has spoken."""
    write_table(project(root, validation={"soft_targets": gate}, data={"labelled": 6}), rows())
    stages(root, "ingest", "prepare")
    schema = Schema.read(root / "data/table/schema.json")
    save_model(root / "models/teachers/small", models.build(Mlp(name="mlp"), schema, seed=0), [], {})
    stage(root, "soft_targets@small")
    return root


def test_soft_targets_within_the_gate_pass(tmp_path: Path) -> None:
    with_soft_targets(tmp_path, min_agreement=0.0, max_entropy=1.0)
    summary = stage(tmp_path, "validate_soft_targets@small")
    report = json.loads((tmp_path / "reports/soft_targets/small.json").read_text())
    assert report["success"]
    assert report["rows"] == summary["rows"] == 24
    assert report["labelled"] == 12
    assert 0 <= report["agreement"] <= 1
    assert 'href="soft_targets-small.html"' in (tmp_path / "reports/data_docs/index.html").read_text()


def test_a_teacher_that_cannot_tell_the_classes_apart_is_stopped(tmp_path: Path) -> None:
    with_soft_targets(tmp_path, min_agreement=1.0, max_entropy=0.1)
    with pytest.raises(UserError, match=r"validate_soft_targets@small: 2 of 8 expectations failed"):
        stage(tmp_path, "validate_soft_targets@small")
    assert not (tmp_path / "reports/soft_targets").exists()
    report = json.loads((tmp_path / "reports/failed/soft_targets/small.json").read_text())
    columns = [item["arguments"]["column"] for item in report["expectations"] if not item["success"]]
    assert columns == ["agrees", "entropy"]


def test_soft_targets_whose_rows_were_shuffled_are_named(tmp_path: Path) -> None:
    with_soft_targets(tmp_path, min_agreement=0.0, max_entropy=1.0)
    folder = tmp_path / "data/soft_targets/small"
    keys = np.load(folder / "keys.npy")
    keys[[2, 5]] = keys[[5, 2]]
    reseal(folder, keys)
    with pytest.raises(UserError, match="another one than the data's at this place"):
        stage(tmp_path, "validate_soft_targets@small")
    report = json.loads((tmp_path / "reports/failed/soft_targets/small.json").read_text())
    failure = next(item for item in report["expectations"] if not item["success"])
    assert [item["row_origin"] for item in failure["examples"]] == ["train row 3", "train row 6"]


def reseal(folder: Path, keys: Any) -> None:
    """Changes the rows of a store and its checksum, as a faulty writer would."""
    import hashlib

    np.save(folder / "keys.npy", keys)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checksums"]["keys.npy"] = hashlib.sha256((folder / "keys.npy").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_soft_targets_of_another_teacher_are_refused(tmp_path: Path) -> None:
    with_soft_targets(tmp_path, min_agreement=0.0, max_entropy=1.0)
    schema = Schema.read(tmp_path / "data/table/schema.json")
    save_model(tmp_path / "models/teachers/small", models.build(Mlp(name="mlp"), schema, seed=9), [], {})
    with pytest.raises(UserError, match="another teacher"):
        stage(tmp_path, "validate_soft_targets@small")


def test_rows_missing_from_a_store_and_rows_too_many_are_seen(tmp_path: Path) -> None:
    write_table(project(tmp_path), rows())
    stages(tmp_path, "ingest", "prepare")
    parts = {name: Columns.open(tmp_path / f"data/prepared/{name}") for name in ("train", "validation")}
    keys = np.concatenate([part.keys for part in parts.values()])
    target = np.concatenate([part.target for part in parts.values()])
    logits = np.where(np.arange(2) == target[:, None], 4, -4).astype(np.float16)
    assert read_frame(logits, keys, parts)["agrees"].mean() == 1.0
    short = read_frame(logits[:-3], keys[:-3], parts)
    assert (len(short), short["id"].isna().sum(), short["aligned"].sum()) == (24, 3, 21)
    long = read_frame(np.concatenate([logits, logits[:2]]), np.concatenate([keys, keys[:2]]), parts)
    assert (len(long), long["aligned"].sum(), long["id"].duplicated().sum()) == (26, 24, 2)
    logits[3, 1] = np.inf
    spoiled = read_frame(logits, keys, parts)
    assert spoiled["not_finite"].tolist() == [0, 0, 0, 1] + [0] * 20
    assert np.isnan(spoiled["agrees"][3])
