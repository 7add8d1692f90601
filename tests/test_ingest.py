"""ingest: names, splits, labels and copies of rows."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillery import table, targets
from distillery.errors import UserError
from distillery.schema import Schema
from tests.data_fixtures import images, project, rows, stage, table_of, tensor, write_image, write_table

ROLES = table.Roles(inputs=("a", "b"), targets={"label": "classes"})
SHARES = table.Shares(train=0.7, validation=0.1, test=0.2)


def test_the_table_holds_names_split_target_and_inputs(tmp_path: Path) -> None:
    write_table(project(tmp_path), rows(30) | {"image": images(30)})
    project(
        tmp_path, data={"columns": {"inputs": ["b", "image", "a"], "target": "label", "key": "key", "split": "part"}}
    )
    summary = stage(tmp_path, "ingest")
    assert summary == {
        "rows": 30, "train": 18, "validation": 6, "test": 6, "labelled": 30, "outputs": 2, "dropped": 0,
        "partitions": 0,
    }  # fmt: skip
    written = table_of(tmp_path)
    assert written.column_names == [
        "id",
        "row_origin",
        "content",
        "partition",
        "split",
        "target",
        "target.partition",
        "b",
        "image",
        "a",
    ]
    assert set(pq.read_table(tmp_path / "data/table/test.parquet")["split"].to_pylist()) == {"test"}
    assert written["a"].type == pa.float32()
    assert written["image"].type == pa.fixed_shape_tensor(pa.uint8(), (1, 4, 4))
    schema = Schema.read(tmp_path / "data/table/schema.json")
    assert list(schema.inputs) == ["numeric", "image"]
    assert schema.inputs["numeric"].columns == ("b", "a")
    assert schema.inputs["image"].shape == (1, 4, 4)
    assert schema.classes == ("no", "yes")


def test_ingest_writes_the_same_bytes_again(tmp_path: Path) -> None:
    write_table(project(tmp_path), rows())
    contents = []
    for _ in range(2):
        stage(tmp_path, "ingest")
        contents.append({f.name: f.read_bytes() for f in (tmp_path / "data/table").iterdir()})
    assert contents[0] == contents[1]


def test_a_folder_of_images_becomes_a_table(tmp_path: Path) -> None:
    for number in range(40):
        write_image(tmp_path / f"data/raw/{('cat', 'dog', 'unlabelled')[number % 3]}/{number}.png", seed=number)
    columns = {"inputs": ["image"], "target": "label", "key": "file"}
    project(tmp_path, path="data/raw", data={"source": "images", "columns": columns}, ingest={"image_mode": "grey"})
    assert stage(tmp_path, "ingest")["labelled"] == 27
    written = table_of(tmp_path)
    assert set(written["id"].to_pylist()) == {f"{number}.png" for number in range(40)}
    assert "cat/0.png" in written["row_origin"].to_pylist()


def build(columns: dict[str, Any], roles: table.Roles = ROLES, **options: Any) -> pa.Table:
    return table.build({0: pa.table(columns)}, roles, SHARES, **options)[0]


def large(count: int = 4000) -> dict[str, Any]:
    values = np.random.default_rng(3).normal(size=(count, 2))
    return {"a": values[:, 0], "b": values[:, 1], "label": np.arange(count) % 3}


def test_a_row_never_moves_when_the_data_grow_or_a_label_comes() -> None:
    columns = large()
    before = dict(zip(*(build(columns)[name].to_pylist() for name in ("id", "split")), strict=True))
    order = np.random.default_rng(0).permutation(4000)
    some = {name: np.asarray(values)[order][:1500] for name, values in columns.items()}
    some["label"] = pa.array(some["label"], mask=np.arange(1500) % 2 == 0)
    after = build(some)
    assert all(
        before[name] == split for name, split in zip(after["id"].to_pylist(), after["split"].to_pylist(), strict=True)
    )


def test_splits_have_their_shares() -> None:
    counts = {item["values"]: item["counts"] for item in build(large())["split"].value_counts().to_pylist()}
    assert counts["train"] == pytest.approx(2800, abs=90)
    assert counts["validation"] == pytest.approx(400, abs=60)
    assert counts["test"] == pytest.approx(800, abs=80)


def test_another_border_between_train_and_validation_leaves_the_test_split_alone() -> None:
    columns = pa.table(large())
    splits = [
        table.build({0: columns}, ROLES, table.Shares(*shares))[0]["split"].to_numpy() == "test"
        for shares in ((0.7, 0.1, 0.2), (0.5, 0.3, 0.2))
    ]
    np.testing.assert_array_equal(*splits)


def test_a_group_stays_together() -> None:
    columns = large() | {"patient": np.arange(4000) // 4}
    written = build(columns, table.Roles(inputs=("a", "b"), targets={"label": "classes"}, group="patient"))
    assert written["group"][5].as_py() == "1"
    splits = written.group_by("group").aggregate([("split", "count_distinct")])
    assert set(splits["split_count_distinct"].to_pylist()) == {1}
    assert len(written["split"].unique()) == 3


def test_an_id_follows_from_the_inputs_alone() -> None:
    base = {"a": [0.0, 1.0, math.nan], "b": [1.0, 2.0, 3.0], "label": ["x", "y", "x"]}
    ids = build(base)["id"].to_pylist()
    assert all(len(name) == 32 for name in ids)
    same = {"b": base["b"], "a": [-0.0, 1.0, None], "label": ["y", "y", "y"]}
    assert build(same, table.Roles(inputs=("b", "a"), targets={"label": "classes"}))["id"].to_pylist() == ids
    other = base | {"b": [1.0, 2.0, 3.5]}
    assert [one == two for one, two in zip(build(other)["id"].to_pylist(), ids, strict=True)] == [True, True, False]


def test_an_image_counts_in_the_id_wherever_it_lies_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    roles = table.Roles(inputs=("image",), targets={"label": "classes"})
    label = ["x"] * 6
    ids = build({"image": tensor(pixels), "label": label}, roles)["id"].to_pylist()
    chunks = pa.chunked_array([tensor(pixels[:2]), tensor(pixels[2:])])
    assert build({"image": chunks, "label": label}, roles)["id"].to_pylist() == ids
    pixels[4, 2, 3, 3] ^= 1
    changed = build({"image": tensor(pixels), "label": label}, roles)["id"].to_pylist()
    assert [row for row in range(6) if changed[row] != ids[row]] == [4]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([10, 9, 9, None], ["10", "9", "9", None], ("9", "10")),
        ([3.0, math.nan, 4.0, 3.0], ["3", None, "4", "3"], ("3", "4")),
        ([True, False, True, None], ["true", "false", "true", None], ("false", "true")),
        (["b", "", "a", None], ["b", None, "a", None], ("a", "b")),
        (pa.array(["b", "a", "b", None]).dictionary_encode(), ["b", "a", "b", None], ("a", "b")),
    ],
)
def test_labels_become_text(labels: Any, names: list[str | None], classes: tuple[str, ...]) -> None:
    roles = table.Roles(inputs=("a",), targets={"label": "classes"}, split="part")
    raw = pa.table({"a": [1, 2, 3, 4], "label": labels, "part": ["train"] * 4})
    written, schema = table.build({0: raw}, roles, SHARES)
    assert written["target"].to_pylist() == names
    assert schema.classes == classes


def test_missing_and_infinite_numbers_survive_for_validate_to_name() -> None:
    written = build({"a": [1.0, None, math.nan, math.inf], "b": [1, 2, 3, None], "label": ["x"] * 4})
    assert str(written["a"].to_pylist()) == "[1.0, None, nan, inf]"
    assert written["b"].to_pylist() == [1.0, 2.0, 3.0, None]


def test_a_vector_is_an_input_of_its_own_and_part_of_the_id(tmp_path: Path) -> None:
    roles = table.Roles(inputs=("v", "a"), targets={"label": "classes"})
    lists = pa.array([[1, 2], [3, 4], None])
    raw = pa.table({"v": lists, "a": [1, 2, 3], "label": ["x", "y", "x"]})
    written, schema = table.build({0: raw}, roles, table.Shares(0.98, 0.01, 0.01))
    assert schema.inputs["v"].shape == (2,) and schema.inputs["v"].columns == ("v",)
    pq.write_table(written, tmp_path / "table.parquet")
    back = pq.read_table(tmp_path / "table.parquet")["v"].combine_chunks()
    np.testing.assert_array_equal(table.vectors(back), [[1, 2], [3, 4], [np.nan, np.nan]])
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1, 2], [3, 5], [0, 0]], np.float32))
    other, _ = table.build({0: raw.set_column(0, "v", tensors)}, roles, SHARES)
    assert [one == two for one, two in zip(written["id"], other["id"], strict=True)] == [True, False, False]


def test_several_targets_stand_beside_each_other() -> None:
    raw = pa.table(
        {
            "a": range(6),
            "kind": ["x", "y", None, "x", "y", "x"],
            "price": ["1.5", "2", "", "1e3", "0", "7"],
            "tags": ["red|round", "|", None, "round", " red ", "new"],
            "part": ["train"] * 5 + ["test"],
        }
    )
    kinds = {"kind": "classes", "price": "number", "tags": "labels"}
    written, schema = table.build({0: raw}, table.Roles(("a",), kinds, split="part"), SHARES)
    assert written["target.price"].to_pylist() == [1.5, 2.0, None, 1000.0, 0.0, 7.0]
    assert written["target.tags"].to_pylist() == [["red", "round"], [], None, ["round"], ["red"], ["new"]]
    assert [target.names for target in schema.targets.values()] == [("x", "y"), (), ("red", "round")]
    assert schema.outputs == 5 and schema.part("tags") == slice(3, 5)
    hot = targets.values(written["target.tags"], schema.targets["tags"])
    np.testing.assert_array_equal(hot, [[1, 1], [0, 0], [np.nan] * 2, [0, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("number", ["1", "dear"], "'y' holds 'dear' in row 2: write a number, or say `classes`"),
        ("number", [None, None], "no training row has a label in column 'y'"),
        ("labels", [1, 2], "'y' holds int64: labels are a list of names, or text with | between them"),
        ("number", ["1_0x", "2"], "'y' holds '1_0x' in row 1: write a number"),
        ("labels", [[0, 1, 1], [1, 0, 0]], "holds '1' in row 1 twice: write the names of the labels that apply"),
        ("labels", [["red|round"], ["red"]], r"holds 'red\|round' in row 1: \| stands between labels"),
        ("labels", [[], []], "no training row has a label other than none in column 'y'"),
        ("classes", [1.5, 2.0], r"holds 1.5 in row 1.*to predict a quantity say `target: \{y: number\}`"),
        ("classes", [1.0, 1e20], "holds 1e\\+20 in row 2: names must be whole numbers or text"),
        ("classes", [1.0, math.inf], "holds inf in row 2: names must be whole numbers or text"),
    ],
)
def test_a_target_of_another_kind_is_told(kind: Any, values: Any, message: str) -> None:
    raw = pa.table({"a": [1, 2], "y": values, "part": ["train"] * 2})
    with pytest.raises(UserError, match=message):
        table.build({0: raw}, table.Roles(("a",), {"y": kind}, split="part"), SHARES)


@pytest.mark.parametrize(
    ("kind", "values", "read"),
    [
        ("number", pa.array(["1_000", " +1.5 ", ""]), [1000.0, 1.5, None]),
        ("number", pa.array(["1", None, "2"], pa.string_view()), [1.0, None, 2.0]),
        ("number", pa.array(["1", "2", None]).dictionary_encode(), [1.0, 2.0, None]),
        ("labels", pa.array([["b", "a", "b"], None, []], pa.large_list(pa.large_string())), [["a", "b"], None, []]),
        ("labels", pa.array([[3, 10], None, [3, None]], pa.list_(pa.int32(), 2)), [["10", "3"], None, ["3"]]),
    ],
)
def test_every_arrow_type_of_a_target_is_read(kind: Any, values: Any, read: list[Any]) -> None:
    raw = pa.chunked_array([values])
    assert targets.read(raw, "y", kind, pa.array(["row 1", "row 2", "row 3"])).to_pylist() == read


def test_copies_agree_whatever_the_order_of_their_labels() -> None:
    columns = {"a": [1, 1], "y": [["b", "a"], ["a", "b"]], "part": ["train"] * 2}
    roles = table.Roles(("a",), {"y": "labels"}, split="part")
    assert build(columns, roles, duplicates="drop")["target"].to_pylist() == [["a", "b"]]


def test_an_input_named_like_a_target_in_the_table_is_refused() -> None:
    columns = {"price": [1.0, 2.0], "y": ["u", "v"], "target.price": [7, 8], "part": ["train"] * 2}
    roles = table.Roles(("target.price",), {"price": "number", "y": "classes"}, split="part")
    with pytest.raises(UserError, match=r"'target.price' is a column of the program's own; rename yours"):
        build(columns, roles)


def test_a_vector_cannot_take_the_file_of_hidden_targets() -> None:
    columns = {"hidden-0": [[1.0], [2.0]], "y": ["u", "v"], "part": ["train"] * 2}
    with pytest.raises(UserError, match="vector column 'hidden-0': use letters"):
        build(columns, table.Roles(("hidden-0",), {"y": "classes"}, split="part"))


def copies() -> dict[str, Any]:
    return {
        "key": ["k1", "k2", "k3", "k4"],
        "a": [1.0, 2.0, 1.0, 2.0],
        "b": [0.0, 0.0, 0.0, 0.0],
        "label": pa.array([None, "x", "y", "x"]),
        "part": ["train"] * 4,
    }


KEYED = table.Roles(inputs=("a", "b"), targets={"label": "classes"}, key="key", split="part")


def test_copies_stay_unless_they_are_to_be_dropped() -> None:
    assert build(copies(), KEYED).num_rows == 4
    dropped = build(copies(), KEYED, duplicates="drop")
    assert dropped["id"].to_pylist() == ["k1", "k2"]
    assert dropped["target"].to_pylist() == ["y", "x"], "the first row takes the label of its copy"


def test_contradicting_copies_are_both_named() -> None:
    columns = copies() | {"label": ["y", "x", "y", "z"]}
    with pytest.raises(UserError, match=r"k2 \(row 2\) and k4 \(row 4\) have equal inputs but labels x and z"):
        build(columns, KEYED, duplicates="drop")


def test_the_number_of_dropped_copies_is_told(tmp_path: Path) -> None:
    columns = {name: values + values[:2] for name, values in rows().items()} | {"key": list(range(32))}
    write_table(project(tmp_path, ingest={"duplicates": "drop"}), columns)
    assert stage(tmp_path, "ingest")["dropped"] == 2


def replaced(**changes: Any) -> dict[str, Any]:
    return rows(10) | changes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (replaced(key=[1, 2, 3, 4, 5, 6, 7, 8, 9, 3]), r"'key': 3 stands in raw.parquet row 3 and raw.parquet row 10"),
        (replaced(key=["a"] * 9 + [None]), "key column 'key' is empty in raw.parquet row 10"),
        (replaced(part=["train"] * 9 + ["val"]), r"split column 'part' holds 'val' \(first in raw.parquet row 10\)"),
        (replaced(part=["train"] * 9 + [None]), "split column 'part' is empty in raw.parquet row 10"),
        (replaced(a=["1.5"] * 8 + ["low", "2"]), r"column 'a' holds text \(low in raw.parquet row 9\).*not there yet"),
        (replaced(a=pa.array([0] * 10, pa.date32())), "column 'a' holds date32.*neither a number nor an image"),
        (replaced(a=pa.array([["x"]] * 10)), "column 'a' holds list.*neither a number nor an image"),
        (replaced(a=pa.array([[1.0]] * 9 + [[1.0, 2.0]])), "vector column 'a' holds 2 numbers in raw.parquet row 10"),
        (replaced(label=[1.0] * 4 + [2.5] * 6), "target column 'label' holds 2.5 in raw.parquet row 5"),
        (replaced(label=pa.array([0] * 10, pa.date32())), "target column 'label' holds date32"),
        (replaced(label=pa.array([None] * 10, pa.string())), "no training row has a label in column 'label'"),
        (replaced(a=tensor(np.zeros((10, 8, 8, 3), np.uint8))), r"'a' has shape \(8, 8, 3\).*channels, height, width"),
        (
            replaced(a=tensor(np.zeros((10, 8, 8, 3), np.uint8).transpose(0, 3, 1, 2))),
            "image column 'a' is stored permuted: write a copy",
        ),
        (
            replaced(a=pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((10, 1, 8, 8), np.float32))),
            "image column 'a' holds float: images must be uint8",
        ),
        ({name: values[:0] for name, values in rows(10).items()}, "has no row"),
        (
            {name: values for name, values in rows(10).items() if name != "b"},
            "no column 'b'; it has key, a, label, part",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_table(project(tmp_path), columns)
    with pytest.raises(UserError, match=message):
        stage(tmp_path, "ingest")
    assert not (tmp_path / "data/table").exists()


def test_an_input_cannot_have_a_name_of_the_table_itself(tmp_path: Path) -> None:
    columns = {"inputs": ["content"], "target": "label"}
    write_table(project(tmp_path, data={"columns": columns}), {"content": [1, 2], "label": ["x", "y"]})
    with pytest.raises(UserError, match="'content' is a column of the program's own; rename yours"):
        stage(tmp_path, "ingest")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    project(tmp_path)
    with pytest.raises(UserError, match=r"data/raw\.parquet does not exist"):
        stage(tmp_path, "ingest")


def test_labels_seen_only_in_test_rows_are_no_classes(tmp_path: Path) -> None:
    columns = rows()
    columns["label"][4] = "maybe"
    write_table(project(tmp_path), columns)
    stage(tmp_path, "ingest")
    assert json.loads((tmp_path / "data/table/schema.json").read_text())["targets"]["label"]["names"] == ["no", "yes"]
