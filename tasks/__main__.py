"""`python -m tasks STAGE`: one stage as a plain process, as `dvc repro` runs it."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError
from tasks import STAGES, environment, failures

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.versioning.graph import Graph

EPILOG = """examples:
  python -m tasks validate                what `dvc repro validate` runs, without looking upstream
  python -m tasks train_teacher@resnet    one of several teachers

stages: """ + ", ".join(STAGES)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description="Runs one stage. `dvc repro` and `python -m flows run` decide which and record the result.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", metavar="STAGE", help="its name in dvc.yaml")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: this one)")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    environment.prepare(root)
    by_dvc = "DVC_STAGE" in os.environ
    if by_dvc:
        from tasks.stage import parent_watchdog

        parent_watchdog()
    resume = f"`dvc repro` or `python -m flows run` resumes {options.stage}"
    return failures.guarded(lambda: _run(options.stage, root, by_dvc), root, options.stage, resume)


def _run(name: str, root: Path, by_dvc: bool) -> int:
    """Runs the stage; by hand its files are held, as DVC holds them otherwise."""
    from tasks import folders
    from tasks.params import load
    from tasks.stage import function_of
    from tasks.versioning.graph import Graph

    params = load(root)
    environment.enter(root)
    folders.make_standing(root)
    with environment.quick_imports():
        graph = Graph.open(root)
        steps = [step.name for step in graph.plan([name])]
    if name not in steps:
        raise UserError(
            f"{name} is one for each teacher; name one: {', '.join(s for s in steps if s.startswith(name))}"
        )
    function_of(name)
    if by_dvc:
        _compute(name, root, graph, params)
        return 0
    with graph.hold([name]):
        _compute(name, root, graph, params)
    graph.plan([name])
    reasons = graph.why(name)
    if reasons:
        print(
            f"{name} ran outside DVC, so `dvc status` tells: {reasons}. `dvc commit {name}` records the result, "
            f"`dvc repro {name}` makes it again",
            file=sys.stderr,
        )
    return 0


def _compute(name: str, root: Path, graph: "Graph", params: "Params") -> None:
    """Computes the stage."""
    from tasks import folders
    from tasks.tracking import tracked
    from tasks.tracking.tracker import Tracker

    if name == "distill":
        folders.prune(root, params)
    inputs = graph.inputs(name)
    with environment.quick_imports():
        tracker = Tracker.connect(root, params.registry.experiment)
    tracker.flush_pending()
    tracked.run(name, root, inputs, tracker)


if __name__ == "__main__":
    sys.exit(main())
