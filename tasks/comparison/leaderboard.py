"""Every method beside the others: what `reports/leaderboard.json` holds. The validation split ranks, test reports."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from distillery.config import Config
from distillery.holm import holm
from tasks.comparison.job import Result
from tasks.comparison.plan import KD, PLAIN, Entry, Job, Plan
from tasks.comparison.significance import Figure, Gain, gain, mean
from tasks.document import Document

FILE = Path("reports") / "leaderboard.json"
SPLITS = ("validation", "test")


class Standing(Config):
    """One method on one student.

    Attributes:
        method: its name.
        student: its name.
        scores: split -> the deciding metric over seeds.
        against_plain: split -> difference to the student alone, of the same seeds; empty for itself.
        against_kd: split -> difference to plain KD; empty for itself.
        seconds: of one training, the median over seeds.
        relative: the same as a multiple of the student alone.
        extra_parameters: trained beside the student and left behind.
        warnings: what its trainings said.
        blocks: what `--adopt` writes into `params.yaml`; none for the student alone.
    """

    method: str
    student: str
    scores: dict[str, Figure]
    against_plain: dict[str, Gain]
    against_kd: dict[str, Gain]
    seconds: float
    relative: float
    extra_parameters: int
    warnings: list[str]
    blocks: dict[str, dict[str, Any]]


class Student(Config):
    """An architecture.

    Attributes:
        model: as in `params.yaml`.
        parameters: trainable numbers.
        latency_ms: of one row, ONNX Runtime, one thread.
    """

    model: dict[str, Any]
    parameters: int
    latency_ms: float


class Leaderboard(Document):
    """The result of a comparison.

    Attributes:
        metric: that decides; more is better.
        confidence: of every interval.
        seeds: of every method.
        comparisons: how many differences on a split were tested, all of them corrected for.
        source: of the data.
        labelled: training rows with a label.
        teachers: whose soft targets were heard.
        steps: of a training.
        standings: best first, by the mean on the validation split.
        students: by name.
        left_out: method and student -> why it did not run.
    """

    made_by: ClassVar[str] = "python -m flows compare"

    metric: str
    confidence: float
    seeds: list[int]
    comparisons: int
    source: str
    labelled: int | str
    teachers: list[str]
    steps: int
    standings: list[Standing]
    students: dict[str, Student]
    left_out: dict[str, str]

    def name(self, standing: Standing) -> str:
        """What a line is called, the student left out where there is one only."""
        return standing.method if len(self.students) == 1 else f"{standing.method}/{standing.student}"

    @property
    def winner(self) -> Standing:
        """The best on the validation split."""
        return self.standings[0]


def make(
    plan: Plan, results: Mapping[str, Result], latencies: Mapping[str, float], failed: Mapping[str, str]
) -> Leaderboard:
    """Sets all methods beside each other.

    Args:
        plan: of the comparison.
        results: key of a job -> its result.
        latencies: of each student.
        failed: method and student -> why its trainings did not run to their end; it gets no line.
    """
    metric, confidence = plan.params.primary, plan.params.evaluate.confidence

    def found(entry: Entry) -> list[Result]:
        return [results[Job(entry, seed).key] for seed in plan.seeds]

    def values(entry: Entry, split: str) -> list[float]:
        return [getattr(result, split)[metric] for result in found(entry)]

    entries = [entry for entry in plan.entries if entry.title not in failed]
    by_title = {entry.title: entry for entry in entries}

    def against(entry: Entry, method: str) -> dict[str, Gain]:
        other = by_title[f"{method}/{entry.student}"]
        if other is entry or entry.method == PLAIN:
            return {}
        return {split: gain(values(entry, split), values(other, split), confidence) for split in SPLITS}

    lines = [(entry, against(entry, PLAIN), against(entry, KD)) for entry in entries]
    corrected = {split: _corrected([gains[split] for line in lines for gains in line[1:] if gains]) for split in SPLITS}
    standings = []
    for entry, plain, kd in lines:
        seconds = statistics.median([result.seconds for result in found(entry)])
        alone = statistics.median([result.seconds for result in found(by_title[f"{PLAIN}/{entry.student}"])])
        standings.append(
            Standing(
                method=entry.method,
                student=entry.student,
                scores={split: mean(values(entry, split), confidence) for split in SPLITS},
                against_plain={split: next(corrected[split]) for split in plain},
                against_kd={split: next(corrected[split]) for split in kd},
                seconds=seconds,
                relative=seconds / alone,
                extra_parameters=found(entry)[0].extra_parameters,
                warnings=sorted({text for result in found(entry) for text in result.warnings}),
                blocks=dict(entry.blocks),
            )
        )
    # Sorting keeps the order of equals: the simpler stands first.
    standings.sort(key=lambda standing: -standing.scores["validation"].value)
    return Leaderboard(
        metric=metric,
        confidence=confidence,
        seeds=plan.seeds,
        comparisons=sum(bool(gains) for line in lines for gains in line[1:]),
        source=plan.params.data.source,
        labelled=plan.params.data.labelled,
        teachers=plan.teachers,
        steps=found(entries[0])[0].steps,
        standings=standings,
        students={
            entry.student: Student(
                model=entry.document["student"]["model"],
                parameters=found(entry)[0].parameters,
                latency_ms=latencies[entry.student],
            )
            for entry in entries
            if entry.method == PLAIN
        },
        left_out={**plan.left_out, **failed},
    )


def _corrected(gains: list[Gain]) -> Iterator[Gain]:
    """The same differences, their p-values corrected for each other, one after another."""
    values = iter(holm([each.p_value for each in gains if each.p_value is not None]))
    for each in gains:
        yield each if each.p_value is None else each.model_copy(update={"corrected": next(values)})
