"""`python -m flows run`: what has to be in order before Prefect is imported, and what is told at the end."""

from pathlib import Path

from flows.services import prefect_api
from flows.terminal import say, wide
from tasks import environment, folders
from tasks.params import load
from tasks.versioning.graph import Graph


def run(root: Path, stages: list[str], *, force: bool, wait: bool) -> int:
    """Brings stages up to date through Prefect; returns the exit code.

    Raises:
        UserError: where params, stage names or servers are not in order, another run holds the pipeline, or a stage
            fails.
    """
    load(root)
    environment.enter(root)
    folders.make_standing(root)
    with environment.quick_imports():
        graph = Graph.open(root)
        steps = graph.plan(stages)
    with graph.hold([step.name for step in steps], wait=say if wait else None):
        with prefect_api.available(root, say) as dashboard:
            with environment.quick_imports():
                from flows import pipeline

            pipeline.run(root, stages, force)
        if not stages:
            _tell(root, dashboard)
    return 0


def _tell(root: Path, dashboard: str | None) -> None:
    """The result, and what to do next."""
    from flows import summary

    console = wide()
    summary.show(root, console)
    console.print(f"report      {root / 'reports' / 'report.html'}", highlight=False, soft_wrap=True)
    if dashboard:
        console.print(f"dashboard   {dashboard}", highlight=False, soft_wrap=True)
    else:
        console.print("dashboards  python -m flows server", highlight=False)
    console.print("next        `dvc repro` finds nothing left to do; change params.yaml and run again", highlight=False)
    console.print("your data   README.md, section 'Your own data'", highlight=False)
