"""Measures every candidate, decides on the validation split which student ships, and reports on the test split."""

import csv
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from distillery import metrics, timing
from distillery.columns import Columns
from distillery.errors import UserError
from distillery.inference import open_session
from distillery.inference import predict as predict_by_onnx
from distillery.saved import load_model, predict
from tasks.params import Evaluate
from tasks.results import (
    Candidate,
    Comparison,
    Deployed,
    Estimate,
    Evaluation,
    ExportReport,
    Measured,
    ReliabilityBin,
    Scores,
    Shipped,
    SplitFacts,
    candidates,
    title,
)
from tasks.stage import Stage, Summary

# Not the seed of `params.yaml`: another seed of training must not move the intervals of the same outputs.
SEED = 20_150_309
COMPARED = (("distilled", "baseline"), ("finetuned", "distilled"), ("finetuned", "baseline"))

Logits = npt.NDArray[np.float32]
SplitName = Literal["validation", "test"]
Metric = Literal["accuracy", "macro_f1"]
SPLITS: tuple[SplitName, ...] = ("validation", "test")
METRICS: tuple[Metric, ...] = ("accuracy", "macro_f1")


def run(stage: Stage) -> Summary:
    """Reads saved models, ONNX files and two splits.

    Writes `reports/evaluation.json` (`tasks.results.Evaluation`), `reports/metrics.json`, the two tables of
    `reports/plots` and the student that ships, `models/student`.
    """
    settings = stage.params.evaluate
    todo = candidates(stage.params)
    splits = {name: Columns.open(stage.path(f"data/prepared/{name}")) for name in SPLITS}
    for name, columns in splits.items():
        if not len(columns.labelled):
            raise UserError(f"the {name} split has no labelled row, so nothing can be measured on it: label some")
    teacher = next((candidate.name for candidate in todo if candidate.role == "teacher"), None)
    exported = ExportReport.read(stage.path("models/onnx/export.json"))

    networks = {candidate.name: load_model(stage.path(candidate.folder)) for candidate in todo}
    outputs: dict[SplitName, dict[str, Logits]] = {
        split: {
            name: _finite(predict(network, columns), name)
            for name, network in stage.progress.track(networks.items(), f"Measuring on {split}", len(networks))
        }
        for split, columns in splits.items()
    }
    files = _onnx_files(exported, [candidate.name for candidate in todo if candidate.exported])
    times = timing.measure({name: stage.path(file) for name, file in files.items()}, splits["test"])

    def scores(name: str, logits: Logits, split: SplitName) -> Scores:
        heard = outputs[split][teacher] if teacher is not None and name != teacher else None
        return _scores(logits, splits[split].target, heard, settings)

    def deployed(name: str, variant: str) -> Deployed | None:
        if variant not in files:
            return None
        logits = predict_by_onnx(open_session(stage.path(files[variant])), splits["test"])
        return Deployed(
            file=files[variant],
            size=stage.path(files[variant]).stat().st_size,
            test=scores(name, logits, "test"),
            **asdict(times[variant]),
        )

    models = {
        candidate.name: Measured(
            role=candidate.role,
            model=networks[candidate.name].config,
            parameters=networks[candidate.name].parameter_count if candidate.exported else None,
            weights_sha256=_sha256(stage.path(candidate.folder) / "weights.safetensors"),
            best_epoch=_best_epoch(stage.path(candidate.folder)),
            validation=scores(candidate.name, outputs["validation"][candidate.name], "validation"),
            test=scores(candidate.name, outputs["test"][candidate.name], "test"),
            onnx=deployed(candidate.name, candidate.name),
            int8=deployed(candidate.name, f"{candidate.name}.int8"),
        )
        for candidate in todo
    }
    comparisons = [
        _comparison(split, metric, model, reference, outputs[split], splits[split].target, settings)
        for model, reference in COMPARED
        for split in SPLITS
        for metric in METRICS
    ]
    shipped = _ship(stage, models)
    schema = splits["test"].schema
    evaluation = Evaluation(
        classes=list(schema.classes),
        target=schema.target,
        inputs=schema.inputs,
        primary=settings.primary,
        confidence=settings.confidence,
        resamples=settings.resamples,
        teacher=teacher,
        splits={name: _facts(columns) for name, columns in splits.items()},
        models=models,
        exports={candidate.name: exported.models[candidate.name] for candidate in todo if candidate.exported},
        comparisons=comparisons,
        shipped=shipped,
        runtime=_runtime(),
    )
    evaluation.write(stage.output("reports/evaluation.json"))
    _write_metrics(stage.output("reports/metrics.json"), evaluation)
    _write_curves(stage.output("reports/plots/curves.csv"), stage, todo)
    predicted = outputs["test"][shipped.candidate].argmax(axis=1)
    _write_confusion(stage.output("reports/plots/confusion.csv"), splits["test"], predicted)
    return {
        "shipped": shipped.candidate,
        **{f"{name}_accuracy": model.test.accuracy.value for name, model in models.items()},
        "gain": evaluation.comparison("distilled", "baseline", "test", settings.primary).difference.value,
    }


def _finite(logits: Logits, name: str) -> Logits:
    """The logits, if they are numbers."""
    if not np.isfinite(logits).all():
        raise UserError(f"{name}: outputs are not finite; its training diverged: lower its learning_rate")
    return logits


def _onnx_files(exported: ExportReport, names: list[str]) -> dict[str, str]:
    """`<candidate>` and, where it was kept, `<candidate>.int8` -> file relative to the project."""
    files = {}
    for name in names:
        if name not in exported.models:
            raise UserError(f"models/onnx has no {name}; run `python -m flows run export`")
        model = exported.models[name]
        files[name] = f"models/onnx/{model.file}"
        if model.int8 is not None and model.int8.file is not None:
            files[f"{name}.int8"] = f"models/onnx/{model.int8.file}"
    return files


def _scores(logits: Logits, target: npt.NDArray[np.int64], teacher: Logits | None, settings: Evaluate) -> Scores:
    """All figures of one model on one split."""
    known = target >= 0
    predicted = logits.argmax(axis=1)
    cells = metrics.Cells.count(target[known], predicted[known])
    error, bins = metrics.calibration(logits, target, settings.calibration_bins)
    matrix = metrics.confusion(target, predicted, logits.shape[1])

    def estimate(cells: metrics.Cells, statistic: metrics.Statistic) -> Estimate:
        found = metrics.interval(
            cells, statistic, resamples=settings.resamples, confidence=settings.confidence, seed=SEED
        )
        return Estimate(**asdict(found))

    agreement = None
    if teacher is not None:
        agreement = estimate(metrics.Cells.count(teacher.argmax(axis=1), predicted), metrics.accuracy)
    return Scores(
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


def _comparison(
    split: SplitName,
    metric: Metric,
    model: str,
    reference: str,
    outputs: dict[str, Logits],
    target: npt.NDArray[np.int64],
    settings: Evaluate,
) -> Comparison:
    """Paired difference of two candidates."""
    found = metrics.paired_difference(
        target,
        (outputs[model].argmax(axis=1), outputs[reference].argmax(axis=1)),
        metric,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=SEED,
    )
    return Comparison(
        split=split,
        metric=metric,
        model=model,
        reference=reference,
        difference=Estimate(value=found.value, low=found.low, high=found.high),
        p_value=found.p_value,
    )


def _ship(stage: Stage, models: dict[str, Measured]) -> Shipped:
    """Picks the student by the validation split and copies it to `models/student`; a tie keeps the distilled one."""
    primary = stage.params.evaluate.primary
    reached = {
        name: (models[name].validation.accuracy if primary == "accuracy" else models[name].validation.macro_f1).value
        for name in ("distilled", "finetuned")
    }
    better = reached["finetuned"] > reached["distilled"]
    chosen: Literal["distilled", "finetuned"] = "finetuned" if better else "distilled"
    said = {"accuracy": "accuracy", "macro_f1": "macro-F1"}[primary]
    equal = reached["finetuned"] == reached["distilled"]
    relation = "is higher than" if better else "equals" if equal else "is lower than"
    because = (
        f"On the validation split the fine-tuned student's {said} ({reached['finetuned']:.4f}) {relation} "
        f"the distilled student's ({reached['distilled']:.4f})" + ("; a tie keeps the distilled one." if equal else ".")
    )
    folder = stage.output("models/student")
    folder.mkdir()
    for name in ("weights.safetensors", "model.json"):
        _copy(stage.path(f"models/{chosen}/{name}"), folder / name)
    model = models[chosen]
    assert model.onnx is not None, "a student is exported"
    _copy(stage.path(model.onnx.file), folder / "model.onnx")
    if model.int8 is not None:
        _copy(stage.path(model.int8.file), folder / "model.int8.onnx")
    shipped = Shipped(
        candidate=chosen,
        because=because,
        primary=primary,
        validation=reached,
        test={"accuracy": model.test.accuracy, "macro_f1": model.test.macro_f1},
        files={file.name: _sha256(file) for file in sorted(folder.iterdir())},
    )
    shipped.write(folder / "shipped.json")
    return shipped


def _copy(source: Path, target: Path) -> None:
    """The content alone: files linked to DVC's cache are read-only, their copies need not be."""
    shutil.copyfile(source, target)


def _best_epoch(folder: Path) -> int | None:
    """The epoch that the validation split picked."""
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    best = facts.get("best_epoch")
    return None if best is None else int(best)


def _facts(columns: Columns) -> SplitFacts:
    """Size and digest of a split."""
    total = hashlib.sha256()
    for column in (columns.keys, columns.target, *columns.inputs.values()):
        total.update(np.ascontiguousarray(column).view(np.uint8).data if column.size else b"")
    return SplitFacts(rows=len(columns), labelled=len(columns.labelled), sha256=total.hexdigest())


def _sha256(file: Path) -> str:
    """Digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _runtime() -> dict[str, str]:
    """Versions of what measured."""
    import onnxruntime
    import torch

    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}


def _write_metrics(file: Path, evaluation: Evaluation) -> None:
    """The figures that `dvc metrics` compares, all of the test split; times would differ for no reason."""
    table: dict[str, dict[str, float]] = {}
    for name, model in evaluation.models.items():
        row: dict[str, float] = {
            "accuracy": model.test.accuracy.value,
            "macro_f1": model.test.macro_f1.value,
            "nll": model.test.nll,
            "calibration_error": model.test.calibration_error,
        }
        if model.test.agreement is not None and model.test.kl is not None:
            row |= {"agreement": model.test.agreement.value, "kl": model.test.kl}
        table[name] = row
        if model.int8 is not None:
            table[f"{name}-int8"] = {
                "accuracy": model.int8.test.accuracy.value,
                "macro_f1": model.int8.test.macro_f1.value,
            }
    # Six digits are enough for a table.
    document = {name: {key: float(f"{value:.6g}") for key, value in row.items()} for name, row in table.items()}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _write_curves(file: Path, stage: Stage, todo: list[Candidate]) -> None:
    """One line an epoch and model, from each model's own history."""
    names = ("accuracy", "macro_f1", "nll")
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", "model", *names])
        for candidate in todo:
            with (stage.path(candidate.folder) / "history.csv").open(newline="", encoding="utf-8") as history:
                for line in csv.DictReader(history):
                    writer.writerow([int(float(line["epoch"])), title(candidate.name), *(line[name] for name in names)])


def _write_confusion(file: Path, columns: Columns, predicted: npt.NDArray[np.int64]) -> None:
    """One line a labelled row: its class, and the one that the shipped student says."""
    classes = columns.schema.classes
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        writer.writerows((classes[columns.target[row]], classes[predicted[row]]) for row in columns.labelled)
