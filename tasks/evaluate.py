"""Measures every candidate, decides on the validation split which student ships, and reports on the test split."""

import csv
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from distillery import timing
from distillery.columns import Columns
from distillery.errors import UserError
from distillery.inference import open_session
from distillery.inference import predict as predict_by_onnx
from distillery.saved import load_model, predict
from distillery.schema import METRICS
from tasks.measuring import Outputs, Ruler, SplitName
from tasks.reporting.wording import METRIC
from tasks.results import (
    Ablation,
    Candidate,
    ClassScores,
    Contribution,
    Deployed,
    Estimate,
    Evaluation,
    ExportReport,
    LabelScores,
    Measured,
    Scores,
    Shipped,
    SplitFacts,
    candidates,
    title,
)
from tasks.stage import Stage, Summary

COMPARED = (("distilled", "baseline"), ("finetuned", "distilled"), ("finetuned", "baseline"))
SPLITS: tuple[SplitName, ...] = ("validation", "test")
Student = Literal["baseline", "distilled", "finetuned"]
# A tie goes to the first.
STUDENTS: tuple[Student, ...] = ("distilled", "finetuned", "baseline")
CALLED = {"baseline": "student alone", "distilled": "distilled student", "finetuned": "fine-tuned student"}


def run(stage: Stage) -> Summary:
    """Reads saved models, ONNX files and two splits.

    Writes `reports/evaluation.json` (`tasks.results.Evaluation`), `reports/metrics.json`, the two tables of
    `reports/plots` and the student that ships, `models/student`.
    """
    settings, primary = stage.params.evaluate, stage.params.primary
    todo = candidates(stage.params)
    splits = {name: Columns.open(stage.path(f"data/prepared/{name}")) for name in SPLITS}
    for name, columns in splits.items():
        for target, spec in columns.schema.targets.items():
            if not spec.known(columns.targets[target]).any():
                raise UserError(f"the {name} split has no label in {target!r}, so nothing can be measured: label some")
    teacher = next((candidate.name for candidate in todo if candidate.role == "teacher"), None)
    exported = ExportReport.read(stage.path("models/onnx/export.json"))

    networks = {candidate.name: load_model(stage.path(candidate.folder)) for candidate in todo}
    outputs: dict[SplitName, dict[str, Outputs]] = {
        split: {
            name: _finite(predict(network, columns), name)
            for name, network in stage.progress.track(networks.items(), f"Measuring on {split}", len(networks))
        }
        for split, columns in splits.items()
    }
    files = _onnx_files(exported, [candidate.name for candidate in todo if candidate.exported])
    reading = {name: splits["test"].select(network.schema) for name, network in networks.items()}
    times = timing.measure(
        {
            variant: (stage.path(file), reading[name])
            for name, variants in files.items()
            for variant, file in variants.items()
        }
    )
    ruler = Ruler(settings)

    def scores(name: str, found: Outputs, split: SplitName) -> Scores:
        heard = outputs[split][teacher] if teacher is not None and name != teacher else None
        return ruler.scores(found, splits[split], splits[split].schema, heard)

    def deployed(name: str, variant: str) -> Deployed | None:
        file = files.get(name, {}).get(variant)
        if file is None:
            return None
        found = predict_by_onnx(open_session(stage.path(file)), reading[name])
        return Deployed(
            file=file,
            size=stage.path(file).stat().st_size,
            test=scores(name, found, "test"),
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
            exits=tuple(
                found
                for variant in files.get(candidate.name, {})
                if variant.startswith(f"{candidate.name}-exit-")
                and (found := deployed(candidate.name, variant)) is not None
            ),
        )
        for candidate in todo
    }
    comparisons = [
        found
        for model, reference in COMPARED
        for split in SPLITS
        for found in ruler.comparisons(split, model, reference, outputs[split], splits[split])
    ]
    shipped = _ship(stage, models, primary)
    evaluation = Evaluation(
        targets=splits["test"].schema.targets,
        inputs=networks["distilled"].schema.inputs,
        primary=primary,
        confidence=settings.confidence,
        resamples=settings.resamples,
        teacher=teacher,
        splits={name: _facts(columns) for name, columns in splits.items()},
        models=models,
        exports={name: exported.models[name] for name in models if name in exported.models},
        comparisons=comparisons,
        ablations=_ablations(stage, ruler, outputs["test"]["distilled"], splits["test"]),
        contributions=_contributions(stage.path("models/distilled/history.csv"), stage.params.distill.teachers),
        shipped=shipped,
        runtime=_runtime(),
    )
    evaluation.write(stage.output("reports/evaluation.json"))
    _write_metrics(stage.output("reports/metrics.json"), evaluation)
    _write_curves(stage.output("reports/plots/curves.csv"), stage, todo)
    _write_confusion(stage.output("reports/plots/confusion.csv"), splits["test"], outputs["test"][shipped.candidate])
    return {
        "shipped": shipped.candidate,
        **{f"{name}_{primary}": model.test.figure(primary).value for name, model in models.items()},
        "gain": evaluation.comparison("distilled", "baseline", "test", primary).difference.value,
    }


def _finite(outputs: Outputs, name: str) -> Outputs:
    """The outputs, if they are numbers."""
    if not np.isfinite(outputs).all():
        raise UserError(f"{name}: outputs are not finite; its training diverged: lower its learning_rate")
    return outputs


def _onnx_files(exported: ExportReport, names: list[str]) -> dict[str, dict[str, str]]:
    """Candidate -> its files relative to the project, by their names: itself, `.int8` and `-exit-1` where there are."""
    files = {}
    for name in names:
        if name not in exported.models:
            raise UserError(f"models/onnx has no {name}; run `python -m flows run export`")
        model = exported.models[name]
        int8 = [] if model.int8 is None or model.int8.file is None else [model.int8.file]
        listed = [model.file, *int8, *(each.file for each in model.exits)]
        files[name] = {file.removesuffix(".onnx"): f"models/onnx/{file}" for file in listed}
    return files


def _ship(stage: Stage, models: dict[str, Measured], primary: str) -> Shipped:
    """Picks the student by the validation split and copies it to `models/student`."""
    reached = {name: models[name].validation.figure(primary).value for name in STUDENTS}
    chosen = max(STUDENTS, key=lambda name: reached[name])
    others = [name for name in STUDENTS if name != chosen]
    tied = [title(name) for name in others if reached[name] == reached[chosen]]
    because = (
        f"On the validation split its {METRIC[primary]} is {reached[chosen]:.4f}, "
        + " and ".join(f"{reached[name]:.4f} that of the {CALLED[name]}" for name in others)
        + ("; a tie keeps the distilled before the fine-tuned and both before the student alone." if tied else ".")
    )
    if chosen == "baseline":
        because += " Distillation did not pay here: the same student trained on the labels alone is no worse."
    folder = stage.output("models/student")
    folder.mkdir()
    for name in ("weights.safetensors", "model.json"):
        _copy(stage.path(f"models/{chosen}/{name}"), folder / name)
    model = models[chosen]
    assert model.onnx is not None, "every student is exported"
    _copy(stage.path(model.onnx.file), folder / "model.onnx")
    if model.int8 is not None:
        _copy(stage.path(model.int8.file), folder / "model.int8.onnx")
    for number, early in enumerate(model.exits, 1):
        _copy(stage.path(early.file), folder / f"exit-{number}.onnx")
    metrics = dict.fromkeys([primary, *_headline_metrics(model.test)])
    shipped = Shipped(
        candidate=chosen,
        because=because,
        primary=primary,
        validation=dict(reached),
        test={metric: model.test.figure(metric) for metric in metrics},
        files={file.name: _sha256(file) for file in sorted(folder.iterdir())},
    )
    shipped.write(folder / "shipped.json")
    return shipped


def _headline_metrics(scores: Scores) -> list[str]:
    """What is told of the only target."""
    if len(scores.targets) > 1:
        return ["score"]
    only = scores.only
    if isinstance(only, ClassScores):
        return ["accuracy", "macro_f1"]
    return ["micro_f1", "macro_f1"] if isinstance(only, LabelScores) else ["r2", "rmse", "mae"]


def _ablations(stage: Stage, ruler: Ruler, distilled: Outputs, test: Columns) -> list[Ablation]:
    """Every student of `models/ablations` beside the distilled one, on the targets that it has."""
    found = []
    for folder in sorted(stage.path("models/ablations").glob("*-*")):
        what, _, name = folder.name.partition("-")
        network = load_model(folder)
        ours = _finite(predict(network, test), folder.name)
        wanted = network.schema
        theirs = np.concatenate([distilled[:, test.schema.part(target)] for target in wanted.targets], axis=1)
        difference = ruler.main_difference(theirs, ours, test, wanted)
        found.append(
            Ablation(
                target=name if what == "target" else None,
                teacher=name if what == "teacher" else None,
                value=ruler.main(ours, test, wanted),
                distilled=ruler.main(theirs, test, wanted),
                difference=Estimate(value=difference.value, low=difference.low, high=difference.high),
                p_value=difference.p_value,
            )
        )
    return found


def _contributions(file: Path, teachers: tuple[str, ...]) -> dict[str, Contribution]:
    """What each of several teachers gave, from the history of the distilled student."""
    if len(teachers) < 2:
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    found = {}
    for key in teachers:
        means = {
            name.removeprefix("loss_"): float(np.mean([float(line[name]) for line in lines]))
            for name in (lines[0] if lines else ())
            if name.startswith("loss_") and name.endswith(f"_{key}")
        }
        weights = [value for name, value in means.items() if name.endswith(f"teacher_weight_{key}")]
        losses = {
            name.removesuffix(f"_{key}"): value
            for name, value in means.items()
            if not name.endswith(f"teacher_weight_{key}")
        }
        if weights:
            found[key] = Contribution(weight=float(np.mean(weights)), losses=losses)
    return found


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
        table[name] = _flat(model.test, brief=False)
        if model.int8 is not None:
            table[f"{name}-int8"] = _flat(model.int8.test, brief=True)
    # Six digits are enough for a table.
    document = {name: {key: float(f"{value:.6g}") for key, value in row.items()} for name, row in table.items()}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _flat(scores: Scores, *, brief: bool) -> dict[str, float]:
    """The figures of every target, with its name and a dot in front where there are several."""
    flat: dict[str, float] = {} if len(scores.targets) == 1 else {"score": scores.score.value}
    for name, found in scores.targets.items():
        prefix = "" if len(scores.targets) == 1 else f"{name}."
        row: dict[str, float | None]
        more: dict[str, float | None]
        if isinstance(found, ClassScores):
            row = {"accuracy": found.accuracy.value, "macro_f1": found.macro_f1.value}
            agreement = None if found.agreement is None else found.agreement.value
            more = {"nll": found.nll, "calibration_error": found.calibration_error}
            more |= {"agreement": agreement, "kl": found.kl}
        elif isinstance(found, LabelScores):
            row = {"micro_f1": found.micro_f1.value, "macro_f1": found.macro_f1.value}
            more = {"exact": found.exact, "nll": found.nll, "agreement": found.agreement}
        else:
            row = {"r2": found.r2.value, "rmse": found.rmse.value, "mae": found.mae.value}
            more = {"to_teacher": found.to_teacher}
        if not brief:
            row |= more
        flat |= {f"{prefix}{key}": value for key, value in row.items() if value is not None}
    return flat


def _write_curves(file: Path, stage: Stage, todo: list[Candidate]) -> None:
    """One line an epoch and model, from each model's own history."""
    targets = stage.params.data.columns.targets
    own = METRICS[next(iter(targets.values()))] if len(targets) == 1 else ()
    names = [*own, "nll", "score"]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", "model", *names])
        for candidate in todo:
            with (stage.path(candidate.folder) / "history.csv").open(newline="", encoding="utf-8") as history:
                for line in csv.DictReader(history):
                    writer.writerow([int(float(line["epoch"])), title(candidate.name), *(line[name] for name in names)])


def _write_confusion(file: Path, columns: Columns, outputs: Outputs) -> None:
    """One line a labelled row of the first target with classes: its class, and what the shipped student says."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        for name, spec in columns.schema.targets.items():
            if spec.kind == "classes":
                target = columns.targets[name]
                predicted = outputs[:, columns.schema.part(name)].argmax(axis=1)
                rows = np.flatnonzero(spec.known(target))
                writer.writerows((spec.names[target[row]], spec.names[predicted[row]]) for row in rows)
                return
