"""Ten methods with five seeds on digits: one comparison against fifty runs of their own."""

import re
import statistics
import time
from pathlib import Path

from benchmarks.interleaved import Result
from benchmarks.project import Project

METHODS = ("dkd", "dist", "mse_teacher", "hints", "attention", "rkd", "pkt", "cc")  # beside plain and kd
SEEDS = 5
MEASURED = 3


def measure(folder: Path) -> list[Result]:
    """Wall-clock seconds of a comparison, and of separate runs, extrapolated from three of each kind."""
    project = Project.copy(folder / "project")
    project.python("-m", "flows", "init", "digits", "--force")
    shared = _seconds(project, "-m", "dvc", "repro", "distill", "train_baseline")
    ours = _seconds(project, "-m", "flows", "compare", "--objectives", ",".join(METHODS), "--seeds", str(SEEDS))
    file = project.root / "params.yaml"
    alone, whole = [], []
    for seed in range(1, MEASURED + 1):
        file.write_text(re.sub(r"(?m)^seed: \d+", f"seed: {seed}", file.read_text(encoding="utf-8")), encoding="utf-8")
        # The stage by itself: the teacher and its soft targets are there.
        alone.append(_seconds(project, "-m", "tasks", "distill"))
        whole.append(_seconds(project, "-m", "dvc", "repro", "distill"))
    runs = SEEDS * (len(METHODS) + 2)
    told = f"{runs} separate, extrapolated from {MEASURED}"
    stages, everything = runs * statistics.median(alone), runs * statistics.median(whole)
    return [
        Result(f"comparison of {runs} trainings on digits, seconds", f"{ours:.0f}", "", True),
        Result("the first run that makes teacher and soft targets, seconds", f"{shared:.0f}", "", True),
        Result(
            f"comparison / {told}, teacher and soft targets shared",
            f"{ours / stages:.2f}",
            "<= 0.5",
            ours <= 0.5 * stages,
        ),
        Result(
            f"comparison / {told}, each with a teacher of its own",
            f"{ours / everything:.2f}",
            "<= 0.3",
            ours <= 0.3 * everything,
        ),
    ]


def _seconds(project: Project, *arguments: str) -> float:
    start = time.perf_counter()
    project.python(*arguments)
    return time.perf_counter() - start
