"""The Prefect flow behind `python -m flows retrain`: new data in, a better champion out, or the reasons why not."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed

from flows.arrivals import REFUSED, SECONDS, resource
from flows.pipeline import distillation
from flows.promotion import promotion
from flows.registry import champion
from flows.services import patience
from flows.services.supervised import supervised
from flows.terminal import say
from tasks.params import load
from tasks.promotion.telling import sentence
from tasks.retraining import taking, telling, versions
from tasks.retraining.incoming import Arrival, Journal, LeftError, Signs, locked, waiting
from tasks.retraining.results import RETRAINING, Batch, Retrained
from tasks.versioning.graph import Graph


@flow(name="retraining", retries=0, persist_result=False)
def retraining() -> Retrained:
    """Takes in what lies in `data/incoming` of the project in the current folder, runs the pipeline, and promotes.

    What was interrupted is finished first.

    Raises:
        UserError: where something of it fails; what was taken in stays, and the next retraining goes on.
    """
    root = Path.cwd()
    with locked(root, say):
        versions.check(root, Graph.open(root), load(root).retraining)
        found, left = Retrained(), dict[Arrival, Signs]()
        while True:
            found = found.then(_round(root, left))
            if found.batches or found.outcome:
                # After each round, since the next one may fail.
                found.write(root / RETRAINING)
            if not has_more(root, left):
                break
        if found.batches or found.outcome:
            create_table_artifact(telling.rows(found), key="batches", description=telling.summary(found))
        return found


def has_more(root: Path, left: dict[Arrival, Signs]) -> bool:
    """Whether something can be taken in that arrived meanwhile: it has started no flow of its own, since this one ran.

    What is still being written is left for the event that tells of its end.
    """
    for arrival in waiting(root):
        signs = arrival.signs()
        if arrival not in left:
            return True
        if signs != left[arrival]:
            time.sleep(SECONDS)
            if arrival.signs() == signs:
                return True
    return False


def _round(root: Path, left: dict[Arrival, Signs]) -> Retrained:
    """Takes in what lies there now, and makes of it what there is to make.

    Args:
        root: the project's folder.
        left: gets what could not be taken, as it looked.
    """
    begun = taking.settle(root, Graph.open(root), say)
    for arrival in waiting(root):
        # Each is held against all that was there before, the batch before it included.
        if Graph.open(root).is_stale(["validate"]):
            distillation(["validate"])
        _task(f"batch {arrival.name}", functools.partial(_take, root, arrival, left))
    journal, params = Journal.left(root) or Journal(), load(root)
    advanced = taking.advance(root, params)
    if params.retraining.commit:
        versions.commit(root, versions.DATA, telling.data_message(journal.batches))
    found = Retrained(batches=journal.batches, snapshot=load(root).retraining.snapshot, advanced=advanced)
    if begun or Graph.open(root).is_stale():
        found = _made(root, found, journal)
    Journal.remove(root)
    return found


def _made(root: Path, found: Retrained, journal: Journal) -> Retrained:
    """The pipeline's run on the new data, and what came of its student."""
    params = load(root)
    journal.keep(root)
    distillation()
    if params.retraining.commit:
        versions.commit(root, versions.RESULTS, telling.results_message(found))
    with champion.in_turn(root, say):
        decided = promotion()
    if params.retraining.push:
        _task("push", lambda: Completed(message=f"{versions.push(Graph.open(root))} files sent"))
    return found.model_copy(update={"promotion": sentence(decided), "outcome": decided.outcome})


def _take(root: Path, arrival: Arrival, left: dict[Arrival, Signs]) -> State[Batch]:
    """One batch, and how Prefect calls what became of it."""
    try:
        batch = taking.take(root, load(root), Graph.open(root), arrival)
    except LeftError as error:
        left[arrival] = error.signs
        say(str(error))
        return Completed(name="Skipped", message=str(error))
    said = telling.line(batch)
    say(said)
    if batch.outcome == "quarantined":
        emit_event(REFUSED, resource={"prefect.resource.id": resource(root)}, payload=batch.model_dump(mode="json"))
    return Completed(name=batch.outcome.capitalize(), message=said)


def _task(name: str, body: Callable[[], State[Any]]) -> None:
    """Does something as a task run of its own; who started it by hand is not kept waiting by retries."""
    settings: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False} | patience.options()
    task(name=name, task_run_name=name, **settings)(body)()


def run(root: Path) -> Retrained:
    """Runs the flow for the project in `root`, which is the working directory.

    Raises:
        UserError: see `retraining`; also where the Prefect server went away.
    """
    with supervised(f"retraining:{root}"):
        return retraining()
