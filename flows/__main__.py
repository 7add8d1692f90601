"""`python -m flows`: the command line. It imports what a command needs, and no more, when the command is known."""

import argparse
import sys
from pathlib import Path

from tasks import environment, failures

DESCRIPTION = "Distils a large teacher into a small student, stage by stage; DVC knows what is stale, Prefect shows it."
EPILOG = """examples:
  python -m flows run                     bring everything up to date
  python -m flows run --dry-run           what would run, and why
  python -m flows run distill             up to the distilled student
  python -m flows run train_teacher       all teachers; train_teacher@resnet: one of them
  python -m flows run distill --force     compute the distilled student again
  python -m flows server                  Prefect and MLflow with their dashboards, until Ctrl-C
  python -m flows init NAME               take the parameters of scenarios/NAME.yaml

`dvc repro` runs the same stages without Prefect; each finds what the other has done."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    root: Path = options.root.resolve()
    environment.prepare(root)
    resume = "finished stages are kept, and the next run resumes from the last checkpoint"
    if options.command == "server":
        resume = "both servers are stopped"
    return failures.guarded(lambda: _dispatch(options, root), root, f"flows-{options.command}", resume)


def _dispatch(options: argparse.Namespace, root: Path) -> int:
    if options.command == "server":
        from flows.server import serve

        return serve(root, options.prefect_port, options.mlflow_port)
    if options.command == "init":
        from flows.scenarios import init

        return init(root, options.name, force=options.force)
    if options.command == "predict":
        from flows.predict import predict

        return predict(root, options.input, options.output, options.model)
    if options.dry_run:
        from flows.dry_run import show

        return show(root, options.stages, options.force)
    from flows.run import run

    return run(root, options.stages, force=options.force, wait=options.wait)


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m flows", description=DESCRIPTION, epilog=EPILOG, formatter_class=shape)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", type=Path, default=Path(), help="the project's folder (default: this one)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", parents=[shared], help="bring stages up to date", epilog=EPILOG, formatter_class=shape
    )
    run.add_argument("stages", nargs="*", metavar="STAGE", help="up to these; none: all, and register the models")
    run.add_argument(
        "--force", action="store_true", help="compute the named stages (else all) even where nothing changed"
    )
    run.add_argument("--dry-run", action="store_true", help="only tell what would happen, and why")
    run.add_argument("--wait", action="store_true", help="wait while another run holds the pipeline")

    server = commands.add_parser("server", parents=[shared], help="keep Prefect and MLflow running")
    server.add_argument("--prefect-port", type=int, default=4200, metavar="PORT", help="default 4200; 0: a free one")
    server.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT", help="default 5000; 0: a free one")

    predict = commands.add_parser("predict", parents=[shared], help="what a model says of a table or of images")
    predict.add_argument("--input", type=Path, required=True, metavar="PATH", help="Parquet, CSV or a folder of images")
    predict.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .parquet file to write")
    predict.add_argument(
        "--model", metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder; default: the champion"
    )

    init = commands.add_parser("init", parents=[shared], help="take the parameters of a scenario")
    init.add_argument("name", nargs="?", metavar="NAME", help="of scenarios/NAME.yaml; none: list them")
    init.add_argument("--force", action="store_true", help="even where params.yaml holds unsaved changes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
