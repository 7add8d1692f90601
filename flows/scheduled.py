"""Flows that schedules start and that have no other door into Prefect."""

from pathlib import Path

from prefect import flow

from flows import compare


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
