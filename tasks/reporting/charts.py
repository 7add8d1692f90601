"""The report's drawings as inline SVG.

Text stays text and takes the page's font; colours are the page's CSS variables, so that one drawing serves light and
dark. The same figures give the same bytes.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.reporting.wording import METRIC, digits
from tasks.results import ClassScores, Evaluation, NumberScores, Role, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib can draw with -> what the page defines.
_VARIABLES = {
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#010206": "var(--accent)",
    "#010207": "var(--on-accent)",
    "#010208": "var(--teacher)",
    "#010209": "var(--baseline)",
    "#01020a": "var(--distilled)",
    "#01020b": "var(--finetuned)",
    "#01020c": "var(--paper)",
}
INK, MUTED, LINE, ACCENT, ON_ACCENT, TEACHER, BASELINE, DISTILLED, FINETUNED, PAPER = _VARIABLES
ROLE = {"teacher": TEACHER, "baseline": BASELINE, "distilled": DISTILLED, "finetuned": FINETUNED}
# Points to the right of the true place.
_ASIDE = {"teacher": 0.0, "baseline": -7.0, "distilled": 0.0, "finetuned": 7.0}
WIDTH = 4.9
MOST_CLASSES = 40
NUMBERED_CLASSES = 20

Curve = Sequence[tuple[int, float]]


def curves(lines: Mapping[str, Curve], evaluation: Evaluation) -> str:
    """The deciding metric on the validation split by epoch, the picked epoch marked.

    Args:
        lines: candidate -> (epoch, metric) of every epoch.
        evaluation: roles and picked epochs.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(3.85)
    for name, line in lines.items():
        if not line:
            continue
        measured = evaluation.models[name]
        epochs, values = zip(*line, strict=True)
        axes.plot(epochs, values, color=ROLE[measured.role], linewidth=1.8, marker="o" if len(line) == 1 else None)
        picked = [(epoch, value) for epoch, value in line if epoch == measured.best_epoch]
        if picked:
            axes.plot(*picked[0], "o", color=ROLE[measured.role], markersize=6, markeredgecolor=PAPER)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(f"Validation {METRIC[evaluation.primary]}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent(axes.yaxis)
    return _svg(figure, "curves", f"Validation {METRIC[evaluation.primary]} of each model by epoch")


def intervals(evaluation: Evaluation) -> str:
    """The deciding metric on the test split with its interval, one line a model."""
    metric = METRIC[evaluation.primary]
    rows = []
    for name, measured in evaluation.models.items():
        found = measured.test.figure(evaluation.primary)
        rows.append((title(name), found.value, found.low, found.high, ROLE[measured.role]))
    label = f"Test {metric}, {100 * evaluation.confidence:g} % interval"
    return beside(rows, "intervals", label, f"Test {metric} of each model with its interval")


def beside(rows: Sequence[tuple[str, float, float, float, str]], name: str, label: str, told: str) -> str:
    """Shares with their intervals, one below the other.

    Args:
        rows: title, value, low, high and colour of each.
        name: of the drawing.
        label: of the axis.
        told: to those who cannot see it.
    """
    figure, axes = _axes(0.8 + 0.58 * len(rows))
    for y, (_, value, low, high, colour) in enumerate(reversed(rows)):
        axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(value, y, "o", color=colour, markersize=7.5, markeredgecolor=PAPER)
        axes.annotate(f"{100 * value:.1f}", (value, y), (0, 8), textcoords="offset points", ha="center", color=INK)
    axes.set_yticks(range(len(rows)), [_short(row[0]) for row in reversed(rows)])
    axes.set_ylim(-0.5, len(rows) - 0.35)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    _percent(axes.xaxis)
    return _svg(figure, name, told)


def confusion(scores: ClassScores, classes: Sequence[str], name: str, target: str) -> str:
    """Shares of each true class by predicted class; the diagonal is right."""
    if len(classes) > MOST_CLASSES:
        return ""
    figure, axes = _axes(WIDTH * 0.86)
    from matplotlib.patches import Rectangle

    for actual, row in enumerate(scores.confusion):
        total = sum(row)
        for predicted, rows in enumerate(row):
            if not rows:
                continue
            share = rows / total
            colour = ACCENT if actual == predicted else BASELINE
            # Few errors must still be seen: the scale begins where a cell differs from paper.
            axes.add_patch(
                Rectangle(
                    (predicted - 0.47, actual - 0.47),
                    0.94,
                    0.94,
                    facecolor=colour,
                    alpha=0.12 + 0.88 * share,
                    linewidth=0,
                )
            )
            if len(classes) <= NUMBERED_CLASSES:
                axes.text(
                    predicted,
                    actual,
                    str(rows),
                    ha="center",
                    va="center_baseline",
                    fontsize=8.5 if len(classes) <= 12 else 6.5,
                    color=ON_ACCENT if share > 0.5 else INK,
                )
    labels = [_short(label, 10) for label in classes]
    tilted = max(map(len, labels)) > 2
    small = 9 if len(classes) <= NUMBERED_CLASSES else 6
    axes.set_xticks(range(len(classes)), labels, rotation=60 if tilted else 0, ha="right" if tilted else "center")
    axes.set_yticks(range(len(classes)), labels)
    axes.tick_params(labelsize=small)
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("Predicted")
    axes.set_ylabel("Actual")
    return _svg(figure, f"confusion-{target}-{name}", f"Confusion matrix of {title(name)} on the test split")


def reliability(evaluation: Evaluation, names: Sequence[str], target: str) -> str:
    """How often models are right against how sure they are."""
    figure, axes = _axes(3.6)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for name in names:
        measured = evaluation.models[name]
        scores = measured.test.targets[target]
        assert isinstance(scores, ClassScores)
        bins = [found for found in scores.reliability if found.rows]
        total = sum(found.rows for found in bins)
        x = [found.confidence or 0.0 for found in bins]
        y = [found.accuracy or 0.0 for found in bins]
        axes.plot(x, y, color=ROLE[measured.role], linewidth=1.4, alpha=0.8)
        sizes = [12 + 150 * (found.rows / total) for found in bins]
        axes.scatter(x, y, s=sizes, color=ROLE[measured.role], edgecolors=PAPER, linewidths=0.8, zorder=3)
    axes.set_xlim(-0.02, 1.03)
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("Confidence")
    axes.set_ylabel("Accuracy")
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    return _svg(figure, f"reliability-{target}", "Accuracy against confidence")


def answers(scores: NumberScores, role: Role, name: str, target: str) -> str:
    """What a model answers against the truth; on the dashed line it is right."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = _axes(WIDTH * 0.8)
    truth, said = zip(*scores.points, strict=True)
    low, high = min(*truth, *said), max(*truth, *said)
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.scatter(truth, said, s=22, color=ROLE[role], alpha=0.55, edgecolors=PAPER, linewidths=0.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
    axes.set_xlabel(_short(f"{target}, truth"))
    axes.set_ylabel("Answer")
    return _svg(figure, f"answers-{target}-{name}", f"Answers of {title(name)} against the truth on the test split")


def tradeoff(evaluation: Evaluation, what: str) -> str:
    """The deciding metric on the test split against `latency` or `size`, ONNX files; hollow marks are int8."""
    from matplotlib.ticker import FuncFormatter
    from matplotlib.transforms import ScaledTranslation

    from tasks.reporting.wording import milliseconds, size

    figure, axes = _axes(3.0)
    axes.set_xscale("log")
    for measured in evaluation.models.values():
        for deployed, filled in ((measured.onnx, True), (measured.int8, False)):
            if deployed is None:
                continue
            x = deployed.latency_ms if what == "latency" else float(deployed.size)
            found = deployed.test.figure(evaluation.primary)
            colour = ROLE[measured.role]
            # Students share a size, and nearly a latency: side by side, or one hides the other.
            aside = ScaledTranslation(_ASIDE[measured.role] / 72, 0, figure.dpi_scale_trans)
            place = axes.transData + aside
            axes.plot([x, x], [found.low, found.high], color=colour, linewidth=1.4, alpha=0.55, transform=place)
            axes.plot(
                x,
                found.value,
                "o",
                color=colour if filled else PAPER,
                markeredgecolor=PAPER if filled else colour,
                markersize=8.5,
                markeredgewidth=0.8 if filled else 1.8,
                transform=place,
            )
            axes.update_datalim([(x, found.low), (x, found.high)])
    axes.autoscale_view()
    axes.margins(x=0.12)
    _decade(axes)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: milliseconds(value) if what == "latency" else size(value))
    )
    axes.minorticks_off()
    axes.set_xlabel("Latency of one row, one thread" if what == "latency" else "ONNX file")
    axes.set_ylabel(f"Test {METRIC[evaluation.primary]}")
    _percent(axes.yaxis)
    return _svg(figure, f"tradeoff-{what}", f"Test {METRIC[evaluation.primary]} against {what}")


def _decade(axes: "Axes") -> None:
    """At least one whole power of ten on a logarithmic axis, with marks in between where that is all."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_xlim()
    if high / low < 10:
        middle = (low * high) ** 0.5
        low, high = middle / 10**0.5, middle * 10**0.5
        axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))


def _percent(axis: object) -> None:
    """Ticks as percentages."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    assert isinstance(axis, Axis)
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _short(text: str, length: int = 22) -> str:
    """Long names cut, so that they leave room for the drawing; a dollar is a dollar and begins no formula."""
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return cut.replace("$", r"\$")


def _axes(height: float) -> tuple["Figure", "Axes"]:
    """One set of axes, with the page's lines; no global state of matplotlib is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"bottom", "left"})
        spine.set_color(LINE)
    axes.grid(visible=True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, pad=5, labelsize=9)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def _svg(figure: "Figure", name: str, label: str) -> str:
    """The drawing as an element for the page: no header, no date, no fixed size, no fonts or colours of its own."""
    from matplotlib import rc_context

    stream = io.StringIO()
    # Ids of clip paths and marks follow the salt: two drawings on a page must not share any.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The page's fonts draw the text: what matplotlib's own lack does not matter.
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: (?:[\w-]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    inner = text[text.index(">") + 1 :]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} {view.group()} role="img" aria-label="{html.escape(label)}">{inner}'


def measured_names(evaluation: Evaluation) -> list[str]:
    """The models worth a closer look: the teacher, the student alone, the one that ships."""
    teacher = [] if evaluation.teacher is None else [evaluation.teacher]
    return list(dict.fromkeys([*teacher, "baseline", evaluation.shipped.candidate]))


def worst_confusions(scores: ClassScores, classes: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: (actual, predicted, rows)."""
    found = [
        (rows, actual, predicted)
        for actual, row in enumerate(scores.confusion)
        for predicted, rows in enumerate(row)
        if rows and actual != predicted
    ]
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return [(classes[actual], classes[predicted], rows) for rows, actual, predicted in found[:most]]
