"""What a flow run leaves in Prefect: progress, a table of what was found, a link to its page."""

from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows import summary
from tasks.reporting import wording
from tasks.results import EVALUATION, Evaluation, title


class Share:
    """How much of a run is done."""

    def __init__(self, total: int, of: str = "stages", done: int = 0) -> None:
        self._total = total
        self._done = done
        self._artifact = UUID(str(create_progress_artifact(self._percent, key="progress", description=of)))

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        update_progress_artifact(self._artifact, self._percent)

    @property
    def _percent(self) -> float:
        return 100.0 * self._done / self._total


def results(root: Path) -> None:
    """The models of `reports/evaluation.json` beside each other, and where the report is."""
    evaluation = Evaluation.read(root / EVALUATION)
    headings = ["model", *summary.figures(evaluation), "parameters", "size", "ms/row", "rows/s"]
    rows = []
    for name, model in evaluation.models.items():
        label = f"{title(name)}{' *' if name == evaluation.shipped.candidate else ''}"
        line = summary.cells(label, model.test, model.onnx, wording.count(model.parameters), narrow=False)
        rows.append(dict(zip(headings, line, strict=True)))
    create_table_artifact(rows, key="metrics", description="Test split, in percent with intervals; * ships")
    link(root / "reports" / "report.html", "report", "The report of this run")


def link(file: Path, key: str, description: str) -> None:
    """Where a page is."""
    create_link_artifact(file.as_uri(), link_text=file.name, key=key, description=description)
