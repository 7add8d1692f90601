"""A stage with its run in MLflow: what both doors do once they know that a stage has to be computed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.progress import Progress
from tasks.stage import Summary, execute
from tasks.tracking import lineage
from tasks.versioning.graph import Inputs

if TYPE_CHECKING:
    from tasks.tracking.tracker import Tracker


def run(
    name: str,
    root: Path,
    inputs: Inputs,
    tracker: "Tracker",
    *,
    parent: str | None = None,
    progress: Progress | None = None,
    record: Callable[[], None] = lambda: None,
) -> Summary:
    """Computes a stage under a run that carries its key, revision and input hashes.

    Args:
        name: of the stage.
        root: the project's folder.
        inputs: what it is made from.
        tracker: where the run goes.
        parent: the run of the flow.
        progress: the flow's bars.
        record: notes what was made.

    Raises:
        UserError: see `tasks.stage.execute`.
    """
    run = tracker.start_run(name, lineage.tags(root, name, inputs), parent)
    for path, digest in lineage.datasets(inputs).items():
        run.log_dataset(path, digest, path)
    return execute(name, root, run=run, key=inputs.key, progress=progress, record=record)
