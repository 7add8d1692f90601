"""Trying again where that can help: a service is away. Never for bad data or bad parameters: those only come back."""

from pathlib import Path
from typing import Any

from httpx import TransportError
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import deployment

from tasks.environment import quick_imports
from tasks.tracking.service import AwayError
from tasks.tracking.tracker import Tracker

DELAYS = (10.0, 60.0, 300.0)  # seconds; together they outlast a server that is restarted


def options() -> dict[str, Any]:
    """How often a task is tried: whoever started it by hand is told at once, a schedule's run waits for the service."""
    if deployment.id is None:
        return {"retries": 0}
    return {"retries": len(DELAYS), "retry_delay_seconds": list(DELAYS), "retry_condition_fn": _can_help}


def connected(root: Path, experiment: str) -> Tracker:
    """The tracking service; where `options` has patience, as a task that shows in Prefect.

    Raises:
        UserError: see `Tracker.connect`.
    """

    def connect() -> Tracker:
        with quick_imports():
            return Tracker.connect(root, experiment)

    retried = options()
    if not retried["retries"]:
        return connect()
    return task(name="connect", task_run_name="connect", cache_policy=NO_CACHE, persist_result=False, **retried)(
        connect
    )()


def _can_help(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, (AwayError, TransportError))
