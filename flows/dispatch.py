"""What each command of `python -m flows` does: it imports what it needs, and no more, when it is called."""

from argparse import Namespace
from pathlib import Path


def run(options: Namespace, root: Path) -> int:
    """Brings stages up to date, or only tells what would happen."""
    if options.dry_run:
        from flows.commands.dry_run import show

        return show(root, options.stages, options.force)
    from flows.commands.run import run

    return run(root, options.stages, force=options.force, wait=options.wait)


def server(options: Namespace, root: Path) -> int:
    """Keeps Prefect and MLflow running."""
    from flows.commands.server import serve

    return serve(root, options.prefect_port, options.mlflow_port)


def init(options: Namespace, root: Path) -> int:
    """Takes the parameters of a scenario."""
    from flows.commands.scenarios import init

    return init(root, options.name, force=options.force)


def predict(options: Namespace, root: Path) -> int:
    """Writes what a model says of a table or of images."""
    from flows.commands.predict import predict

    return predict(root, options.input, options.output, options.model)


def reproduce(options: Namespace, root: Path) -> int:
    """Makes a registered model again."""
    from flows.commands.reproduce import reproduce

    return reproduce(root, options.model, options.into, force=options.force)


def serve(_options: Namespace, root: Path) -> int:
    """Runs the schedules."""
    from flows.commands.serve import serve

    return serve(root)


def retrain(options: Namespace, root: Path) -> int:
    """Takes in new data, runs the pipeline and promotes."""
    from flows.commands.retrain import retrain

    return retrain(root, wait=options.wait)


def compare(options: Namespace, root: Path) -> int:
    """Tries many methods on the same soft targets, or adopts one."""
    from flows.commands.compare import adopt, compare

    if options.adopt is not None:
        return adopt(root, options.adopt or None)
    return compare(
        root,
        options.objectives,
        options.students,
        options.seeds,
        workers=options.workers,
        dry_run=options.dry_run,
        wait=options.wait,
    )


def clean(options: Namespace, root: Path) -> int:
    """Shows or removes what is no longer needed."""
    from flows.commands.clean import clean

    return clean(root, options.older_than, yes=options.yes)


def promote(options: Namespace, root: Path) -> int:
    """Makes the challenger champion where it passes the gates."""
    from flows.commands.promote import promote

    return promote(root, require=options.require, serve_check=options.serve_check)


def rollback(options: Namespace, root: Path) -> int:
    """Makes the previous or a named version champion again."""
    from flows.commands.promote import rollback

    return rollback(root, options.to, options.why)


def history(options: Namespace, root: Path) -> int:
    """Tells which version was champion when."""
    from flows.commands.history import show

    return show(root, at=options.at, as_json=options.json)


def why(options: Namespace, root: Path) -> int:
    """Tells where a model comes from."""
    from flows.commands.why import show

    return show(root, options.model, as_json=options.json)
