"""`python -m flows promote` and `rollback`: what is needed before Prefect is imported, and what is told at the end."""

from pathlib import Path

from flows.services import prefect_api
from flows.terminal import say, table_of, wide
from tasks import environment
from tasks.params import load
from tasks.promotion.results import PROMOTION, Promotion
from tasks.promotion.telling import heading, rows, sentence


def promote(root: Path, *, require: bool, serve_check: bool) -> int:
    """Makes the challenger champion where it passes the gates.

    Args:
        root: the project's folder.
        require: return 2 where the challenger is not champion afterwards.
        serve_check: also start `mlflow models serve` and ask it, whatever `gates.serve_check` says.

    Raises:
        UserError: see `flows.registry.champion.promote`; also where params or servers are not in order.
    """
    load(root)
    environment.enter(root)
    with prefect_api.available(root, say):
        with environment.quick_imports():
            from flows import promotion
        found = promotion.run(root, serve_check=serve_check)
    _tell(root, found)
    return 2 if require and found.outcome == "kept" else 0


def rollback(root: Path, to: str | None, why: str) -> int:
    """Makes the previous or a named version champion again; needs no Prefect, since it may be in a hurry.

    Raises:
        UserError: see `flows.registry.champion.rollback`.
    """
    from flows.registry import champion
    from tasks.tracking.tracker import Tracker

    params = load(root)
    environment.enter(root)
    with environment.quick_imports():
        tracker = Tracker.connect(root, params.registry.experiment)
    before, after = champion.rollback(root, params, tracker, say, to=to, why=why)
    print(f"{params.registry.student} version {after} is champion again, instead of {before}")
    return 0


def _tell(root: Path, found: Promotion) -> None:
    """The gates and the outcome."""
    console = wide()
    if found.gates:
        console.print()
        figures = ("before", "challenger", "difference")
        console.print(table_of(rows(found), figures, title=heading(found), alarming=("FAILED",)))
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print(sentence(found), highlight=False, soft_wrap=True)
    for reason in found.reasons if found.gates else []:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)
    if found.test_set is not None:
        dvc = f", DVC {found.test_set.dvc}" if found.test_set.dvc else ""
        console.print(f"test set    sha256 {found.test_set.sha256[:16]}{dvc}", highlight=False, soft_wrap=True)
    console.print(f"details     {root / PROMOTION}", highlight=False, soft_wrap=True)
