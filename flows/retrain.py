"""`python -m flows retrain`: what has to be in order before Prefect is imported, and what is told at the end."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows import prefect_api
from tasks import environment, folders
from tasks.dvc_graph import Graph
from tasks.params import load
from tasks.promotion.telling import say
from tasks.retraining import telling, versions
from tasks.retraining.incoming import INCOMING, Journal, locked, waiting
from tasks.retraining.results import RETRAINING, Retraining

if TYPE_CHECKING:
    from rich.table import Table


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
    if waiting(root) or Journal.read(root) is not None:
        return False
    return not any(graph.changed(step.name) for step in graph.plan())


def _tell(root: Path, found: Retraining) -> None:
    """Batches, what has drifted, and the outcome."""
    from rich.console import Console

    from flows.summary import LOG_WIDTH

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    console.print()
    if found.batches:
        console.print(_table(telling.rows(found), "rows", "new", "labels"))
    for batch in found.batches:
        if batch.drift:
            console.print(f"{batch.name} against the data before it:", highlight=False, markup=False)
            console.print(_table(telling.drift_rows(batch), "moved, %", "p"))
    console.print(telling.summary(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"details     {root / RETRAINING}", highlight=False, soft_wrap=True)


def _table(lines: list[dict[str, str]], *figures: str) -> "Table":
    """Lines under the names of their columns, figures to the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in lines[0]:
        table.add_column(name, justify="right" if name in figures else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line.values()))
    return table
