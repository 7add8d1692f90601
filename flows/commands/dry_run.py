"""`python -m flows run --dry-run`: what would happen and why; nothing is changed and no server is needed."""

from dataclasses import dataclass
from pathlib import Path

from tasks import environment, folders
from tasks.params import load
from tasks.versioning.graph import Graph, Reasons, Step

CACHED, RESTORE, RUN, FOLLOWS = "cached", "restore", "run", "follows"


@dataclass(frozen=True)
class Forecast:
    """What would become of a stage.

    Attributes:
        name: of the stage.
        action: cached; restore: DVC's run cache has the result; run; follows: depends on what a stage before it makes.
        why: the reasons.
    """

    name: str
    action: str
    why: str


def forecast(graph: Graph, steps: list[Step], forced: set[str]) -> list[Forecast]:
    """Foretells a run, stage by stage."""
    told: list[Forecast] = []
    open_: set[str] = set()  # stages whose outputs may become others than dvc.lock says
    settled: set[str] = set()  # outputs that come back as dvc.lock says
    for step in steps:
        before = [name for name in step.upstream if name in open_]
        reasons = _without(graph.why(step.name), settled)
        if step.name in forced:
            one = Forecast(step.name, RUN, "forced")
        elif before:
            one = Forecast(step.name, FOLLOWS, ", ".join(before))
        elif not reasons:
            one = Forecast(step.name, CACHED, "")
        elif step.is_source:
            one = Forecast(step.name, RUN, f"new version is recorded: {reasons}")
        else:
            comes_back = graph.is_kept(step.name) if reasons.is_about_outputs else graph.can_restore(step.name)
            one = Forecast(step.name, RESTORE if comes_back else RUN, str(reasons))
        if one.action == RESTORE and reasons.is_about_outputs:
            settled |= set(graph.outputs(step.name))
        elif one.action != CACHED:
            open_.add(step.name)
        told.append(one)
    return told


def show(root: Path, stages: list[str], force: bool) -> int:
    """Prints the forecast; returns the exit code.

    Raises:
        UserError: where params or stage names are not in order.
    """
    from rich.console import Console
    from rich.table import Table

    load(root)
    environment.enter(root)
    folders.make_standing(root)
    graph = Graph.open(root)
    steps = graph.plan(stages)
    forced = {step.name for step in steps if step.is_named(stages)} if force else set()
    table = Table("stage", "would", "why", box=None, pad_edge=False)
    colours = {CACHED: "dim", RESTORE: "cyan", RUN: "yellow", FOLLOWS: "yellow"}
    for one in forecast(graph, steps, forced):
        why = f"after {one.why}" if one.action == FOLLOWS else one.why
        table.add_row(one.name, f"[{colours[one.action]}]{one.action}[/]", why)
    Console().print(table)
    return 0


def _without(reasons: Reasons, settled: set[str]) -> Reasons:
    """Leaves out dependencies that are about to come back as they were, also those that lie in a folder depended on."""
    left = {
        path: what
        for path, what in (reasons.dependencies or {}).items()
        if not any(out == path or out.startswith(f"{path}/") for out in settled)
    }
    return Reasons(reasons.stage, left, reasons.outputs)
