"""One self-contained page and a model card: what was made, whether it paid, and how to use it."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery.schema import MAIN, Schema
from tasks.reporting import charts, wording
from tasks.results import EVALUATION, SHIPPED, ClassScores, Evaluation, NumberScores, Shipped, title
from tasks.stage import Stage, Summary

if TYPE_CHECKING:
    from jinja2 import Environment

    from tasks.params import Params

TEMPLATES = Path(__file__).parent / "reporting" / "pages"


def run(stage: Stage) -> Summary:
    """Writes `reports/report.html` and `reports/model_card.md`; the same inputs give the same bytes."""
    evaluation = Evaluation.read(stage.path(EVALUATION))
    shipped = Shipped.read(stage.path(SHIPPED))
    validation = _json(stage.path("reports/validation.json"))
    soft_targets = {key: _json(stage.path(f"reports/soft_targets/{key}.json")) for key in stage.params.distill.teachers}
    curves = _curves(stage.path("reports/plots/curves.csv"), evaluation)
    facts: dict[str, Any] = {
        "evaluation": evaluation,
        "shipped": shipped,
        "student": evaluation.student,
        "teacher": None if evaluation.teacher is None else evaluation.models[evaluation.teacher],
        "validation": validation,
        "soft_targets": soft_targets,
        "params": stage.params,
        "wording": wording,
        "title": title,
        "metrics": MAIN,
    }
    page = templates(html=True).get_template("report.html.jinja")
    stage.output("reports/report.html").write_text(
        page.render(
            **facts,
            charts=_charts(evaluation, curves),
            shown=charts.measured_names(evaluation),
            worst=_worst(evaluation, 10),
            parameters=_yaml(stage.params),
        ),
        encoding="utf-8",
    )
    card = templates(html=False).get_template("model_card.md.jinja")
    schema = Schema(inputs=evaluation.inputs, targets=evaluation.targets)
    parts = {name: schema.part(name) for name in evaluation.targets}
    text = card.render(**facts, worst=_worst(evaluation, 3), parts=parts, outputs=schema.outputs)
    stage.output("reports/model_card.md").write_text(text, encoding="utf-8")
    return {"verdict": wording.headline(evaluation), "shipped": shipped.candidate}


def templates(*, html: bool) -> "Environment":
    """Templates; what users write (class names, parameters) is escaped in HTML and in Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Markdown has an escaping of its own, the filter `plain`.
        autoescape=html,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in (
        "percent",
        "span",
        "points",
        "points_span",
        "p_value",
        "number",
        "digits",
        "capitalised",
        "count",
        "size",
        "milliseconds",
        "rate",
    ):
        environment.filters[name] = getattr(wording, name)
    environment.filters["plain"] = _plain
    environment.filters["observed"] = _observed
    return environment


def _plain(text: object) -> str:
    """User text inside Markdown: one line, and no character that begins markup."""
    line = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>|#$~&" else sign for sign in line)


def _observed(value: Any) -> str:
    """What an expectation asked for or saw, short enough for a cell."""
    if value is None:
        return "\u2013"
    if isinstance(value, dict) and {"failing", "of"} <= value.keys():
        return f"{value['failing']:,} of {value['of']:,} rows fail"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _charts(evaluation: Evaluation, curves: dict[str, charts.Curve]) -> dict[str, Any]:
    """Every drawing of the page, marked as safe: they are made here, their texts escaped by matplotlib."""
    from markupsafe import Markup

    shown = charts.measured_names(evaluation)
    drawings = {
        "intervals": charts.intervals(evaluation),
        "curves": charts.curves(curves, evaluation),
        "latency": charts.tradeoff(evaluation, "latency"),
        "size": charts.tradeoff(evaluation, "size"),
    }
    for target, spec in evaluation.targets.items():
        if spec.kind == "classes":
            drawings[f"reliability-{target}"] = charts.reliability(evaluation, shown, target)
        for name in shown:
            found = evaluation.models[name].test.targets[target]
            if isinstance(found, ClassScores):
                drawings[f"confusion-{target}-{name}"] = charts.confusion(found, spec.names, name, target)
            elif isinstance(found, NumberScores):
                drawings[f"answers-{target}-{name}"] = charts.answers(found, evaluation.models[name].role, name, target)
    return {name: Markup(drawing) for name, drawing in drawings.items()}  # noqa: S704


def _curves(file: Path, evaluation: Evaluation) -> dict[str, charts.Curve]:
    """Candidate -> (epoch, the primary metric on the validation split), in the order of the models."""
    lines: dict[str, list[tuple[int, float]]] = {name: [] for name in evaluation.models}
    by_title = {title(name): name for name in lines}
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["model"] in by_title:
                lines[by_title[row["model"]]].append((int(row["epoch"]), float(row[evaluation.primary])))
    return dict(lines)


def _worst(evaluation: Evaluation, most: int) -> dict[str, list[tuple[str, str, int]]]:
    """Target with classes -> the shipped student's most frequent mistakes."""
    return {
        name: charts.worst_confusions(found, evaluation.targets[name].names, most)
        for name, found in evaluation.student.test.targets.items()
        if isinstance(found, ClassScores)
    }


def _json(file: Path) -> dict[str, Any]:
    """A report of another stage.

    Raises:
        UserError: where it is missing or damaged.
    """
    from distillery.errors import UserError

    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; run `python -m flows run` first") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); delete it and run again") from None
    return document


def _yaml(params: "Params") -> str:
    """All parameters, defaults included, as they were used."""
    import yaml

    text: str = yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    return text
