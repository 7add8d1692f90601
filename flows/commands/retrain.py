"""`python -m flows retrain`: what has to be in order before Prefect is imported, and what is told at the end."""

from pathlib import Path

from flows.services import prefect_api
from flows.terminal import say, table_of, wide
from tasks import environment, folders
from tasks.params import load
from tasks.retraining import telling, versions
from tasks.retraining.incoming import INCOMING, Journal, locked, waiting
from tasks.retraining.results import RETRAINING, Retrained
from tasks.versioning.graph import Graph


def retrain(root: Path, *, wait: bool) -> int:
    """Takes in what lies in `data/incoming`, runs the pipeline and promotes behind the gate; returns the exit code.

    Raises:
        UserError: where params, Git, remotes or servers are not in order, another retraining runs, or a stage fails.
    """
    params = load(root)
    environment.enter(root)
    folders.make_standing(root)
    with locked(root, say if wait else None):
        with environment.quick_imports():
            graph = Graph.open(root)
        versions.check(root, graph, params.retraining)
        if is_idle(root, graph):
            print(f"nothing new in {INCOMING}/, and nothing is stale")
            return 0
        with prefect_api.available(root, say):
            with environment.quick_imports():
                from flows import retraining
            found = retraining.run(root)
    _tell(root, found)
    return 0


def is_idle(root: Path, graph: Graph) -> bool:
    """Whether nothing has arrived, nothing was interrupted, and every stage is up to date."""
    return not waiting(root) and Journal.left(root) is None and not graph.is_stale()


def _tell(root: Path, found: Retrained) -> None:
    """Batches, what has drifted, and the outcome."""
    console = wide()
    console.print()
    if found.batches:
        console.print(table_of(telling.rows(found), right=("rows", "new", "labels")))
    for batch in found.batches:
        if batch.drift:
            console.print(f"{batch.name} against the data before it:", highlight=False, markup=False)
            console.print(table_of(telling.drift_rows(batch), right=("moved, %", "p")))
    console.print(telling.summary(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"details     {root / RETRAINING}", highlight=False, soft_wrap=True)
