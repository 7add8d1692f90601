"""`python -m flows`: the command line; `flows.dispatch` does what it asks for."""

import argparse
import re
import sys
from datetime import timedelta
from pathlib import Path

from flows import dispatch as commands
from tasks import environment, failures

DESCRIPTION = "Distils a large teacher into a small student, stage by stage; DVC knows what is stale, Prefect shows it."
EPILOG = """examples:
  python -m flows run                     bring everything up to date
  python -m flows run --dry-run           what would run, and why
  python -m flows run distill             up to the distilled student
  python -m flows run train_teacher       all teachers; train_teacher@resnet: one of them
  python -m flows run distill --force     compute the distilled student again
  python -m flows server                  Prefect and MLflow with their dashboards, until Ctrl-C
  python -m flows retrain                 take in data/incoming, run, and promote what is better
  python -m flows promote                 make the new student champion, if it is better; rollback goes back
  python -m flows init NAME               take the parameters of scenarios/NAME.yaml
  python -m flows predict --input rows.csv --output answers.parquet
  python -m flows compare --help          which method pays on your data

`dvc repro` runs the same stages without Prefect; each finds what the other has done."""

COMPARE = """examples:
  python -m flows compare                              the methods of the block `comparison` in params.yaml
  python -m flows compare --objectives kd,dkd,rkd      these, each with its defaults beside the loss on labels
  python -m flows compare --objectives all --seeds 5   every method that fits the data
  python -m flows compare --students small,wide        on these students of the block
  python -m flows compare --dry-run                    what would be trained
  python -m flows compare --adopt                      the best on validation into params.yaml; --adopt NAME: that one

The student alone (plain) and plain KD (kd) are always among them, and all make the same number of steps. The validation
split picks, the test split reports. Killed or stopped and started again, it trains only what is missing."""

RETRAIN = """examples:
  cp week-47.parquet data/incoming/ && python -m flows retrain
  python -m flows retrain                 finishes what was interrupted; nothing new: says so

Each table and each folder in data/incoming is a batch of its own; folders of images, one a class, are one together.
Batches are looked at by themselves: a bad one goes to data/quarantine with its report, a good one becomes a partition
of the data. Then the pipeline runs, and the new student becomes champion where it passes the gates. The section
`retraining` of params.yaml says when teachers are trained anew, and whether Git and a DVC remote get the result. Write
files under a name that ends in .part and rename them, so that none is taken half-way."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    root: Path = options.root.resolve()
    environment.prepare(root)
    resume = "finished stages are kept, and the next run resumes from the last checkpoint"
    if options.command == "compare":
        resume = "finished trainings are kept, and the same command goes on with the others"
    if options.command == "server":
        resume = "both servers are stopped"
    if options.command == "retrain":
        resume = "what was taken in is kept, and the next retraining goes on"
    if options.command in ("promote", "rollback", "history"):
        resume = "the champion is the old or the new one; `python -m flows history` tells"
    if options.command == "serve":
        resume = "nothing is served now; what is missed from here on is made up for once"
    return failures.guarded(
        lambda: getattr(commands, options.command)(options, root), root, f"flows-{options.command}", resume
    )


def _names(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    """A number of things."""
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of them: say 1 or more")
    return int(text)


def _age(text: str) -> timedelta:
    """`30d` or `12h`."""
    found = re.fullmatch(r"(\d{1,5})([dh])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: say 30d or 12h")
    return timedelta(**{"days" if found[2] == "d" else "hours": int(found[1])})


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

    compare = commands.add_parser(
        "compare",
        parents=[shared],
        help="many methods on the same soft targets, with statistics",
        epilog=COMPARE,
        formatter_class=shape,
    )
    compare.add_argument(
        "--objectives", type=_names, default=[], metavar="A,B", help="objectives or methods of the block, or all"
    )
    compare.add_argument("--students", type=_names, default=[], metavar="A,B", help="of the block (default: all of it)")
    compare.add_argument("--seeds", type=_count, metavar="N", help="trainings of each (default: the block's, else 5)")
    compare.add_argument("--workers", type=_count, metavar="N", help="processes (default: one a core)")
    compare.add_argument("--dry-run", action="store_true", help="only tell what would be trained")
    compare.add_argument("--wait", action="store_true", help="wait while another run holds the pipeline")
    compare.add_argument(
        "--adopt", nargs="?", const="", metavar="NAME", help="write the best, or NAME, into params.yaml; trains nothing"
    )

    retrain = commands.add_parser(
        "retrain",
        parents=[shared],
        help="take in what lies in data/incoming, run, and promote what is better",
        epilog=RETRAIN,
        formatter_class=shape,
    )
    retrain.add_argument("--wait", action="store_true", help="wait while another retraining runs")

    reproduce = commands.add_parser("reproduce", parents=[shared], help="make a registered model again and compare it")
    reproduce.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    reproduce.add_argument("--into", type=Path, metavar="FOLDER", help="for the copy; default: below .state/reproduce")
    reproduce.add_argument("--force", action="store_true", help="compute every stage, whatever DVC's cache holds")

    commands.add_parser("serve", parents=[shared], help="run what `schedules` in params.yaml asks for, until Ctrl-C")

    clean = commands.add_parser("clean", parents=[shared], help="what is no longer needed; --yes removes it")
    clean.add_argument("--older-than", type=_age, default="30d", metavar="AGE", help="like 30d or 12h; default: 30d")
    clean.add_argument("--yes", action="store_true", help="remove it")

    promote = commands.add_parser("promote", parents=[shared], help="make the challenger champion, if it is better")
    promote.add_argument("--require", action="store_true", help="exit code 2 where it is not promoted")
    promote.add_argument("--serve-check", action="store_true", help="also ask it through `mlflow models serve`")

    rollback = commands.add_parser("rollback", parents=[shared], help="make the previous version champion again")
    rollback.add_argument("--to", metavar="VERSION", help="this version instead")
    rollback.add_argument("--why", metavar="TEXT", default="no reason given", help="the reason, for the history")

    history = commands.add_parser("history", parents=[shared], help="which version was champion when, and why")
    history.add_argument("--at", metavar="TIME", help="only the champion then, e.g. 2026-11-24T12:00")
    history.add_argument("--json", action="store_true", help="for programs")

    why = commands.add_parser("why", parents=[shared], help="where a model comes from")
    why.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION or a file of a model")
    why.add_argument("--json", action="store_true", help="for programs")

    init = commands.add_parser("init", parents=[shared], help="take the parameters of a scenario")
    init.add_argument("name", nargs="?", metavar="NAME", help="of scenarios/NAME.yaml; none: list them")
    init.add_argument("--force", action="store_true", help="even where params.yaml holds unsaved changes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
