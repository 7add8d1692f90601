"""What is measured of a model's outputs on one split, for every kind of target."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distillery import metrics, resampling
from distillery import scores as epoch_scores
from distillery.columns import Columns
from distillery.resampling import Figure
from distillery.schema import METRICS, Schema, Target
from tasks.params.sections import Evaluate
from tasks.results import (
    ClassScores,
    Comparison,
    Estimate,
    LabelScores,
    NumberScores,
    ReliabilityBin,
    Scores,
    TargetScores,
)

Outputs = npt.NDArray[np.float32]
SplitName = Literal["validation", "test"]

# Not the seed of `params.yaml`: another seed of training must not move the intervals of the same outputs.
SEED = 20_150_309
MOST_POINTS = 400
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Ruler:
    """How figures are taken: the resamples, and how wide an interval is."""

    settings: Evaluate

    def scores(self, outputs: Outputs, columns: Columns, schema: Schema, teacher: Outputs | None) -> Scores:
        """All figures of one model on one split.

        Args:
            outputs: (N, O) of the targets of `schema`.
            columns: the rows, with their targets.
            schema: of the model; it may predict only some of the targets.
            teacher: (N, O) of the teacher, of the same targets; None for the teacher itself.
        """
        found: dict[str, TargetScores] = {}
        for name, spec in schema.targets.items():
            part = schema.part(name)
            heard = None if teacher is None else teacher[:, part]
            found[name] = self._of_target(outputs[:, part], columns.targets[name], spec, heard)
        main = resampling.main(outputs, columns.targets, schema)
        only = next(iter(found.values()))
        # The same figure is not drawn twice.
        score = only.accuracy if len(found) == 1 and isinstance(only, ClassScores) else self._interval(main)
        return Scores(score=score, targets=found)

    def comparisons(
        self, split: SplitName, model: str, reference: str, outputs: Mapping[str, Outputs], columns: Columns
    ) -> list[Comparison]:
        """Paired differences of two models with the same targets, by every usual metric and by the mean of the main."""
        ours, theirs, schema = outputs[model], outputs[reference], columns.schema
        several = len(schema.targets) > 1
        found: list[Comparison] = []

        def add(metric: str, target: str | None, one: metrics.Difference) -> None:
            difference = Estimate(value=one.value, low=one.low, high=one.high)
            found.append(
                Comparison(
                    split=split,
                    metric=metric,
                    target=target,
                    model=model,
                    reference=reference,
                    difference=difference,
                    p_value=one.p_value,
                )
            )

        for name, spec in schema.targets.items():
            part, target = schema.part(name), columns.targets[name]
            for metric in METRICS[spec.kind]:
                one = self._difference(ours[:, part], theirs[:, part], target, spec, metric)
                add(metric, name if several else None, one)
        if several:
            add("score", None, self.main_difference(ours, theirs, columns, schema))
        return found

    def main_difference(self, ours: Outputs, theirs: Outputs, columns: Columns, schema: Schema) -> metrics.Difference:
        """How much better the first of two models is at the targets of a schema."""
        first, second = (resampling.main(each, columns.targets, schema) for each in (ours, theirs))
        return resampling.difference(first, second, **self._draws)

    def main(self, outputs: Outputs, columns: Columns, schema: Schema) -> Estimate:
        """The mean of the main figures of a schema's targets."""
        return self._interval(resampling.main(outputs, columns.targets, schema))

    @property
    def _draws(self) -> dict[str, Any]:
        return {"resamples": self.settings.resamples, "confidence": self.settings.confidence, "seed": SEED}

    def _interval(self, figure: Figure) -> Estimate:
        return Estimate(**asdict(resampling.interval(figure, **self._draws)))

    def _difference(
        self, ours: Outputs, theirs: Outputs, target: npt.NDArray[Any], spec: Target, metric: str
    ) -> metrics.Difference:
        if spec.kind == "classes":
            predictions = ours.argmax(axis=1), theirs.argmax(axis=1)
            return metrics.paired_difference(target, predictions, metric, **self._draws)
        first, second = (resampling.figures(each, target, spec)[metric] for each in (ours, theirs))
        return resampling.difference(first, second, **self._draws)

    def _of_target(
        self, outputs: Outputs, target: npt.NDArray[Any], spec: Target, teacher: Outputs | None
    ) -> TargetScores:
        known = spec.known(target)
        if spec.kind == "classes":
            return self._of_classes(outputs, target, known, teacher)
        figures = {name: self._interval(figure) for name, figure in resampling.figures(outputs, target, spec).items()}
        nll = epoch_scores.of_target(outputs[known], target[known], spec)["nll"]
        if spec.kind == "labels":
            return _of_labels(outputs, target, teacher, figures, nll)
        errors = (outputs[:, 0].astype(np.float64) - target)[known]
        drawn = np.flatnonzero(known)[np.linspace(0, known.sum() - 1, min(MOST_POINTS, int(known.sum()))).astype(int)]
        distance = None if teacher is None else float(np.sqrt(np.square(outputs - teacher, dtype=np.float64).mean()))
        return NumberScores(
            rows=int(known.sum()),
            **figures,
            to_teacher=distance,
            error_quantiles=[float(value) for value in np.quantile(errors, QUANTILES)],
            points=[(float(target[row]), float(outputs[row, 0])) for row in drawn],
        )

    def _of_classes(
        self, logits: Outputs, target: npt.NDArray[np.int64], known: npt.NDArray[np.bool_], teacher: Outputs | None
    ) -> ClassScores:
        predicted = logits.argmax(axis=1)
        cells = metrics.Cells.count(target[known], predicted[known])
        error, bins = metrics.calibration(logits, target, self.settings.calibration_bins)
        matrix = metrics.confusion(target, predicted, logits.shape[1])

        def estimate(cells: metrics.Cells, statistic: metrics.Statistic) -> Estimate:
            return Estimate(**asdict(metrics.interval(cells, statistic, **self._draws)))

        agreement = None
        if teacher is not None:
            agreement = estimate(metrics.Cells.count(teacher.argmax(axis=1), predicted), metrics.accuracy)
        return ClassScores(
            rows=int(known.sum()),
            accuracy=estimate(cells, metrics.accuracy),
            macro_f1=estimate(cells, metrics.macro_f1),
            nll=metrics.nll(logits, target),
            calibration_error=error,
            agreement=agreement,
            kl=None if teacher is None else metrics.kl(teacher, logits),
            recall=metrics.recall(matrix),
            confusion=matrix.tolist(),
            reliability=[ReliabilityBin(**asdict(found)) for found in bins],
        )


def _of_labels(
    outputs: Outputs,
    target: npt.NDArray[Any],
    teacher: Outputs | None,
    figures: Mapping[str, Estimate],
    nll: float,
) -> LabelScores:
    known = ~np.isnan(target)
    rows = known.any(axis=1)
    positive, said = known & (target == 1), known & (outputs > 0)
    both, sizes = (positive & said).sum(axis=0), positive.sum(axis=0) + said.sum(axis=0)
    right = ((positive == said) | ~known).all(axis=1)
    return LabelScores(
        rows=int(rows.sum()),
        **figures,
        exact=float(right[rows].mean()),
        nll=nll,
        agreement=None if teacher is None else float(((outputs > 0) == (teacher > 0)).mean()),
        f1=[float(2 * hits / size) if size else None for hits, size in zip(both, sizes, strict=True)],
        support=[int(count) for count in positive.sum(axis=0)],
    )
