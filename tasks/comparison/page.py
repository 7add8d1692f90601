"""The leaderboard as one self-contained page."""

from pathlib import Path

from tasks.comparison import words
from tasks.comparison.leaderboard import Leaderboard
from tasks.comparison.plan import KD, PLAIN
from tasks.report import templates
from tasks.reporting import charts, wording

FILE = Path("reports") / "leaderboard.html"
_COLOUR = {PLAIN: charts.BASELINE, KD: charts.TEACHER}


def write(root: Path, board: Leaderboard) -> None:
    """Writes `reports/leaderboard.html`; the same leaderboard gives the same bytes."""
    from markupsafe import Markup

    page = templates(html=True).get_template("leaderboard.html.jinja")
    drawing = Markup(_picture(board))  # noqa: S704 - made here, its texts escaped by matplotlib
    text = page.render(board=board, words=words, wording=wording, picture=drawing, plain=PLAIN, kd=KD)
    beside = root / FILE.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(root / FILE)


def _picture(board: Leaderboard) -> str:
    """Means on the test split with their intervals, in the order of the leaderboard."""
    rows = []
    for standing in board.standings:
        found = standing.scores["test"]
        low, high = (found.value if end is None else end for end in (found.low, found.high))
        rows.append((board.name(standing), found.value, low, high, _COLOUR.get(standing.method, charts.DISTILLED)))
    metric = wording.METRIC[board.metric]
    return charts.beside(rows, "leaderboard", f"Test {metric}, {words.basis(board)}", f"Test {metric} of each method")
