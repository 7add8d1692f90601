"""validate: the gate stops what is wrong, names the rows, and leaves nothing behind."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.errors import UserError
from tests.data_fixtures import images, project, rows, stage, stages, tensor, write_table

IMAGE_COLUMNS = {"inputs": ["a", "b", "image"], "target": "label", "key": "key", "split": "part"}


def failed(root: Path, columns: Mapping[str, Any], **sections: Any) -> list[dict[str, Any]]:
    """The failing expectations of a table that the gate stops."""
    write_table(project(root, **sections), columns)
    stage(root, "ingest")
    with pytest.raises(UserError, match="expectations failed"):
        stage(root, "validate")
    assert not (root / "reports/validation.json").exists(), "a failed gate publishes nothing"
    report = json.loads((root / "reports/failed/validation.json").read_text())
    assert not report["success"]
    assert (root / "reports/data_docs/data.html").exists()
    return [item for item in report["expectations"] if not item["success"]]


def changed(column: str, changes: Mapping[int, Any]) -> dict[str, Any]:
    """A sound table but for some values of one column."""
    columns = rows()
    for row, value in changes.items():
        columns[column][row] = value
    return columns


def only(failures: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """The one failure, about this column."""
    assert [item["arguments"].get("column") for item in failures] == [column]
    return failures[0]


def test_sound_data_pass_and_the_report_is_the_same_again(tmp_path: Path) -> None:
    project(tmp_path, data={"columns": IMAGE_COLUMNS})
    write_table(tmp_path, rows() | {"image": images(30)})
    stages(tmp_path, "ingest", "validate")
    first = (tmp_path / "reports/validation.json").read_bytes()
    stage(tmp_path, "validate")
    assert (tmp_path / "reports/validation.json").read_bytes() == first
    report = json.loads(first)
    assert report["success"]
    assert report["splits"]["train"] == {"rows": 18, "labelled": 18, "classes": {"no": 9, "yes": 9}}
    assert {item["type"] for item in report["expectations"]} >= {
        "expect_table_columns_to_match_set",
        "expect_column_values_to_be_of_type",
        "expect_column_values_to_be_unique",
        "expect_column_values_to_be_in_set",
    }


def test_the_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    failed(tmp_path, changed("a", {7: math.nan}))
    index = (tmp_path / "reports/data_docs/index.html").read_text()
    page = (tmp_path / "reports/data_docs/data.html").read_text()
    assert 'href="data.html"' in index
    assert "failed" in index
    assert "k7" in page
    for text in (index, page):
        assert "<script" not in text
        assert "<link" not in text
        assert "src=" not in text
        assert "http" not in text.replace("http-equiv", "")


def test_missing_and_nan_numbers_are_named(tmp_path: Path) -> None:
    failure = only(failed(tmp_path, changed("a", {7: math.nan, 12: None})), "numeric.missing")
    assert failure["failing_ids"] == ["k7", "k12"]
    assert failure["failing_count"] == 2
    assert failure["examples"][0] == {"id": "k7", "row_origin": "raw.parquet row 8", "value": 1}
    assert "a (2 rows)" in failure["message"]


def test_infinite_numbers_are_named(tmp_path: Path) -> None:
    failure = only(failed(tmp_path, changed("b", {4: math.inf, 5: 1e300})), "numeric.infinite")
    assert sorted(failure["failing_ids"]) == ["k4", "k5"]
    assert "b (2 rows)" in failure["message"]


def test_a_label_outside_the_set_is_named(tmp_path: Path) -> None:
    failure = only(failed(tmp_path, changed("label", {7: "ja"}), validation={"classes": ["no", "yes"]}), "target")
    assert failure["failing_ids"] == ["k7"]
    assert failure["examples"][0]["value"] == "ja"


def test_a_label_seen_in_no_training_row_is_outside_the_set(tmp_path: Path) -> None:
    assert only(failed(tmp_path, changed("label", {4: "new"})), "target")["failing_ids"] == ["k4"]


def test_a_class_without_training_rows(tmp_path: Path) -> None:
    failure = only(failed(tmp_path, rows(), validation={"classes": ["no", "yes", "maybe"]}), "train.target")
    assert failure["observed"] == {"missing": ["maybe"]}


def test_a_class_with_one_row_is_named(tmp_path: Path) -> None:
    failure = only(failed(tmp_path, changed("label", {6: "rare"})), "class.rows")
    assert failure["failing_ids"] == ["k6"]
    assert "min_rows_per_class" in failure["message"]


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    columns = rows() | {"label": ["yes"] * 30}
    assert only(failed(tmp_path, columns), "train.target")["observed"] == 1


def test_a_split_without_labelled_rows(tmp_path: Path) -> None:
    columns = rows()
    columns["label"] = [
        None if part == "validation" else label for part, label in zip(columns["part"], columns["label"], strict=True)
    ]
    assert only(failed(tmp_path, columns), "labelled.split")["observed"] == {"missing": ["validation"]}


def test_duplicated_rows_are_named(tmp_path: Path) -> None:
    columns = changed("a", {6: 5.0})
    columns["b"][6] = columns["b"][5]
    assert only(failed(tmp_path, columns), "content")["failing_ids"] == ["k5", "k6"]


def test_a_row_in_two_splits_is_named(tmp_path: Path) -> None:
    columns = changed("a", {9: 5.0})
    columns["b"][9] = columns["b"][5]
    failures = failed(tmp_path, columns)
    assert [item["arguments"]["column"] for item in failures] == ["content", "content.splits"]
    assert sorted(failures[1]["failing_ids"]) == ["k5", "k9"]


def test_a_group_in_two_splits_is_named(tmp_path: Path) -> None:
    columns = rows() | {"patient": [f"p{number // 4}" if number < 4 else f"q{number}" for number in range(30)]}
    roles = {"inputs": ["a", "b"], "target": "label", "key": "key", "split": "part", "group": "patient"}
    failure = only(failed(tmp_path, columns, data={"columns": roles}), "group.splits")
    assert sorted(failure["failing_ids"]) == ["k0", "k1", "k2", "k3"]


def test_a_constant_image_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    pixels[11] = 200
    columns = rows() | {"image": tensor(pixels)}
    failure = only(failed(tmp_path, columns, data={"columns": IMAGE_COLUMNS}), "image.contrast")
    assert failure["failing_ids"] == ["k11"]


def expectation(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"expectations": [{"type": kind, "arguments": arguments}]}


def test_an_expectation_of_ones_own_names_its_rows(tmp_path: Path) -> None:
    validation = expectation("expect_column_values_to_be_between", column="a", max_value=27)
    failure = only(failed(tmp_path, rows(), validation=validation), "a")
    # Test rows stand behind the others in the table.
    assert failure["failing_ids"] == ["k28", "k29"]
    assert failure["examples"][0]["value"] == 28.0


def test_an_expectation_may_use_the_users_name_of_the_target(tmp_path: Path) -> None:
    validation = expectation("expect_column_values_to_match_regex", column="label", regex="^yes$", mostly=0.4)
    write_table(project(tmp_path, validation=validation), rows())
    stages(tmp_path, "ingest", "validate")
    report = json.loads((tmp_path / "reports/validation.json").read_text())
    assert any(
        each["type"] == "expect_column_values_to_match_regex" and each["success"] for each in report["expectations"]
    )


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            expectation("expect_column_values_to_be_betwen", column="a"),
            r"validation\.expectations\[0\].*no expectation.*did you mean expect_column_values_to_be_between\?",
        ),
        (
            expectation("expect_column_values_to_be_between", column="a", maximum=3),
            r"validation\.expectations\[0\]: expect_column_values_to_be_between.*maximum",
        ),
        (
            expectation("expect_column_values_to_be_between", column="height", max_value=3),
            r"validation\.expectations\[0\].*height.*columns: id, ",
        ),
    ],
)
def test_an_expectation_that_is_none(validation: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_table(project(tmp_path, validation=validation), rows())
    stage(tmp_path, "ingest")
    with pytest.raises(UserError, match=message):
        stage(tmp_path, "validate")


def test_a_failure_is_shown_in_the_terminal_and_forgotten_when_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    failed(tmp_path, changed("a", {7: math.nan}))
    shown = capsys.readouterr().err
    assert "k7 (raw.parquet row 8)" in shown
    assert "missing or NaN values in a (1 rows)" in shown
    assert "Calculating Metrics" not in shown, "progress bars of Great Expectations are off"
    write_table(tmp_path, rows())
    stages(tmp_path, "ingest", "validate")
    assert not (tmp_path / "reports/failed/validation.json").exists()


def test_a_number_beyond_what_training_reads_is_named(tmp_path: Path) -> None:
    columns = {"inputs": ["a", "b"], "target": {"price": "number"}, "key": "key", "split": "part"}
    table = rows() | {"price": [1e300 if number == 5 else float(number) for number in range(30)]}
    distill = {"teachers": ["small"], "objectives": [{"name": "mse_teacher"}], "training": {}}
    failure = only(failed(tmp_path, table, data={"columns": columns}, distill=distill), "infinite.target")
    assert failure["failing_ids"] == ["k5"]


def test_a_label_that_no_training_row_has_is_named(tmp_path: Path) -> None:
    columns = {"inputs": ["a", "b"], "target": {"tags": "labels"}, "key": "key", "split": "part"}
    table = rows() | {"tags": [["x", "y"][: number % 3] for number in range(29)] + [["z"]]}
    distill = {"teachers": ["small"], "objectives": [{"name": "multilabel_kd"}], "training": {}}
    failure = only(failed(tmp_path, table, data={"columns": columns}, distill=distill), "unknown.labels")
    assert failure["failing_ids"] == ["k29"]


def test_a_quantity_that_was_read_as_classes_is_told(tmp_path: Path) -> None:
    failures = failed(tmp_path, rows() | {"label": [str(number / 7) for number in range(30)]})
    assert all("to predict a quantity say `target: {label: number}`" in item["message"] for item in failures)


def test_an_input_cannot_have_a_name_of_the_checks(tmp_path: Path) -> None:
    columns = {"inputs": ["a", "class.rows"], "target": "label", "key": "key", "split": "part"}
    write_table(project(tmp_path, data={"columns": columns}), rows() | {"class.rows": [1.0] * 30})
    stage(tmp_path, "ingest")
    with pytest.raises(UserError, match=r"'class.rows' is a column of the program's own; rename yours"):
        stage(tmp_path, "validate")
