"""One training of a comparison, in a process of its own: trained by the stages' own code, measured, written down."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from distillery.config import Config
from distillery.errors import UserError
from tasks.comparison.plan import PLAIN, Job
from tasks.folders import STATE
from tasks.params import parse

FOLDER = STATE / "compare"
STAGING = "staging"


class Result(Config):
    """What a training led to.

    Attributes:
        validation: scores of the epoch that the validation split picked; see `distillery.scores`.
        test: scores of the same weights.
        epoch: the picked one.
        steps: of the training.
        seconds: processor time of the training; on an accelerator time of day.
        parameters: of the student.
        extra_parameters: trained beside it and left behind: of objectives, discriminators, peers, exits.
        warnings: what the training said.
    """

    validation: dict[str, float]
    test: dict[str, float]
    epoch: int
    steps: int
    seconds: float
    parameters: int
    extra_parameters: int
    warnings: list[str]

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Reads a finished training; None: there is none, or one of another version."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def begin(root: Path, threads: int) -> None:
    """Prepares a worker: it ends with its parent, leaves Ctrl-C to it, and loads the science once."""
    from tasks import environment
    from tasks.stage import parent_watchdog

    # Read when PyTorch is loaded, so set before; what the user has set wins.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent_watchdog()
    environment.enter(root)
    with environment.quick_imports():
        import torch

        import tasks.distill
        import tasks.train_baseline  # noqa: F401

        # PyTorch loads its compiler when it makes its first optimiser; the first training must not pay for that.
        torch.optim.AdamW([torch.zeros(1)])


def file_of(folder: Path, job: Job) -> Path:
    """Where the result of a training stands."""
    return folder / f"{job.key}.json"


def train(root: Path, folder: Path, job: Job) -> Result:
    """Trains one student as the pipeline would, scores it on validation and test, and writes the result.

    Args:
        root: the project's folder, the stages up to the soft targets done.
        folder: gets the file, at once and whole.
        job: what to train.

    Raises:
        UserError: where the method does not fit the data or the models.
    """
    import torch

    from distillery.columns import Columns
    from distillery.saved import load_model, predict
    from distillery.scores import scores
    from tasks import distill, train_baseline
    from tasks.progress import Silent
    from tasks.stage import Stage, seed
    from tasks.tracking.tracker import NoRun

    params = parse({**job.entry.document, "seed": job.seed})
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    with _staging(folder) as place:
        progress = Silent()
        # The stage's own code on the project's own files; what it writes never leaves this folder.
        stage = Stage(job.title, root, params, NoRun(), progress, Path(place) / "state", Path(place))
        seed(job.seed)
        began = clock()
        if job.entry.method == PLAIN:
            facts, output = train_baseline.run(stage), "models/baseline"
        else:
            facts, output = distill.run(stage), "models/distilled"
        seconds = clock() - began
        network = load_model(Path(place) / output)
    found = {}
    for split in ("validation", "test"):
        columns = Columns.open(root / "data" / "prepared" / split)
        found[split] = scores(predict(network, columns), columns.targets, columns.schema)
    result = Result(
        validation=found["validation"],
        test=found["test"],
        epoch=int(facts["best_epoch"]),
        steps=int(facts["steps"]),
        seconds=seconds,
        parameters=network.parameter_count,
        extra_parameters=int(facts["trained_parameters"]) - network.parameter_count,
        warnings=progress.said,
    )
    _write(file_of(folder, job), result.model_dump_json(indent=2))
    return result


def latency(root: Path, folder: Path, job: Job) -> float:
    """Milliseconds of one row on one thread, of the ONNX file of a student's architecture, whatever its weights."""
    import json

    from distillery.columns import Columns
    from distillery.onnx_export import export
    from distillery.timing import measure
    from tasks.progress import Silent
    from tasks.stage import Stage
    from tasks.tracking.tracker import NoRun
    from tasks.training.fitting import Splits, start

    file = folder / f"latency-{job.key}.json"
    if file.exists():
        return float(json.loads(file.read_text(encoding="utf-8")))
    params = parse({**job.entry.document, "seed": job.seed})
    with _staging(folder) as place:
        stage = Stage("latency", root, params, NoRun(), Silent(), Path(place), Path(place))
        network = start(stage, params.student, Splits.open(stage))
        model = Path(place) / "student.onnx"
        export(network, model)
        test = Columns.open(root / "data" / "prepared" / "test")
        found = measure({job.entry.student: (model, test.select(network.schema))})[job.entry.student].latency_ms
    _write(file, json.dumps(found))
    return found


def clean(folder: Path) -> None:
    """Removes what killed trainings left."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    (folder / STAGING).mkdir(parents=True)


def _staging(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder on the project's own disk that goes when the work ends."""
    try:
        return tempfile.TemporaryDirectory(dir=folder / STAGING)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): check its permissions and the disk") from error


def _write(file: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(file)
