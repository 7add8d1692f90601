"""`python -m benchmarks.leaderboard FOLDER [NAME ...]`: compares all methods and writes docs/leaderboard.md.

NAME is main, digits or multifeat; none: all three. Each data set has a copy of the project in FOLDER. Killed and
started again, it trains what is missing.
"""

import argparse
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from benchmarks.project import Project
from tasks.comparison import leaderboard, words
from tasks.comparison.leaderboard import Leaderboard, Standing
from tasks.reporting import wording

FILE = Path(__file__).parents[1] / "docs" / "leaderboard.md"
COMMAND = ("-m", "flows", "compare", "--objectives", "all")
# The layers of the main job's teacher are stored, or it would run in every step of every objective that compares them.
FEATURES = (r"(?m)^  # features: \{resnet: stages\}", "  features: {resnet: stages}")


@dataclass(frozen=True)
class Data:
    """One data set.

    Attributes:
        name: of the scenario, and of its folder.
        title: for people.
        setting: who learns from what.
        first: what is done before the command.
    """

    name: str
    title: str
    setting: str
    first: str


INTRODUCTION = """
Every method on the same teacher, soft targets, rows and number of steps. Made by
`python -m benchmarks.leaderboard FOLDER [NAME ...]`,
which runs the commands below. The validation split picks the epoch and the
order; the test split only reports. Differences are paired by seed; p is two-sided, by a paired t test on the test
split, corrected for all comparisons of a table (Holm). Intervals tell the chance of training (weights, order), not that
of the test rows, the labelled rows or the teacher. Methods have their default weights and temperatures: none was tuned
here, and what is best on one data set need not be on yours, which is why there is a command. *Seconds* are processor
time of one training, the median over seeds; *extra* are parameters trained beside the student and left behind.
"""
DATA = (
    Data(
        "main",
        "MNIST, 500 labels",
        "3,500 training rows of `mnist5k`, 500 with a label. The teacher, a residual network, learned from the same.",
        "with `soft_targets.features: {resnet: stages}` in `params.yaml`",
    ),
    Data(
        "digits",
        "Digits, 50 labels",
        "1,253 training rows of scikit-learn's 8x8 digits, 50 with a label. The teacher, a convolutional network, "
        "learned from the same 50, shifted at random; it was chosen on the validation split.",
        "after `python -m flows init digits`",
    ),
    Data(
        "multifeat",
        "UCI multiple features, 50 labels",
        "The student reads Zernike moments (`zer`), 50 rows with a label. The teacher reads pixels and Karhunen-Loeve "
        "coefficients (`pix`, `kar`) and learned from all labels of the training rows.",
        "after `python -m flows init multifeat`",
    ),
)


def main() -> None:
    """Brings the comparisons up to date and writes the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the projects; made where it is missing")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(each.name for each in DATA)}")
    options = parser.parse_args()
    unknown = set(options.names) - {each.name for each in DATA}
    if unknown:
        parser.error(f"no data set is called {', '.join(sorted(unknown))}")
    chosen = [each for each in DATA if not options.names or each.name in options.names]
    boards = {data: _compare(options.folder.resolve() / data.name, data) for data in chosen}
    FILE.write_text(document(boards), encoding="utf-8")


def document(boards: dict[Data, Leaderboard]) -> str:
    """Every leaderboard as Markdown."""
    lines = ["# Leaderboard", "", _filled(INTRODUCTION)]
    for data, board in boards.items():
        lines += ["", *_section(data, board)]
    return "\n".join(lines) + "\n"


def _section(data: Data, board: Leaderboard) -> list[str]:
    """One leaderboard."""
    (student,) = board.students.values()
    facts = f"{wording.count(student.parameters)} parameters, {wording.milliseconds(student.latency_ms)} a row"
    metric = wording.capitalised(wording.METRIC[board.metric])
    command = " ".join(("python", *COMMAND))
    return [
        f"## {data.title}",
        "",
        _filled(
            f"{data.setting} Student: {facts} (ONNX Runtime, one thread), {wording.count(board.steps)} steps. {metric} "
            f"in percent, {words.basis(board)} ({', '.join(map(str, board.seeds))}); {board.comparisons} comparisons."
        ),
        "",
        f"`{command}` {data.first}:",
        "",
        "| method | validation | test | against plain | p | against kd | p | seconds | extra |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(board, standing) for standing in board.standings),
        *(f"\nLeft out: `{title.split('/')[0]}`: {why}" for title, why in board.left_out.items()),
        "",
        words.headline(board),
    ]


def _row(board: Leaderboard, standing: Standing) -> str:
    """One method."""
    cells = [f"`{board.name(standing)}`", *(words.figure(standing.scores[split]) for split in ("validation", "test"))]
    for against in (standing.against_plain, standing.against_kd):
        found = against.get("test")
        cells += ["", ""] if found is None else [words.points(found.difference), words.p_value(found.corrected)]
    cells.append(f"{standing.seconds:.3g} ({standing.relative:.1f}x)")
    cells.append(wording.count(standing.extra_parameters) if standing.extra_parameters else "")
    return f"| {' | '.join(cells)} |"


def _filled(text: str) -> str:
    """A paragraph in lines of the usual length."""
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False)


def _compare(folder: Path, data: Data) -> Leaderboard:
    """Runs one comparison in its own copy of the project."""
    if not (folder / "params.yaml").exists():
        project = Project.copy(folder)
        if data.name != "main":
            project.python("-m", "flows", "init", data.name, "--force")
        file = folder / "params.yaml"
        file.write_text(re.sub(*FEATURES, file.read_text(encoding="utf-8")), encoding="utf-8")
    Project.at(folder).python(*COMMAND)
    return Leaderboard.read(folder / leaderboard.FILE)


if __name__ == "__main__":
    main()
