"""Batches that arrived: how their rows join the table, and what of them teachers see."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from distillery import partitions
from distillery.columns import Columns
from distillery.errors import UserError
from tests.data_fixtures import project, stage, stages, table_of, write_table

KEYED = {"columns": {"inputs": ["a"], "target": "label", "key": "key"}}


def arrived(root: Path, number: int, columns: dict[str, Any], suffix: str = ".parquet") -> None:
    """Puts a partition where retraining would."""
    folder = root / "data/partitions" / f"{number:04}-{number:012x}"
    folder.mkdir(parents=True)
    table = pa.table(columns)
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, folder / "batch.csv")
    else:
        pq.write_table(table, folder / "batch.parquet")


def base(root: Path, rows: int = 60, labelled: int = 60, **changes: Any) -> Path:
    """A project whose table has the keys k0, k1, ... and the inputs 0, 1, ..."""
    project(root, data=KEYED, **changes)
    write_table(root, numbered(range(rows), labelled=labelled))
    return root


def numbered(numbers: range, labelled: int | None = None, key: str = "k") -> dict[str, Any]:
    """Rows whose label says whether their number is odd; those from `labelled` on have none."""
    last = numbers.stop if labelled is None else labelled
    return {
        "key": [f"{key}{number}" for number in numbers],
        "a": [float(number) for number in numbers],
        "label": [None if number >= last else ("even", "odd")[number % 2] for number in numbers],
    }


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_new_rows_join_and_known_ones_count_once(tmp_path: Path, suffix: str) -> None:
    base(tmp_path, labelled=50)
    stage(tmp_path, "ingest")
    before = {row["id"]: row for row in table_of(tmp_path).to_pylist()}
    # 40 to 49 are sent again, 50 to 59 get a label, 60 to 79 are new.
    arrived(tmp_path, 1, numbered(range(40, 80)), suffix)
    assert stage(tmp_path, "ingest")["dropped"] == 20
    after = {row["id"]: row for row in table_of(tmp_path).to_pylist()}
    assert set(after) == {f"k{number}" for number in range(80)}
    for name, row in before.items():
        assert {**after[name], "target": 0, "target.partition": 0} == {**row, "target": 0, "target.partition": 0}
    for number in range(80):
        row = after[f"k{number}"]
        assert row["target"] == ("even", "odd")[number % 2]
        assert (row["partition"], row["target.partition"]) == (int(number >= 60), int(number >= 50))


def test_a_copy_under_another_key_is_the_old_row(tmp_path: Path) -> None:
    """So a test row that is sent as a new one can never be learned from."""
    base(tmp_path)
    stage(tmp_path, "ingest")
    before = table_of(tmp_path)
    arrived(tmp_path, 1, numbered(range(60), key="other"))
    stage(tmp_path, "ingest")
    assert table_of(tmp_path).equals(before)


def test_a_known_key_with_other_inputs_is_refused(tmp_path: Path) -> None:
    base(tmp_path)
    arrived(tmp_path, 1, {"key": ["k3"], "a": [99.5], "label": ["odd"]})
    with pytest.raises(UserError, match=r"k3 stands in raw.parquet row 4 and 0001-.*: batch.*"):
        stage(tmp_path, "ingest")


def test_a_known_row_with_another_label_is_refused(tmp_path: Path) -> None:
    base(tmp_path)
    arrived(tmp_path, 1, {"key": ["k3"], "a": [3.0], "label": ["even"]})
    with pytest.raises(UserError, match="equal inputs but labels odd and even"):
        stage(tmp_path, "ingest")


def test_a_batch_without_the_target_is_unlabelled(tmp_path: Path) -> None:
    base(tmp_path)
    new = numbered(range(60, 90))
    del new["label"]
    arrived(tmp_path, 1, new)
    summary = stage(tmp_path, "ingest")
    assert (summary["rows"], summary["labelled"]) == (90, 60)


def test_another_shape_of_inputs_is_refused(tmp_path: Path) -> None:
    vectors = pa.array([[0.0, float(n)] for n in range(40)], pa.list_(pa.float32(), 2))
    project(tmp_path, data={"columns": {"inputs": ["v"], "target": "label"}})
    write_table(tmp_path, {"v": vectors, "label": ["a", "b"] * 20})
    arrived(tmp_path, 1, {"v": pa.array([[1.0, 2.0, 3.0]]), "label": ["a"]})
    with pytest.raises(UserError, match=r"its inputs are v 3, those of data.path v 2"):
        stage(tmp_path, "ingest")


def test_new_rows_hide_no_label_and_keep_their_own(tmp_path: Path) -> None:
    base(tmp_path, rows=200)
    project(tmp_path, data=KEYED | {"labelled": 20})
    stages(tmp_path, "ingest", "validate", "prepare")
    before = Columns.open(tmp_path / "data/prepared/train")
    shown = set(before.keys[before.labelled].tolist())
    arrived(tmp_path, 1, numbered(range(200, 300)))
    stages(tmp_path, "ingest", "validate", "prepare")
    after = Columns.open(tmp_path / "data/prepared/train")
    old = np.isin(after.keys, before.keys)
    assert set(after.keys[old & (after.target >= 0)].tolist()) == shown
    assert (after.target[~old] >= 0).all()


def test_teachers_see_what_they_saw_until_the_snapshot_advances(tmp_path: Path) -> None:
    base(tmp_path, rows=200, labelled=150)
    stages(tmp_path, "ingest", "validate", "prepare", "snapshot")

    def files() -> dict[str, bytes]:
        folder = tmp_path / "data/snapshot"
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}

    before = files()
    assert before == {name: (tmp_path / "data/prepared" / name).read_bytes() for name in before}
    # New rows, and labels of old ones.
    arrived(tmp_path, 1, numbered(range(120, 300)))
    stages(tmp_path, "ingest", "validate", "prepare", "snapshot")
    assert files() == before
    project(tmp_path, data=KEYED, retraining={"snapshot": 1})
    stage(tmp_path, "snapshot")
    after = Columns.open(tmp_path / "data/snapshot/train")
    assert len(after) == len(after.labelled) == len(Columns.open(tmp_path / "data/prepared/train"))


def test_a_partition_is_known_by_its_number(tmp_path: Path) -> None:
    """Batches 1 and 2, which teachers knew, were taken out; 3 is still none that they know."""
    base(tmp_path, rows=200)
    project(tmp_path, data=KEYED, retraining={"snapshot": 2})
    arrived(tmp_path, 3, numbered(range(200, 300)))
    stages(tmp_path, "ingest", "validate", "prepare", "snapshot")
    rows = {row["partition"] for row in table_of(tmp_path).select(["partition"]).to_pylist()}
    seen, prepared = (Columns.open(tmp_path / "data" / name / "train") for name in ("snapshot", "prepared"))
    assert rows == {0, 3} and len(seen) < len(prepared)
    assert partitions.next_number(tmp_path / "data/partitions", 2) == 4
    assert partitions.next_number(tmp_path / "nowhere", 2) == 3


def test_a_plane_and_a_picture_of_one_channel_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    project(tmp_path, data={"columns": {"inputs": ["image"], "target": "label"}})
    planes = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels[:50])
    write_table(tmp_path, {"image": planes, "label": ["a", "b"] * 25})
    channels = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels[40:].reshape(-1, 1, 4, 4))
    arrived(tmp_path, 1, {"image": channels, "label": ["a", "b"] * 10})
    summary = stage(tmp_path, "ingest")
    assert (summary["rows"], summary["dropped"]) == (60, 10)


def test_the_scale_of_a_number_is_that_of_the_snapshot(tmp_path: Path) -> None:
    data = {"columns": {"inputs": ["a"], "target": {"y": "number"}, "key": "key"}}
    distill = {"teachers": ["small"], "objectives": [{"name": "mse_teacher"}], "training": {}}
    project(tmp_path, data=data, distill=distill)
    keys = [f"k{n}" for n in range(100)]
    write_table(tmp_path, {"key": keys, "a": [float(n) for n in range(100)], "y": [n / 10 for n in range(100)]})
    stages(tmp_path, "ingest", "validate", "prepare", "snapshot")
    before = Columns.open(tmp_path / "data/snapshot/train").schema
    arrived(tmp_path, 1, {"key": ["n0", "n1", "n2"], "a": [200.0, 201.0, 202.0], "y": [1e6, 1e6, 1e6]})
    stages(tmp_path, "ingest", "validate", "prepare", "snapshot")
    assert Columns.open(tmp_path / "data/snapshot/train").schema == before
    assert Columns.open(tmp_path / "data/prepared/train").schema != before


def test_the_digest_goes_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.csv").write_text("x\n1\n")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.csv").write_text("x\n1\n")
    assert partitions.digest(tmp_path / "one") == partitions.digest(tmp_path / "two")
    assert partitions.digest(tmp_path / "one") == partitions.digest(tmp_path / "one" / "a.csv")
    (tmp_path / "two" / "a.csv").write_text("x\n2\n")
    assert partitions.digest(tmp_path / "one") != partitions.digest(tmp_path / "two")
