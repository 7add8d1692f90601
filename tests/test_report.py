"""The report loads nothing, repeats byte for byte and escapes what users write; the model card's code runs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distillery.errors import UserError
from tasks.reporting import charts, wording
from tasks.results import Evaluation
from tests.small_project import copied, run

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "$x$ & $y$",
    "`tick` *star* _line_",
    "长 ü",
    '"quoted"',
    "6",
    "7",
    "8",
    "9",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reported; only read."""
    return copied(tmp_path_factory.mktemp("reported"), "export", "evaluate", "report")


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "reports/report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags in balance, what is loaded, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data", "srcset", "action"} and value:
                (self.references if value.startswith("#") else self.loaded).append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.loaded == []
    assert "script" not in parsed.tags and "link" not in parsed.tags and "img" not in parsed.tags
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert len(parsed.ids) == len(set(parsed.ids)), "two drawings share an id"
    assert {reference.removeprefix("#") for reference in parsed.references} <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(parsed.ids)


def test_the_page_tells_what_was_measured(project: Path, page: str) -> None:
    evaluation = Evaluation.read(project / "reports/evaluation.json")
    text = " ".join(Page(page).text.split())
    assert wording.headline(evaluation) in text
    assert wording.explanation(evaluation) in text
    assert evaluation.shipped.because in text
    for model in evaluation.models.values():
        assert wording.percent(model.test.only.accuracy.value) in text
        assert wording.size(model.onnx.size) in text
        assert model.weights_sha256 in text
    assert "60 training rows kept their label" in text
    assert "expectations of the table hold" in text
    assert "Soft targets of wide" in text
    assert page.count("<svg") == 7


def test_no_date_and_no_path_is_in_it_and_it_repeats(tmp_path: Path, project: Path, page: str) -> None:
    root = copied(tmp_path, "export", "evaluate", "report")
    run(root, "report")
    assert (root / "reports/report.html").read_text(encoding="utf-8") == page
    assert (root / "reports/model_card.md").read_bytes() == (project / "reports/model_card.md").read_bytes()
    assert not re.search(r"\b20\d\d-\d\d-\d\d", page)
    assert str(root) not in page and str(project) not in page


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    root = copied(tmp_path, "export", "evaluate")
    file = root / "reports/evaluation.json"
    text = file.read_text(encoding="utf-8").replace('"label"', '"<b>label</b>"')
    document = json.loads(text)
    document["targets"]["<b>label</b>"]["names"] = HOSTILE
    file.write_text(json.dumps(document), encoding="utf-8")
    validation = root / "reports/validation.json"
    document = json.loads(validation.read_text())
    document["expectations"][0]["arguments"] = {"column": "<img src=x onerror=alert(1)>"}
    validation.write_text(json.dumps(document))
    run(root, "report")
    page = (root / "reports/report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert "script" not in parsed.tags and "img" not in parsed.tags and "b" in parsed.tags
    assert "<b>label" not in page
    assert "<img src=x onerror=alert(1)>" in parsed.text
    for name in HOSTILE:
        assert name in parsed.text
    card = (root / "reports/model_card.md").read_text(encoding="utf-8")
    assert "<script>" not in card.replace(r"\<script\>", "")


def test_the_model_cards_code_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (project / "reports/model_card.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(project)
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert names["logits"].shape == (2, 10)
    assert names["classes"].shape == (2,)


def test_the_model_cards_tables_are_tables(project: Path) -> None:
    lines = (project / "reports/model_card.md").read_text(encoding="utf-8").splitlines()
    tables = [index for index, line in enumerate(lines) if re.fullmatch(r"\|( -{3}:? \|)+", line)]
    assert len(tables) == 2
    for rule in tables:
        columns = lines[rule].count("|")
        row = rule - 1
        assert lines[row - 1] == "", "a table needs an empty line before it"
        while row < len(lines) and lines[row].startswith("|"):
            assert lines[row].count("|") == columns
            row += 1


def test_many_classes_leave_the_matrix_out(project: Path) -> None:
    evaluation = Evaluation.read(project / "reports/evaluation.json")
    names = [f"class {number}" for number in range(100)]
    matrix = np.eye(100, dtype=int).tolist()
    scores = evaluation.student.test.only.model_copy(update={"confusion": matrix})
    assert charts.confusion(scores, names, "distilled", "label") == ""


def test_a_missing_report_of_another_stage_is_told(tmp_path: Path) -> None:
    root = copied(tmp_path, "export", "evaluate")
    (root / "reports/validation.json").unlink()
    with pytest.raises(UserError, match=r"validation\.json is missing; run `python -m flows run` first"):
        run(root, "report")
    (root / "reports/validation.json").write_text("{")
    with pytest.raises(UserError, match=r"validation\.json is damaged"):
        run(root, "report")
    assert not (root / "reports/report.html").exists()


def headline_for(evaluation: Evaluation, low: float, high: float) -> str:
    """The headline where the interval of the gain is this."""
    comparisons = [
        found.model_copy(update={"difference": found.difference.model_copy(update={"low": low, "high": high})})
        for found in evaluation.comparisons
    ]
    return wording.headline(evaluation.model_copy(update={"comparisons": comparisons}))


def test_the_headline_claims_no_more_than_the_interval(project: Path) -> None:
    evaluation = Evaluation.read(project / "reports/evaluation.json")
    assert headline_for(evaluation, 0.01, 0.05) == "Distillation paid off"
    assert headline_for(evaluation, -0.05, -0.01) == "Distillation did harm"
    assert headline_for(evaluation, 0.0, 0.04) == "It is open whether distillation paid off"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.percent(0.8194), "81.9 %"),
        (wording.points(0.0004), "0.0"),
        (wording.points(-0.0004), "0.0"),
        (wording.points(0.021), "+2.1"),
        (wording.points(-0.021), "-2.1"),
        (wording.size(850), "850 B"),
        (wording.size(24_562), "24.6 kB"),
        (wording.size(1_242_561), "1.24 MB"),
        (wording.size(2_500_000_000_000), "2,500 GB"),
        (wording.milliseconds(0.01538), "0.0154 ms"),
        (wording.milliseconds(12_345), "12,345 ms"),
        (wording.rate(3_038), "3,040"),
        (wording.rate(85_263), "85.3k"),
        (wording.rate(999_900), "1M"),
        (wording.p_value(0.0004), "p < 0.001"),
        (wording.times(100, 5, "smaller", "larger"), "20x smaller"),
        (wording.times(5, 6.5, "faster", "slower"), "1.3x slower"),
        (wording.times(100, 98, "faster", "slower"), "the same"),
    ],
)
def test_figures_read_well(said: str, expected: str) -> None:
    assert said == expected
