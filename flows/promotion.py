"""The Prefect flow behind `python -m flows promote`: one decision, with a table of gates as artifact."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.registry import champion
from flows.services import patience
from flows.services.supervised import supervised
from flows.terminal import say
from tasks.params import load
from tasks.promotion.results import Promotion
from tasks.promotion.telling import rows, sentence


@flow(name="promotion", retries=0, persist_result=False)
def promotion(serve_check: bool = False) -> Promotion:
    """Holds the challenger of the project in the current folder against its champion.

    Args:
        serve_check: also start `mlflow models serve` and ask it, whatever `gates.serve_check` says.

    Raises:
        UserError: see `flows.registry.champion.promote`.
    """
    root = Path.cwd()
    params = load(root)
    tracker = patience.connected(root, params.registry.experiment)
    found = champion.promote(root, params, tracker, say, serve=serve_check)
    create_table_artifact(rows(found), key="gates", description=sentence(found))
    return found


def run(root: Path, *, serve_check: bool) -> Promotion:
    """Runs the flow for the project in `root`, which is the working directory.

    Raises:
        UserError: see `promotion`; also where the Prefect server went away.
    """
    with champion.in_turn(root, say), supervised(f"promotion:{root}"):
        return promotion(serve_check)
