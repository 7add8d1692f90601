"""`python -m flows serve`: runs what `schedules` in params.yaml asks for, until Ctrl-C.

Prefect keeps the schedules and starts a process for each run. A deployment runs once at a time: what comes due while
it runs is cancelled, not queued.
"""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from distillery.errors import UserError
from flows.arrivals import EVENT, resource, title, watch
from flows.services import prefect_api
from flows.terminal import say
from tasks import environment, folders
from tasks.alone import alone
from tasks.params import load
from tasks.params.sections import Schedule
from tasks.retraining.incoming import INCOMING

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

# Name in params.yaml -> where its flow is.
FLOWS = {
    "retraining": "flows.retraining.retraining",
    "distillation": "flows.pipeline.distillation",
    "promotion": "flows.scheduled.promotion",
    "comparison": "flows.scheduled.comparison",
}


def serve(root: Path) -> int:
    """Serves the schedules; returns the exit code.

    Raises:
        UserError: where params ask for no schedule or an impossible one, another process serves this project, or
            no Prefect server answers.
    """
    schedules = load(root).schedules
    if not schedules:
        raise UserError(
            "params.yaml asks for no schedule: add a section like `schedules: {distillation: {cron: '0 3 * * 1'}}`"
        )
    environment.enter(root)
    folders.make_standing(root)
    (root / INCOMING).mkdir(parents=True, exist_ok=True)
    # Two that serve one project would run everything twice.
    busy = "this project is served already by another process; end that one first"
    with alone(root, "serve", busy), prefect_api.available(root, say):
        from prefect.runner import Runner

        # Schedules go on while nothing is served, so that a missed run can be seen.
        runner = Runner(name=title(root), pause_on_shutdown=False)
        for name, schedule in schedules.items():
            missed = _missed(name, root, schedule)
            identity = UUID(str(runner.add_deployment(_deployment(root, name, schedule))))
            _end_leftovers(identity)
            say(f"{name:<14} {_told(schedule)}")
            if missed:
                say(f"{name:<14} missed its time while nothing was served, so it runs once now")
                _run_now(identity)
        ended = threading.Event()
        if any(schedule.on_new_data for schedule in schedules.values()):

            def announce(files: list[str]) -> None:
                _announce(root, files)

            threading.Thread(target=watch, args=(root / INCOMING, announce, ended), daemon=True).start()
        say("serving; Ctrl-C ends it")
        try:
            asyncio.run(runner.start())
        finally:
            ended.set()
    return 0


def _deployment(root: Path, name: str, schedule: Schedule) -> "RunnerDeployment":
    """What Prefect is told of one schedule."""
    from importlib import import_module

    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.events import DeploymentEventTrigger
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    module, _, function = FLOWS[name].rpartition(".")
    flow = getattr(import_module(module), function)
    trigger = DeploymentEventTrigger(
        name=f"{name} on new data of {root}", expect={EVENT}, match={"prefect.resource.id": resource(root)}
    )
    deployment: RunnerDeployment = flow.to_deployment(
        name=title(root),
        schedules=[Cron(schedule.cron, timezone=schedule.timezone)] if schedule.cron else [],
        triggers=[trigger] if schedule.on_new_data else [],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        tags=[f"schedule:{root}"],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return deployment


def _missed(name: str, root: Path, schedule: Schedule) -> bool:
    """Whether a time of the schedule has passed since the last run, however often; asked before Prefect is told."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound
    from prefect.server.schemas.schedules import CronSchedule

    if schedule.cron is None:
        return False
    with get_client(sync_client=True) as client:
        try:
            known = client.read_deployment_by_name(f"{name}/{title(root)}")
        except ObjectNotFound:
            return False
        if [getattr(one.schedule, "cron", None) for one in known.schedules] != [schedule.cron]:
            return False  # nobody has waited for the new times yet
        begun = {
            "deployment_id": {"any_": [known.id]},
            "state": {"type": {"not_any_": ["SCHEDULED"]}},
        }
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(begun),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=1,
        )
    last = runs[0].expected_start_time if runs else known.created
    if last is None:
        return False
    times = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    due = asyncio.run(times.get_dates(1, start=last + timedelta(seconds=1)))
    return due[0] <= datetime.now(UTC)


def _end_leftovers(deployment: UUID) -> None:
    """Runs whose server of runs was killed hold the only place for ever: they are ended.

    What came due while nothing was served is cancelled too: one run makes up for all of them.
    """
    from prefect import State, get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import Cancelled, Crashed

    alive = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    late = {"type": {"any_": ["SCHEDULED"]}, "name": {"any_": ["Late"]}}
    with get_client(sync_client=True) as client:
        ends: list[tuple[dict[str, Any], State[Any]]] = [
            (alive, Crashed(message="what ran it was killed")),
            (late, Cancelled(message="its time passed while nothing was served")),
        ]
        for state, end in ends:
            found = FlowRunFilter.model_validate({"deployment_id": {"any_": [deployment]}, "state": state})
            for run in client.read_flow_runs(flow_run_filter=found, sort=FlowRunSort.ID_DESC, limit=200):
                client.set_flow_run_state(run.id, end, force=True)


def _run_now(deployment: UUID) -> None:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(deployment)


def _announce(root: Path, files: list[str]) -> None:
    """Tells Prefect that files lie in `data/incoming`; its automations do the rest."""
    from prefect.events import emit_event

    say(f"new data: {', '.join(files[:5])}{' ...' if len(files) > 5 else ''}")
    emit_event(EVENT, resource={"prefect.resource.id": resource(root)}, payload={"files": files})


def _told(schedule: Schedule) -> str:
    parts = [f"cron {schedule.cron} ({schedule.timezone})"] if schedule.cron else []
    return " and ".join([*parts, *([f"files in {INCOMING}/"] if schedule.on_new_data else [])])
