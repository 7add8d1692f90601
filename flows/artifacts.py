"""What a flow run leaves in Prefect for whoever looks there: progress, a table of the models, a link to the report."""

from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from tasks.results import EVALUATION, Evaluation, title


class Share:
    """How much of a run is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._artifact = UUID(str(create_progress_artifact(0.0, key="progress", description="stages")))

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        update_progress_artifact(self._artifact, 100.0 * self._done / self._total)


def results(root: Path) -> None:
    """The models of `reports/evaluation.json` beside each other, and where the report is."""
    evaluation = Evaluation.read(root / EVALUATION)
    rows = [
        {
            "model": f"{title(name)}{' (ships)' if name == evaluation.shipped.candidate else ''}",
            "accuracy": round(model.test.accuracy.value, 4),
            "macro-F1": round(model.test.macro_f1.value, 4),
            "parameters": model.parameters,
            "bytes": model.onnx.size if model.onnx else None,
            "ms/row": round(model.onnx.latency_ms, 4) if model.onnx else None,
        }
        for name, model in evaluation.models.items()
    ]
    create_table_artifact(rows, key="metrics", description="Test split")
    report = root / "reports" / "report.html"
    create_link_artifact(report.as_uri(), link_text=report.name, key="report", description="The report of this run")
