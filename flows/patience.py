"""Trying again where that can help: a service is away. Never for bad data or bad parameters: those only come back."""

from typing import Any

from httpx import TransportError
from prefect import State, Task
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import deployment

from tasks.mlflow_service import AwayError

DELAYS = (10.0, 60.0, 300.0)  # seconds; together they outlast a server that is restarted


def options() -> dict[str, Any]:
    """How often a task is tried: whoever started it by hand is told at once, a schedule's run waits for the service."""
    if deployment.id is None:
        return {"retries": 0}
    return {"retries": len(DELAYS), "retry_delay_seconds": list(DELAYS), "retry_condition_fn": _can_help}


def _can_help(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, (AwayError, TransportError))
