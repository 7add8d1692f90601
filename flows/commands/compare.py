"""`python -m flows compare`: what has to be in order before Prefect is imported, and what is told at the end."""

import hashlib
import json
import os
from pathlib import Path

from flows.commands.dry_run import CACHED, forecast
from flows.services import prefect_api
from flows.terminal import say, wide
from tasks import environment, folders
from tasks.comparison import job
from tasks.comparison import plan as planning
from tasks.comparison.job import FOLDER, Result
from tasks.comparison.plan import Plan
from tasks.versioning.graph import Graph, Step


def compare(
    root: Path,
    objectives: list[str],
    students: list[str],
    seeds: int | None,
    *,
    workers: int | None,
    dry_run: bool,
    wait: bool,
) -> int:
    """Trains what is missing of a comparison and shows the leaderboard; returns the exit code.

    Args:
        root: the project's folder.
        objectives: see `tasks.comparison.plan.make`.
        students: see there.
        seeds: see there.
        workers: processes; by default one a core.
        dry_run: only tell what would be trained.
        wait: wait while another run holds the pipeline.

    Raises:
        UserError: where names, params or servers are not in order, another run holds the pipeline, or something fails.
    """
    plan = planning.make(root, objectives, students, seeds)
    environment.enter(root)
    folders.make_standing(root)
    folders.prune(root, plan.params)
    for title, why in plan.left_out.items():
        say(f"left out: {title}: {why}")
    with environment.quick_imports():
        graph = Graph.open(root)
        targets = ["prepare", *(f"validate_soft_targets@{key}" for key in plan.teachers)]
        steps = graph.plan(targets)
    if dry_run:
        return _foretell(root, graph, steps, plan)
    number = workers or os.cpu_count() or 1
    with graph.hold([step.name for step in steps], wait=say if wait else None):
        with prefect_api.available(root, say) as dashboard:
            with environment.quick_imports():
                from flows import comparison

            board = comparison.run(root, plan, targets, number)
        from flows import standings
        from tasks.comparison import page

        console = wide(standings.LOG_WIDTH)
        standings.show(board, console)
        console.print(f"page     {root / page.FILE}", highlight=False, soft_wrap=True)
        if dashboard:
            console.print(f"flow     {dashboard}", highlight=False, soft_wrap=True)
        console.print("next     python -m flows compare --adopt [NAME]", highlight=False, markup=False)
    return 0


def adopt(root: Path, name: str | None) -> int:
    """Takes a method of the leaderboard into `params.yaml`; returns the exit code.

    Raises:
        UserError: see `tasks.comparison.adopt.adopt`.
    """
    from tasks.comparison.adopt import adopt as take

    found, difference = take(root, name)
    print(difference or f"params.yaml holds {found} already")
    print("next: `python -m flows run --dry-run` tells what that makes stale, `python -m flows run` makes it")
    return 0


def folder_of(root: Path, graph: Graph) -> Path:
    """Where trainings on the present data, soft targets and code stand, whatever was compared on them before.

    Raises:
        UserError: where one of the inputs is missing.
    """
    graph.plan(["distill"])
    files = [graph.inputs(stage).files for stage in ("prepare", "distill")]
    measured_by = Path(job.__file__).read_text(encoding="utf-8")
    text = json.dumps([files, measured_by], sort_keys=True)
    return root / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def _foretell(root: Path, graph: Graph, steps: list[Step], plan: Plan) -> int:
    """Prints the trainings that a comparison is made of; an estimate only where some of the same kind have run."""
    from rich.console import Console
    from rich.table import Table

    stale = [one.name for one in forecast(graph, steps, set()) if one.action != CACHED]
    done: dict[str, Result] = {}
    if not stale:
        folder = folder_of(root, graph)
        done = {one.key: found for one in plan.jobs if (found := Result.read(job.file_of(folder, one)))}
    table = Table("method", "student", "seeds", "done", box=None, pad_edge=False)
    for entry in plan.entries:
        ready = sum(one.entry is entry and one.key in done for one in plan.jobs)
        table.add_row(entry.method, entry.student, ", ".join(map(str, plan.seeds)), str(ready))
    console = Console()
    if stale:
        console.print(f"first: {', '.join(stale)}", highlight=False)
    console.print(table)
    left = [one for one in plan.jobs if one.key not in done]
    known = {one.entry.title: done[one.key].seconds for one in plan.jobs if one.key in done}
    text = f"{len(plan.jobs)} trainings, {len(left)} of them to do"
    if left and all(one.entry.title in known for one in left):
        text += f", about {sum(known[one.entry.title] for one in left):.0f} s of one core"
    console.print(text, highlight=False)
    return 0
