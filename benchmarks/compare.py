"""Ten methods with five seeds on digits: one comparison against fifty runs of their own."""

import time
from pathlib import Path

from benchmarks.interleaved import Result
from benchmarks.project import Project

METHODS = ("dkd", "dist", "mse_teacher", "hints", "sp", "pkt", "cc", "irg")  # beside plain and kd
SEEDS = 5


def measure(folder: Path) -> list[Result]:
    """Wall-clock seconds of a comparison, and of separate runs: each method once, times the seeds."""
    project = Project.copy(folder / "project")
    project.python("-m", "flows", "init", "digits", "--force")
    shared = _seconds(project, "-m", "dvc", "repro", "validate_soft_targets")
    ours = _seconds(project, "-m", "flows", "compare", "--objectives", ",".join(METHODS), "--seeds", str(SEEDS))
    alone = _seconds(project, "-m", "tasks", "train_baseline")
    for method in ("kd", *METHODS):
        project.python("-m", "flows", "compare", "--adopt", method)
        alone += _seconds(project, "-m", "tasks", "distill")
    runs = SEEDS * (len(METHODS) + 2)
    separate = SEEDS * alone
    whole = separate + runs * shared
    told = f"{runs} separate processes ({separate:.0f} s, from one of each method)"
    return [
        Result(f"comparison of {runs} trainings on digits, seconds", f"{ours:.0f}", "", True),
        Result(f"the same / {told}", f"{ours / separate:.2f}", "<= 0.5", ours <= 0.5 * separate),
        Result(
            f"the same / each with its own teacher and soft targets ({whole:.0f} s)",
            f"{ours / whole:.2f}",
            "<= 0.25",
            ours <= 0.25 * whole,
        ),
    ]


def _seconds(project: Project, *arguments: str) -> float:
    start = time.perf_counter()
    project.python(*arguments)
    return time.perf_counter() - start
