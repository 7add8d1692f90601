"""What a challenger must show: every comparison is paired, on the same rows, taken now."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distillery import metrics, resampling
from distillery.columns import Columns
from distillery.metrics import Difference
from distillery.schema import MAIN, METRICS, Target
from tasks.params.sections import Evaluate, Gates
from tasks.promotion.results import Gate
from tasks.promotion.scoring import Outputs, Subject
from tasks.reporting import wording

SEED = 20_150_309


@dataclass(frozen=True)
class Judge:
    """Holds a challenger against a reference.

    Attributes:
        gates: the margins.
        evaluate: resamples and confidence.
        primary: the metric that must be better.
        columns: the test set.
        challenger: what wants to serve.
        reference: the champion; for a first one the student alone; None where there is neither.
        teacher: who both are compared with, where there is one.
        is_first: whether there is no champion.
    """

    gates: Gates
    evaluate: Evaluate
    primary: str
    columns: Columns
    challenger: Subject
    reference: Subject | None
    teacher: Subject | None
    is_first: bool

    def verdict(self, latencies: Mapping[str, float]) -> list[Gate]:
        """Every gate.

        Args:
            latencies: `challenger` and `reference` -> milliseconds a row.
        """
        found: list[Gate] = []
        if self.is_first and self.teacher is not None:
            found.append(self._retention(self.teacher))
        if self.reference is not None:
            found += [*self._losses(self.reference), *self._calibration(self.reference)]
            if self.teacher is not None:
                found += self._agreement(self.reference, self.teacher)
            found += [self._latency(latencies), self._size(self.reference)]
        return found

    def _losses(self, reference: Subject) -> Iterator[Gate]:
        """The main metrics of every target, their mean, and every class."""
        schema = self.columns.schema
        several = len(schema.targets) > 1
        for name, spec in schema.targets.items():
            mark = f"{name}." if several else ""
            for metric in METRICS[spec.kind]:
                yield self._loss(f"{mark}{metric}", *self._compare(name, spec, reference, metric))
        if several:
            first, second = (
                resampling.Figure.mean(
                    [
                        resampling.figures(one.answers[name], self.columns.targets[name], spec)[MAIN[spec.kind]]
                        for name, spec in schema.targets.items()
                    ]
                )
                for one in (self.challenger, reference)
            )
            difference = resampling.difference(first, second, **self._draws)
            yield self._loss("score", first.observed, second.observed, difference)
        for name, spec in schema.targets.items():
            if spec.kind != "number":
                yield from self._classes(f"{name}." if several else "", name, spec, reference)

    def _compare(self, name: str, spec: Target, reference: Subject, metric: str) -> tuple[float, float, Difference]:
        """One metric of both, and their paired difference."""
        target = self.columns.targets[name]
        ours, theirs = self.challenger.answers[name], reference.answers[name]
        if spec.kind == "classes":
            predicted = ours.argmax(axis=1), theirs.argmax(axis=1)
            difference = metrics.paired_difference(target, predicted, metric, **self._draws)
        else:
            first, second = (resampling.figures(one, target, spec)[metric] for one in (ours, theirs))
            difference = resampling.difference(first, second, **self._draws)
        return _value(ours, target, spec, metric), _value(theirs, target, spec, metric), difference

    def _loss(self, name: str, ours: float, theirs: float, difference: Difference) -> Gate:
        """A metric that may not be lost; of the primary one more may be asked."""
        low, high, margin = difference.low, difference.high, self.gates.max_loss
        span = f"{wording.points(low)} to {wording.points(high)} points"
        limit = f"loses no more than {wording.percent(margin)}"
        # A champion is not risked for what may be noise; where nobody serves yet, there is nothing to risk.
        passed = (difference.value if self.is_first else low) >= -margin
        said = f"{name} is {wording.percent(ours)} against {wording.percent(theirs)}, a difference of {span}"
        if name == self.primary and self.gates.require == "superior" and not self.is_first:
            limit = "better beyond noise"
            passed = low > 0
        return Gate(
            name=name, reference=theirs, challenger=ours, low=low, high=high, limit=limit, passed=passed, said=said
        )

    def _classes(self, mark: str, name: str, spec: Target, reference: Subject) -> Iterator[Gate]:
        """The class that loses most, and every one that loses too much."""
        target = self.columns.targets[name]
        found = []
        for at, label in enumerate(spec.names):
            rows = target == at if spec.kind == "classes" else target[:, at] == 1
            if rows.any():
                hits = [self._hits(one.answers[name], at, spec) for one in (self.challenger, reference)]
                found.append((label, *self._recall(rows, hits)))
        worst = min(found, key=lambda each: each[3].value, default=None)
        for label, ours, theirs, difference in found:
            # A handful of rows swings by chance: what fails is worse than the margin and beyond noise.
            failed = difference.value < -self.gates.max_class_loss and difference.high < 0
            if failed or (worst is not None and label == worst[0]):
                yield Gate(
                    name=f"{mark}recall of {label}",
                    reference=theirs,
                    challenger=ours,
                    low=difference.low,
                    high=difference.high,
                    limit=f"no class loses {wording.percent(self.gates.max_class_loss)}",
                    passed=not failed,
                    said=f"recall of {label} is {wording.percent(ours)} against {wording.percent(theirs)}",
                )

    def _hits(self, answers: Outputs, at: int, spec: Target) -> npt.NDArray[np.bool_]:
        """(N,) whether a class or label is said."""
        return np.asarray(answers.argmax(axis=1) == at if spec.kind == "classes" else answers[:, at] > 0)

    def _recall(
        self, rows: npt.NDArray[np.bool_], hits: list[npt.NDArray[np.bool_]]
    ) -> tuple[float, float, Difference]:
        """Recall of both over the rows of a class, and their paired difference."""
        # Among these rows to be right is to say the class: accuracy there is its recall.
        target = np.where(rows, 1, -1)
        predicted = hits[0].astype(np.int64), hits[1].astype(np.int64)
        difference = metrics.paired_difference(target, predicted, "accuracy", **self._draws)
        return float(hits[0][rows].mean()), float(hits[1][rows].mean()), difference

    def _calibration(self, reference: Subject) -> Iterator[Gate]:
        for name, spec in self.columns.schema.targets.items():
            if spec.kind == "classes":
                target = self.columns.targets[name]
                ours, theirs = (
                    metrics.calibration(one.answers[name], target, self.evaluate.calibration_bins)[0]
                    for one in (self.challenger, reference)
                )
                mark = f"{name}." if len(self.columns.schema.targets) > 1 else ""
                yield Gate(
                    name=f"{mark}calibration error",
                    reference=theirs,
                    challenger=ours,
                    limit=f"rises no more than {self.gates.max_calibration_rise:g}",
                    passed=ours <= theirs + self.gates.max_calibration_rise,
                    said=f"the calibration error is {ours:.3f} against {theirs:.3f}",
                )

    def _agreement(self, reference: Subject, teacher: Subject) -> Iterator[Gate]:
        several = len(self.columns.schema.targets) > 1
        for name, spec in self.columns.schema.targets.items():
            if name in teacher.answers:
                heard = teacher.answers[name]
                ours, theirs = (agreement(one.answers[name], heard, spec) for one in (self.challenger, reference))
                yield Gate(
                    name=f"{name}.agreement" if several else "agreement",
                    reference=theirs,
                    challenger=ours,
                    limit=f"loses no more than {wording.percent(self.gates.max_agreement_loss)}",
                    passed=ours >= theirs - self.gates.max_agreement_loss,
                    said=f"it agrees with {teacher.title} by {wording.percent(ours)} against {wording.percent(theirs)}",
                )

    def _latency(self, latencies: Mapping[str, float]) -> Gate:
        ours, theirs = latencies["challenger"], latencies["reference"]
        return Gate(
            name="latency",
            reference=theirs,
            challenger=ours,
            limit=f"no more than {self.gates.max_latency_ratio:g} times",
            passed=ours <= theirs * self.gates.max_latency_ratio,
            said=f"a row takes {wording.milliseconds(ours)} against {wording.milliseconds(theirs)}",
        )

    def _size(self, reference: Subject) -> Gate:
        ours, theirs = self.challenger.size, reference.size
        return Gate(
            name="size",
            reference=theirs,
            challenger=ours,
            limit=f"no more than {self.gates.max_size_ratio:g} times",
            passed=ours <= theirs * self.gates.max_size_ratio,
            said=f"the file has {wording.size(ours)} against {wording.size(theirs)}",
        )

    def _retention(self, teacher: Subject) -> Gate:
        """Of a first champion: what of the teacher's primary metric it keeps, over the targets that both predict."""
        targets = {name: spec for name, spec in self.columns.schema.targets.items() if name in teacher.answers}

        def score(subject: Subject) -> float:
            values = []
            for name, spec in targets.items():
                metric = self.primary if self.primary in METRICS[spec.kind] else MAIN[spec.kind]
                values.append(_value(subject.answers[name], self.columns.targets[name], spec, metric))
            return float(np.mean(values))

        ours, theirs, share = score(self.challenger), score(teacher), self.gates.min_retention
        return Gate(
            name="retention",
            reference=theirs,
            challenger=ours,
            limit=f"at least {wording.percent(share)} of the teacher's",
            # Of a teacher that is worse than nothing, R2 below zero, no share can be asked.
            passed=ours >= min(theirs, theirs * share),
            said=f"{self.primary} is {wording.percent(ours)}, the teacher's {wording.percent(theirs)}",
        )

    @property
    def _draws(self) -> dict[str, Any]:
        return {"resamples": self.evaluate.resamples, "confidence": self.evaluate.confidence, "seed": SEED}


def _value(answers: Outputs, target: npt.NDArray[Any], spec: Target, metric: str) -> float:
    """One metric of one model."""
    if spec.kind == "classes":
        known = spec.known(target)
        cells = metrics.Cells.count(target[known], answers.argmax(axis=1)[known])
        return float(metrics.METRICS[metric](cells, cells.counts[None], 1)[0])
    return resampling.figures(answers, target, spec)[metric].observed


def agreement(answers: Outputs, teacher: Outputs, spec: Target) -> float:
    """How far a model says what its teacher says: of classes and labels the share of equal ones, of a number R2."""
    if spec.kind == "classes":
        return float((answers.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    if spec.kind == "labels":
        return float(((answers > 0) == (teacher > 0)).mean())
    heard = teacher.astype(np.float64)
    spread = float(np.square(heard - heard.mean()).sum())
    return 1 - float(np.square(answers - heard).sum()) / spread if spread else 0.0
