"""Figures of a leaderboard as people read them; shared by terminal, page and Markdown."""

from tasks.comparison.leaderboard import Leaderboard
from tasks.comparison.plan import PLAIN
from tasks.comparison.significance import Figure
from tasks.reporting import wording


def figure(found: Figure) -> str:
    """A share in percent with its interval, `94.1 (93.2-95.0)`."""
    value = f"{100 * found.value:.1f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def points(found: Figure) -> str:
    """A difference in points with its interval, `+7.0 (+5.9 to +8.1)`."""
    value = wording.points(found.value)
    if found.low is None or found.high is None:
        return value
    return f"{value} ({wording.points(found.low)} to {wording.points(found.high)})"


def p_value(found: float | None) -> str:
    """`0.035`, `<0.001`; a dash where one seed tells nothing about chance."""
    if found is None:
        return "\u2013"
    return "<0.001" if found < 0.001 else f"{found:.3f}"


def basis(board: Leaderboard) -> str:
    """What the figures are means of."""
    number = len(board.seeds)
    if number == 1:
        return "one seed, which tells nothing about chance"
    return f"mean and {100 * board.confidence:g} % t interval over {number} seeds"


def caption(board: Leaderboard) -> str:
    """How to read the table."""
    return (
        "best first by validation; differences are on test, paired by seed, their p corrected for "
        f"{board.comparisons} comparisons (Holm); extra: parameters trained beside the student and left behind"
    )


def headline(board: Leaderboard) -> str:
    """Which method won, and by how much."""
    winner = board.winner
    name = board.name(winner)
    if winner.method == PLAIN:
        return "No method is better than the student alone on the validation split."
    found = winner.against_plain["test"]
    told = f"{points(found.difference)} points against the student alone on test"
    p = "" if found.corrected is None else f", corrected p {p_value(found.corrected)}"
    return f"{name} is the best on the validation split: {told}{p}."
