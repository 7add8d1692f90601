"""What it costs to start: the command line, and one process with all that the training stages need."""

import statistics
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.interleaved import Result, seconds

ROOT = Path(__file__).parents[1]
STAGES = "import tasks.train_teacher, tasks.soft_targets, tasks.distill, tasks.finetune, tasks.tracking.tracker, mlflow"


def measure(folder: Path) -> list[Result]:
    """Wall-clock seconds of `--help`, processor seconds of the imports."""
    times = seconds({"help": lambda: _run("-m", "flows", "--help")}, rounds=9)["help"]
    cpu = statistics.median(_cpu_seconds("-c", STAGES) for _ in range(5))
    return [
        Result(
            "`python -m flows --help`, s", f"{statistics.median(times):.2f}", "<= 0.3", statistics.median(times) <= 0.3
        ),
        Result("one process importing what training stages need, cpu-s", f"{cpu:.1f}", "<= 4", cpu <= 4),
    ]


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _cpu_seconds(*arguments: str) -> float:
    before = psutil.Process().cpu_times()
    _run(*arguments)
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system
