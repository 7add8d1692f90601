"""Every candidate as an ONNX file, checked against PyTorch; an int8 variant of the students where accuracy holds."""

from pathlib import Path

import numpy as np

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.exits import shortened
from distillery.inference import open_session, predict
from distillery.models import Network
from distillery.onnx_export import Check, check, digest, export, quantise
from distillery.saved import load_model
from distillery.saved import predict as predict_by_pytorch
from distillery.scores import scores
from tasks.results import ExportedModel, ExportReport, Int8, candidates
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Reads the saved models and all splits, writes `models/onnx/<candidate>[.int8].onnx` and `export.json`.

    A student that keeps its exits gets a shorter file for each, `<candidate>-exit-1.onnx` for the shallowest.
    """
    folder = stage.output("models/onnx")
    folder.mkdir()
    splits = {name: Columns.open(stage.path(f"data/prepared/{name}")) for name in ("train", "validation", "test")}
    models = {}
    todo = [candidate for candidate in candidates(stage.params) if candidate.exported]
    for candidate in stage.progress.track(todo, "Exporting to ONNX", len(todo)):
        network = load_model(stage.path(candidate.folder))
        reading = {name: columns.select(network.schema) for name, columns in splits.items()}
        int8 = candidate.is_student and stage.params.export.int8
        model = _exported(stage, network, folder / f"{candidate.name}.onnx", reading, int8=int8)
        exits = tuple(
            _exported(
                stage, shortened(network, number), folder / f"{candidate.name}-exit-{number}.onnx", reading, int8=False
            )
            for number, _ in enumerate(network.exits, 1)
            if candidate.is_student
        )
        models[candidate.name] = model.model_copy(update={"exits": exits})
    rows = {name: len(columns) for name, columns in splits.items()}
    ExportReport(rows=rows, models=models).write(folder / "export.json")
    kept = [name for name, model in models.items() if model.int8 and model.int8.kept]
    return {
        "models": len(models),
        "largest_difference": max(model.largest_difference for model in models.values()),
        "int8_kept": ", ".join(kept) or "none",
    }


def _exported(stage: Stage, network: Network, file: Path, splits: dict[str, Columns], *, int8: bool) -> ExportedModel:
    """Writes and checks one file."""
    export(network, file)
    found = check(file, predict_by_pytorch(network, splits["test"]), splits["test"])
    outputs = predict(open_session(file), splits["validation"])
    score = _score(outputs, splits["validation"])
    return ExportedModel(
        file=file.name,
        size=file.stat().st_size,
        sha256=digest(file),
        largest_difference=_rounded(found.largest_difference),
        equal_argmax=found.equal_argmax,
        score=score,
        int8=_int8(stage, file, score, outputs, splits) if int8 else None,
    )


def _score(outputs: np.ndarray, columns: Columns) -> float:
    """Accuracy, micro-F1 or R2, averaged over the targets."""
    return scores(outputs, columns.targets, columns.schema)["score"]


def _int8(stage: Stage, file: Path, score: float, outputs: np.ndarray, splits: dict[str, Columns]) -> Int8:
    """Quantises one model and keeps the file where it is smaller and the validation split says that the score holds."""
    target = file.with_suffix(".int8.onnx")
    validation = splits["validation"]
    try:
        quantise(file, target, splits["train"])
        quantised = predict(open_session(target), validation)
    except UserError as error:
        # A model that cannot be quantised is still deployed as float32.
        target.unlink(missing_ok=True)
        return Int8(kept=False, reason=str(error))
    found = Check.of(outputs, quantised, validation.schema)
    size, before = target.stat().st_size, file.stat().st_size
    reached = _score(quantised, validation)
    allowed = stage.params.export.int8_max_loss
    loss = score - reached
    # Both are counts over the same rows: a loss of exactly what is allowed must not fail by rounding.
    kept = bool(np.isfinite(quantised).all()) and loss <= allowed + 1e-9 and size < before
    if not kept:
        target.unlink()
    outcome = (
        f"lost {loss:.4f}, {'within' if loss <= allowed + 1e-9 else 'more than'} the {allowed:g} allowed"
        if loss > 0
        else "none lost"
    ) + ("" if size < before else f"; the file is no smaller ({size:,} bytes against {before:,})")
    return Int8(
        kept=kept,
        reason=f"validation score {reached:.4f} against {score:.4f} in float32: {outcome}",
        file=target.name if kept else None,
        size=size,
        score=reached,
        largest_difference=_rounded(found.largest_difference),
        equal_argmax=found.equal_argmax,
    )


def _rounded(difference: float) -> float:
    """Two digits: the others depend on how many threads PyTorch used, and outputs must not."""
    return float(f"{difference:.1e}")
