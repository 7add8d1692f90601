"""The main job with three seeds: what distillation gains, teacher and all trained anew each time."""

import json
import re
from pathlib import Path

from benchmarks.interleaved import Result
from benchmarks.project import Project

SEEDS = (1, 2, 3)
MODELS = {"teacher-resnet": "teacher", "baseline": "student alone", "distilled": "distilled", "finetuned": "fine-tuned"}


def measure(folder: Path) -> list[Result]:
    """Test accuracy of every model with every seed, in percent."""
    project = Project.copy(folder / "project")
    file = project.root / "params.yaml"
    runs = []
    for seed in SEEDS:
        file.write_text(re.sub(r"(?m)^seed: \d+", f"seed: {seed}", file.read_text(encoding="utf-8")), encoding="utf-8")
        project.python("-m", "dvc", "repro")
        runs.append(json.loads((project.root / "reports" / "metrics.json").read_text(encoding="utf-8")))
    accuracy = {model: [100 * run[model]["accuracy"] for run in runs] for model in MODELS}
    gains = [ours - alone for ours, alone in zip(accuracy["distilled"], accuracy["baseline"], strict=True)]
    names = ", ".join(map(str, SEEDS))
    return [
        *(
            Result(f"main job, {told}, test accuracy, seeds {names}", _listed(accuracy[model]), "", True)
            for model, told in MODELS.items()
        ),
        Result("main job, distilled minus student alone, points", _listed(gains), ">= 5 each", min(gains) >= 5),
    ]


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
