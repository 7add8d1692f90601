"""Flows as schedules start them: they take what the command line would have taken before."""

from pathlib import Path

from prefect import flow

from flows import promotion as decision
from flows.commands import compare
from flows.registry import champion
from flows.terminal import say


@flow(name="comparison", retries=0, persist_result=False)
def comparison(
    objectives: list[str] | None = None, students: list[str] | None = None, seeds: int | None = None
) -> None:
    """Trains what is missing of a comparison in the current folder and writes its leaderboard.

    Args:
        objectives: as `python -m flows compare --objectives`; none: those of the section `comparison`.
        students: likewise.
        seeds: likewise.

    Raises:
        UserError: where something of it fails.
    """
    compare.compare(Path.cwd(), objectives or [], students or [], seeds, workers=None, dry_run=False, wait=True)


@flow(name="promotion", retries=0, persist_result=False)
def promotion(serve_check: bool = False) -> None:
    """Holds the challenger of the project in the current folder against its champion.

    Args:
        serve_check: also start `mlflow models serve` and ask it, whatever `gates.serve_check` says.

    Raises:
        UserError: see `flows.promotion.promotion`.
    """
    with champion.in_turn(Path.cwd(), say):
        decision.promotion.fn(serve_check)
