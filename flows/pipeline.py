"""The Prefect flow: the stages of DVC's graph, in DVC's order, each as one task run.

DVC alone knows what is stale, so Prefect's caching is off; only names and states pass between task runs. DVC's objects
belong to one thread, so the tasks run one after another in the main thread.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from rich.markup import escape

from distillery.errors import UserError
from flows.registry import registration as registry
from flows.services import artifacts, patience
from flows.services.supervised import supervised
from tasks import failures, folders
from tasks.params import Params, load
from tasks.progress import Progress
from tasks.stage import Summary
from tasks.tracking import lineage, tracked
from tasks.tracking.tracker import Run, Tracker
from tasks.versioning.graph import Graph, Step

REGISTER = "register"
Work = Callable[[], tuple[State[Any], str]]  # the state, and a few words for the terminal
FIGURES = 2  # of a stage's summary, in its line in the terminal


class Walk:
    """One run through the graph.

    Attributes:
        states: name of a stage -> what Prefect knows of its task run.
        failed: stages that raised.
    """

    def __init__(
        self,
        root: Path,
        graph: Graph,
        params: Params,
        tracker: Tracker,
        run: Run,
        progress: Progress,
        forced: set[str],
        steps: int,
    ) -> None:
        self.root = root
        self.states: dict[str, State[Any]] = {}
        self.failed: list[str] = []
        self._graph = graph
        self._params = params
        self._tracker = tracker
        self._run = run
        self._progress = progress
        self._forced = forced
        self._share = artifacts.Share(steps)
        self._origins: dict[str, str] = {}

    def stage(self, step: Step) -> None:
        """Brings one stage up to date, unless a stage before it did not succeed."""

        def body() -> State[Any]:
            return self._told(step.name, lambda: self._bring_up_to_date(step))

        self._run_task(step.name, body, [self.states[name] for name in step.upstream if name in self.states])

    def register(self) -> None:
        """Registers the models, once every stage has succeeded."""

        def work() -> tuple[State[Any], str]:
            found = registry.register(self.root, self._tracker, self._run.id)
            text = ", ".join(f"{one.name} version {one.version}" for one in found)
            is_new = any(one.is_new for one in found)
            return Completed(name=None if is_new else "Cached", message=text), text

        self._run_task(REGISTER, lambda: self._told(REGISTER, work), list(self.states.values()))

    def note_origins(self) -> None:
        """Tells the flow's MLflow run which runs made what was not computed this time."""
        self._run.set_tags(self._origins)

    def _run_task(self, name: str, body: Callable[[], State[Any]], upstream: list[State[Any]]) -> None:
        settings: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False} | patience.options()
        state = task(name=name, task_run_name=name, **settings)(body)(wait_for=upstream, return_state=True)
        if state.name == "NotReady":
            self._progress.say(f"[dim]- {name:<30} NotReady[/dim]")
        self.states[name] = state
        self._share.advance()

    def _told(self, name: str, work: Work) -> State[Any]:
        """Does the work and says in one line how it went."""
        began = time.monotonic()
        try:
            state, text = work()
        except Exception as error:
            self.failed.append(name)
            self._progress.say(f"[red]✗[/red] {name:<30} [red]Failed[/red]    {time.monotonic() - began:6.1f} s")
            self._progress.console.print(failures.told(error, self.root, name), markup=False, soft_wrap=True)
            raise
        if name in self.failed:
            self.failed.remove(name)  # an earlier try
        told = f"{name:<30} {state.name or 'Completed':<9} {time.monotonic() - began:6.1f} s"
        self._progress.say(f"[green]✓[/green] {told}  [dim]{escape(text)}[/dim]")
        return state

    def _bring_up_to_date(self, step: Step) -> tuple[State[Any], str]:
        """Keeps, restores or computes a stage; returns its state and a few figures."""
        name, graph = step.name, self._graph
        if step.is_source:
            changed = graph.record_source(name)
            text = "new version recorded" if changed else ""
            return Completed(name=None if changed else "Cached", message=text), text
        if name not in self._forced:
            if not graph.changed(name):
                return self._found(name, "Cached", "nothing it depends on has changed")
            self._prune(name)
            if graph.restore(name):
                return self._found(name, "Restored", "taken from DVC's run cache")
        else:
            self._prune(name)
            graph.remove_outputs(name)
        try:
            summary = self._compute(name)
        except BaseException:
            # Whatever happened, nothing that dvc.lock does not know stays behind. Checkpoints do.
            graph.remove_outputs(name)
            raise
        text = _figures(summary)
        return Completed(message=text), text

    def _compute(self, name: str) -> Summary:
        inputs = self._graph.inputs(name)
        return tracked.run(
            name,
            self.root,
            inputs,
            self._tracker,
            parent=self._run.id,
            progress=self._progress,
            record=lambda: self._graph.record(name, inputs),
        )

    def _prune(self, name: str) -> None:
        if name == "distill":
            for path in folders.prune(self.root, self._params):
                self._progress.say(f"removed {path}, left by a teacher that is no longer in params.yaml")

    def _found(self, name: str, what: str, message: str) -> tuple[State[Any], str]:
        """A stage whose result exists, with the MLflow run that made it."""
        origin = self._tracker.find(self._graph.key(name))
        self._origins[f"{what.lower()}.{name}"] = origin or "unknown"
        return Completed(name=what, message=f"{message}; made by MLflow run {origin or 'unknown'}"), ""


@flow(name="distillation", retries=0, persist_result=False)
def distillation(stages: list[str] | None = None, force: bool = False) -> State[Any]:
    """Brings stages up to date, those they depend on included, and registers the models at the end of a full run.

    It works in the current folder.

    Args:
        stages: names; none: all.
        force: compute the named stages (else all) even where they are fresh.

    Raises:
        UserError: where something failed; each failure has been told by then.
    """
    root = Path.cwd()
    params = load(root)
    graph = Graph.open(root)
    targets = stages or []
    steps = graph.plan(targets)
    # A run of a schedule waits for whoever works on the files; one by hand has been told who that is.
    with Progress() as progress, graph.hold([step.name for step in steps], wait=progress.say):
        tracker = patience.connected(root, params.registry.experiment)
        tracker.flush_pending()
        run = tracker.start_run(
            "flow", lineage.revision(root) | {"prefect_flow_run": str(flow_run.id), "stages": " ".join(targets)}, None
        )
        forced = {step.name for step in steps if step.is_named(targets)} if force else set()
        walk = Walk(root, graph, params, tracker, run, progress, forced, len(steps) + (not stages))
        try:
            for step in steps:
                walk.stage(step)
            if not stages:
                walk.register()
        except BaseException:
            run.finish("KILLED")
            raise
        walk.note_origins()
        for file in ("dvc.lock", "params.yaml"):
            run.log_artifact(root / file)
        run.finish("FAILED" if walk.failed else "FINISHED")
    if not stages and not walk.failed:
        artifacts.results(root)
    if walk.failed:
        left = [name for name, state in walk.states.items() if state.name == "NotReady"]
        waiting = f"; not run: {', '.join(left)}" if left else ""
        raise UserError(f"failed: {', '.join(walk.failed)}{waiting}")
    return Completed(message=f"{len(steps)} stages up to date")


def run(root: Path, stages: list[str], force: bool) -> None:
    """Runs the flow for the project in `root`, which is the working directory and held by this process.

    Raises:
        UserError: see `distillation` and `carry_out`.
    """
    carry_out(root, lambda: distillation(stages, force))


def carry_out(root: Path, flow_of: Callable[[], object]) -> None:
    """Calls a flow as one of this project, after the end of those that were killed has been told.

    Raises:
        UserError: where the Prefect server went away; also what the flow raises.
    """
    with supervised(f"project:{root}"):
        flow_of()


def _figures(summary: Summary) -> str:
    """The first figures of a summary."""
    shown = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in summary.items()]
    return ", ".join(shown[:FIGURES])
