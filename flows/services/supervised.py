"""A flow of this process: what killed ones left running in Prefect is marked, and Prefect is told everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from httpx import TransportError
from prefect import State, get_client, tags
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed

from distillery.errors import UserError


@contextmanager
def supervised(tag: str) -> Iterator[None]:
    """Runs of flows in this block get a tag; whoever enters holds a lock, so no other one with that tag is alive.

    Raises:
        UserError: where the Prefect server went away.
    """
    try:
        _mark_crashed(tag)
        # Ending a heartbeat takes up to a second, and who was killed is told by the lock it held.
        with tags(tag), temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
        _drain()
    except TransportError as error:
        raise UserError(
            f"the Prefect server {PREFECT_API_URL.value()} went away ({error}); finished work is kept, so run again"
        ) from error
    except BaseException:
        _drain()
        raise


def _mark_crashed(tag: str) -> None:
    """Ends the flow runs with a tag that were killed."""
    alive = {"type": {"any_": ["RUNNING", "PENDING"]}}
    still = TaskRunFilter.model_validate({"state": alive})
    tagged = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": alive})
    with get_client(sync_client=True) as client:
        for found in client.read_flow_runs(flow_run_filter=tagged, sort=FlowRunSort.ID_DESC, limit=200):
            killed: State[Any] = Crashed(message="its process was killed")
            client.set_flow_run_state(found.id, killed, force=True)
            tasks_of = FlowRunFilter.model_validate({"id": {"any_": [found.id]}})
            for one in client.read_task_runs(
                flow_run_filter=tasks_of, task_run_filter=still, sort=TaskRunSort.ID_DESC, limit=200
            ):
                client.set_task_run_state(one.id, killed, force=True)


def _drain() -> None:
    """Waits until Prefect has sent what it knows: a temporary server ends right after."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=10)
