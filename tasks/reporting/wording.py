"""Figures as people read them; shared by the terminal's table, the report and the model card."""

from typing import TYPE_CHECKING

from distillery.schema import Kind, Target
from tasks.results import Ablation, ClassScores, Comparison, Estimate, Evaluation, LabelScores, TargetScores

if TYPE_CHECKING:
    from tasks.params import Params

METRIC = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "r2": "R²",
    "score": "mean score",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share, 0.8194 as `81.9 %`; a dash where there is none."""
    return "\u2013" if value is None else f"{100 * value:.{digits}f} %"


def span(estimate: Estimate, digits: int = 1) -> str:
    """The interval of a share, `79.5 to 84.1`."""
    return f"{100 * estimate.low:.{digits}f} to {100 * estimate.high:.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """A difference of shares in percentage points with its sign; never `-0.0`."""
    rounded = round(100 * value, digits) or 0.0
    return f"{rounded:+.{digits}f}" if rounded else f"{rounded:.{digits}f}"


def points_span(estimate: Estimate, digits: int = 1) -> str:
    """The interval of a difference, `+0.4 to +5.6`."""
    return f"{points(estimate.low, digits)} to {points(estimate.high, digits)}"


def p_value(value: float) -> str:
    """`p = 0.035`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def number(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def digits(value: float) -> str:
    """A quantity with four digits, `-12.35`."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def capitalised(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def count(value: float | None) -> str:
    """`308,074`; a dash where nobody knows."""
    return "\u2013" if value is None else f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes as `24.6 kB`, `1.24 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float) -> str:
    """Three digits, `0.0154 ms`."""
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def rate(value: float) -> str:
    """Rows a second, three digits and no more: `3,040`, `77.8k`, `1.68M`."""
    if value >= 999_500:
        return f"{value / 1e6:.3g}M"
    if value >= 9_995:
        return f"{value / 1e3:.3g}k"
    return f"{float(f'{value:.3g}'):,.0f}"


def times(larger: float, smaller: float, better: str, worse: str) -> str:
    """A ratio in words: `19x faster`, or `1.3x slower` where it went the other way; `the same` within 5 %."""
    ratio = larger / smaller
    if 0.95 < ratio < 1.05:
        return "the same"
    said = better if ratio >= 1 else worse
    ratio = max(ratio, 1 / ratio)
    return f"{ratio:.0f}x {said}" if ratio >= 9.95 else f"{ratio:.1f}x {said}"


def verdict(comparison: Comparison | Ablation) -> str:
    """Whether the interval tells a difference: `better`, `worse` or `open`."""
    if comparison.difference.low > 0:
        return "better"
    return "worse" if comparison.difference.high < 0 else "open"


def primary(evaluation: Evaluation, name: str, split: str = "test") -> Estimate:
    """The deciding metric of one candidate."""
    measured = evaluation.models[name]
    scores = measured.test if split == "test" else measured.validation
    return scores.figure(evaluation.primary)


def headline(evaluation: Evaluation) -> str:
    """One sentence: did distillation pay?"""
    if evaluation.shipped.candidate == "baseline":
        return "The student alone ships: distillation did not pay off"
    found = evaluation.comparison("distilled", "baseline", "test", evaluation.primary)
    return {
        "better": "Distillation paid off",
        "worse": "Distillation did harm",
        "open": "It is open whether distillation paid off",
    }[verdict(found)]


def explanation(evaluation: Evaluation) -> str:
    """The figures behind the headline."""
    found = evaluation.comparison("distilled", "baseline", "test", evaluation.primary)
    return (
        f"On {count(evaluation.splits['test'].labelled)} test rows the distilled student reaches "
        f"{percent(primary(evaluation, 'distilled').value)} {METRIC[evaluation.primary]}; the same network trained "
        f"alone, for as many steps, {percent(primary(evaluation, 'baseline').value)}. The difference is "
        f"{points(found.difference.value)} points ({100 * evaluation.confidence:g} % interval "
        f"{points_span(found.difference)}, {p_value(found.p_value)})."
    )


def gap_closed(evaluation: Evaluation) -> float | None:
    """Share of the way from the student alone to the teacher that the shipped student went; None without a gap."""
    if evaluation.teacher is None:
        return None
    alone = primary(evaluation, "baseline").value
    gap = primary(evaluation, evaluation.teacher).value - alone
    # A gap of less than half a point would make a share of noise.
    return (primary(evaluation, evaluation.shipped.candidate).value - alone) / gap if gap > 0.005 else None


def main(found: TargetScores) -> Estimate:
    """Accuracy, micro-F1 or R2."""
    if isinstance(found, ClassScores):
        return found.accuracy
    return found.micro_f1 if isinstance(found, LabelScores) else found.r2


def predicted(target: Target) -> str:
    """What is predicted, in a few words."""
    return "a number" if target.kind == "number" else f"{len(target.names)} {target.kind}"


def who_sees(params: "Params") -> str:
    """Who sees fewer labels than there are."""
    seeing = [key for key in params.distill.teachers if params.teachers[key].labels == "all"]
    if not seeing:
        return " for everybody, teachers too"
    return f" for the student ({', '.join(seeing)} learned from all of them)"


def weakest(figures: list[float | None], names: tuple[str, ...], most: int = 3) -> list[tuple[float, str]]:
    """The lowest figures and whose they are."""
    return sorted((figure, name) for figure, name in zip(figures, names, strict=True) if figure is not None)[:most]


def table(kind: Kind) -> list[str]:
    """The headings of what `cells` gives."""
    return {
        "classes": ["accuracy", "macro-F1", "agreement with teacher", "NLL", "calibration error"],
        "labels": ["micro-F1", "macro-F1", "all labels right", "agreement with teacher", "NLL"],
        "number": ["R²", "RMSE", "MAE", "RMSE to teacher"],
    }[kind]


def cells(found: TargetScores) -> list[str]:
    """The figures of one model and target."""

    def share(estimate: Estimate | None) -> str:
        return "\u2013" if estimate is None else f"{percent(estimate.value)} ({span(estimate)})"

    if isinstance(found, ClassScores):
        first = [share(found.accuracy), share(found.macro_f1), share(found.agreement)]
        return [*first, number(found.nll), number(found.calibration_error)]
    if isinstance(found, LabelScores):
        first = [share(found.micro_f1), share(found.macro_f1), percent(found.exact)]
        return [*first, percent(found.agreement), number(found.nll)]
    distance = "\u2013" if found.to_teacher is None else digits(found.to_teacher)
    return [share(found.r2), digits(found.rmse.value), digits(found.mae.value), distance]
