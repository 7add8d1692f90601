"""Promises of predictions: each row gets what its model says of it, under the name that ingest gives it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from distillery import models
from distillery.blocks import Rows
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.onnx_export import export
from distillery.predicting import Model, naming, predict
from distillery.saved import save_model
from distillery.schema import Input, Schema, Target
from distillery.sources import Options
from tests.data_fixtures import images, project, rows, stages, table_of, tensor, write_image, write_table

TWO = Schema(
    inputs={"numeric": Input(kind="numeric", shape=(2,), columns=("a", "b"))},
    targets={"label": Target(kind="classes", names=("no", "yes"))},
)
PICTURE = Schema(
    inputs={"image": Input(kind="image", shape=(3, 5, 6), columns=("image",))},
    targets={"label": Target(kind="classes", names=("cat", "dog"))},
)


def model(folder: Path, schema: Schema = TWO) -> Model:
    network = models.build(Mlp(name="mlp", hidden=(4,)), schema, seed=0)
    save_model(folder, network, [], {})
    export(network, folder / "model.onnx")
    return Model.open(folder / "model.onnx", folder / "model.json")


def predicted(
    loaded: Model, path: Path, inputs: Sequence[str] = ("a", "b"), key: str | None = None, **options: Any
) -> pa.Table:
    """Through files, as a user does it."""
    output = path.parent / "out.parquet"
    needed = []

    def choose(present: Sequence[str]) -> Sequence[str]:
        roles = naming(loaded, inputs, key, present)
        needed.append(roles)
        return list(dict.fromkeys((*loaded.columns, *roles.inputs, *filter(None, (key,)))))

    found = Rows.open(path, choose, Options(texts=tuple(filter(None, (key,))), **options))
    counted: list[int] = []
    predict(loaded, found, needed[0], output, counted.append)
    table = pq.read_table(output)
    assert sum(counted) == len(table) == found.count
    return table


def expected(loaded: Model, inputs: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    """(N, C) probabilities by ONNX Runtime and PyTorch's softmax."""
    logits = loaded.session.run(["logits"], dict(inputs))[0]
    return torch.softmax(torch.from_numpy(logits).double(), 1).numpy()


def chances(table: pa.Table, target: str = "label") -> npt.NDArray[np.float64]:
    return np.array([list(row.values()) for row in table[f"{target}_probabilities"].to_pylist()])


def test_a_row_gets_the_answer_of_onnx_runtime_under_the_id_of_ingest(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model")
    root = project(tmp_path / "project", data={"columns": {"inputs": ["a", "b"], "target": "label", "split": "part"}})
    write_table(root, rows())
    stages(root, "ingest")
    table = predicted(loaded, root / "data" / "raw.parquet")
    ingested = {row["row_origin"]: row["id"] for row in table_of(root).to_pylist()}
    assert dict(zip(table["row_origin"].to_pylist(), table["id"].to_pylist(), strict=True)) == ingested
    raw = rows()
    numeric = np.stack([raw["a"], raw["b"]], axis=1).astype(np.float32)
    answer = expected(loaded, {"numeric": numeric})
    np.testing.assert_allclose(chances(table), answer, atol=1e-6)
    assert table["label"].to_pylist() == [("no", "yes")[at] for at in answer.argmax(axis=1)]
    np.testing.assert_allclose(table["label_probability"].to_numpy(), answer.max(axis=1), atol=1e-6)


def test_parquet_and_csv_and_a_folder_of_partitions_get_the_same_answers(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model")
    table = pa.table(rows()).select(["b", "key", "a", "label"])
    (tmp_path / "parts").mkdir()
    pq.write_table(table, tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.csv.write_csv(table.slice(0, 11), tmp_path / "parts" / "1.csv")
    pyarrow.csv.write_csv(table.slice(11), tmp_path / "parts" / "2.csv")
    first, *others = [
        predicted(loaded, tmp_path / name, key="key").drop_columns("row_origin")
        for name in ("rows.parquet", "rows.csv", "parts")
    ]
    assert first["id"].to_pylist() == rows()["key"]
    assert all(other.equals(first) for other in others)


def test_a_model_that_reads_few_columns_needs_no_others(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model")
    table = pa.table(rows()).append_column("dear", pa.array(np.arange(30.0)))
    pq.write_table(table, tmp_path / "all.parquet")
    pq.write_table(table.drop_columns("dear"), tmp_path / "cheap.parquet")
    inputs = ("a", "b", "dear")
    everything, cheap = (predicted(loaded, tmp_path / f"{name}.parquet", inputs) for name in ("all", "cheap"))
    assert everything["label_probabilities"].equals(cheap["label_probabilities"])
    assert everything["id"].to_pylist() != cheap["id"].to_pylist()


def test_every_kind_of_target_is_told(tmp_path: Path) -> None:
    schema = Schema(
        inputs=TWO.inputs,
        targets={
            "kind": Target(kind="classes", names=("x", "y", "z")),
            "tags": Target(kind="labels", names=("red", "round")),
            "price": Target(kind="number", mean=5.0, deviation=2.0),
        },
    )
    loaded = model(tmp_path / "model", schema)
    columns = rows() | {"a": [None, *range(29)]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    table = predicted(loaded, tmp_path / "rows.parquet")
    numeric = np.stack([np.arange(29), columns["b"][1:]], axis=1).astype(np.float32)
    out = loaded.session.run(["logits"], {"numeric": numeric})[0]
    np.testing.assert_allclose(table["price"].to_numpy()[1:], out[:, 5], rtol=1e-6)
    tags = torch.sigmoid(torch.from_numpy(out[:, 3:5])).numpy()
    np.testing.assert_allclose(chances(table[1:], "tags"), tags, atol=1e-6)
    assert table["tags"].to_pylist()[1:] == [
        [name for name, chance in zip(("red", "round"), row, strict=True) if chance >= 0.5] for row in tags
    ]
    names = ["kind", "kind_probability", "kind_probabilities", "tags", "tags_probabilities", "price"]
    assert table.column_names == ["id", "row_origin", *names]
    assert [table[name][0].as_py() for name in names] == [None] * 6  # where an input is missing


def test_pictures_are_predicted_as_ingest_reads_them(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model", PICTURE)
    for number in range(6):
        write_image(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png", seed=number)
    table = predicted(loaded, tmp_path / "pets", ("image",))
    root = project(
        tmp_path / "project",
        path=str(tmp_path / "pets"),
        data={"source": "images", "columns": {"inputs": ["image"], "target": "label"}},
    )
    stages(root, "ingest")
    ingested = table_of(root)
    assert set(table["id"].to_pylist()) == set(ingested["id"].to_pylist())
    pixels = {row["id"]: np.array(row["image"], np.uint8).reshape(3, 5, 6) for row in ingested.to_pylist()}
    answer = expected(loaded, {"image": np.stack([pixels[name] for name in table["id"].to_pylist()])})
    np.testing.assert_allclose(chances(table), answer, atol=1e-6)
    by_file = predicted(loaded, tmp_path / "pets", ("image",), key="file")
    assert by_file["id"].to_pylist() == ["1.png", "3.png", "5.png", "0.png", "2.png", "4.png"]
    write_image(tmp_path / "pets" / "new.png", size=(7, 5))
    with pytest.raises(UserError, match=r"new\.png is 5x7.*5x6"):
        predicted(loaded, tmp_path / "pets", ("image",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"b": None}, r"has no column 'b'; it has key, a, label, part"),
        ({"b": ["x"] * 30}, r"column 'b' holds text \(x in rows\.parquet row 1\)"),
        ({"b": images(30)}, r"column 'b' of .*rows\.parquet holds images of 1 x 4 x 4.*the model reads numbers"),
    ],
)
def test_wrong_columns_are_told_before_anything_is_written(tmp_path: Path, change: Any, told: str) -> None:
    loaded = model(tmp_path / "model")
    columns = {name: column for name, column in (rows() | change).items() if column is not None}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=told):
        predicted(loaded, tmp_path / "rows.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "rows.parquet"}


def test_a_picture_of_another_size_is_told(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model", PICTURE)
    pq.write_table(pa.table({"image": tensor(np.zeros((2, 3, 9, 6), np.uint8))}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"holds images of 3 x 9 x 6 .* the model reads images of 3 x 5 x 6"):
        predicted(loaded, tmp_path / "rows.parquet", ("image",))


def test_a_late_word_among_the_numbers_of_a_csv_is_told_with_its_column(tmp_path: Path) -> None:
    loaded = model(tmp_path / "model")
    lines = ["a,b", *(f"{number},1" for number in range(1_200_000)), "much,1"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"column 'a' of .*rows\.csv must hold numbers.*'much'"):
        predicted(loaded, tmp_path / "rows.csv")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("content", [b"", b"no Parquet at all"])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.parquet cannot be read"):
        predicted(model(tmp_path / "model"), tmp_path / "rows.parquet")


def test_names_that_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("key,a,b\n007,1,2\n7,1.5,2\n")
    table = predicted(model(tmp_path / "model"), tmp_path / "rows.csv", key="key")
    assert table["id"].to_pylist() == ["007", "7"]


PEAK = """
import resource, sys
from pathlib import Path
from distillery.blocks import Rows
from distillery.predicting import Model, naming, predict
from distillery.sources import Options
folder, file = Path(sys.argv[1]), Path(sys.argv[2])
model = Model.open(folder / "model.onnx", folder / "model.json")
rows = Rows.open(file, lambda present: ["a", "b"], Options())
predict(model, rows, naming(model, ("a", "b"), None, rows.names), file.with_suffix(".out.parquet"), lambda rows: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str) -> None:
    model(tmp_path / "model")

    def peak(count: int) -> int:
        file = tmp_path / f"{count}.{suffix}"
        random = np.random.default_rng(0)
        table = pa.table({"a": random.normal(size=count), "b": random.normal(size=count)})
        write = pq.write_table if suffix == "parquet" else pyarrow.csv.write_csv
        write(table, file)
        command = [sys.executable, "-c", PEAK, str(tmp_path / "model"), str(file)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(1_000_000) < peak(100_000) + 60
