"""The Prefect flow of a comparison: the graph up to the soft targets, then every training as a task run.

The trainings run in processes of their own, since PyTorch's random state is shared by threads; a task run waits for its
process. What has run is found on disk, so a comparison that was killed goes on where it was.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect import State, flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from distillery.errors import UserError
from flows import pipeline
from flows.commands.compare import folder_of
from flows.commands.dry_run import CACHED, forecast
from flows.services import artifacts
from flows.standings import Live, rows
from tasks import failures
from tasks.comparison import job as work
from tasks.comparison import page, words
from tasks.comparison.job import Result
from tasks.comparison.leaderboard import FILE, Leaderboard, make
from tasks.comparison.plan import KD, PLAIN, Job, Plan
from tasks.environment import quick_imports
from tasks.stage import flat
from tasks.tracking import lineage
from tasks.tracking.tracker import Run, Tracker
from tasks.versioning.graph import Graph


@dataclass
class Done:
    """How far a comparison is.

    Attributes:
        results: key of a job -> what it led to.
        failed: method and student -> why it has no result.
        unfit: those of them that do not fit the data or the models, rather than broke.
    """

    results: dict[str, Result]
    failed: dict[str, str] = field(default_factory=dict)
    unfit: set[str] = field(default_factory=set)


def run(root: Path, plan: Plan, targets: list[str], workers: int) -> Leaderboard:
    """Runs the flow for the project in `root`, which is the working directory and held by this process.

    Args:
        root: the project's folder.
        plan: what is compared.
        targets: stages that have to be fresh.
        workers: processes.

    Raises:
        UserError: where a stage or a training fails; of `all`, methods that do not fit the data are only left out.
    """
    boards: list[Leaderboard] = []

    @flow(
        name="comparison",
        retries=0,
        persist_result=False,
        task_runner=ThreadPoolTaskRunner(max_workers=workers),  # type: ignore[arg-type]
    )
    def comparison() -> State[Any]:
        graph = Graph.open(root)
        if any(one.action != CACHED for one in forecast(graph, graph.plan(targets), set())):
            pipeline.distillation(targets)
            graph = Graph.open(root)
        boards.append(_compare(root, plan, folder_of(root, graph), workers))
        return Completed(message=f"{len(plan.jobs)} trainings compared")

    pipeline.carry_out(root, comparison)
    return boards[0]


def _compare(root: Path, plan: Plan, folder: Path, workers: int) -> Leaderboard:
    """Trains what is missing, and writes the leaderboard."""
    work.clean(folder)
    done = Done({job.key: found for job in plan.jobs if (found := Result.read(work.file_of(folder, job)))})
    left = [job for job in plan.jobs if job.key not in done.results]
    share = artifacts.Share(len(plan.jobs), "trainings", len(done.results))
    with _tracked(root, plan, done) if left else _untracked() as log, _pool(root, workers) as pool:
        with Live(plan, plan.params.primary, done.results) as live:
            for job, ended in _trained(root, folder, pool, left):
                if isinstance(ended, Result):
                    done.results[job.key] = ended
                else:
                    _note(root, done, job, ended)
                live.show(job, ended)
                log(job)
                share.advance()
        _check(plan, done)
        students = [entry for entry in plan.entries if entry.method == PLAIN]
        # One after another, when no training is in the way.
        jobs = {entry.student: Job(entry, plan.seeds[0]) for entry in students}
        latencies = {name: pool.submit(work.latency, root, folder, job).result() for name, job in jobs.items()}
        board = make(plan, done.results, latencies, done.failed)
        board.write(root / FILE)
        page.write(root, board)
    create_table_artifact(rows(board), key="leaderboard", description=words.headline(board))
    artifacts.link(root / page.FILE, "leaderboard-page", "All methods, with intervals and corrected p-values")
    return board


def _trained(
    root: Path, folder: Path, pool: ProcessPoolExecutor, jobs: list[Job]
) -> Iterator[tuple[Job, Result | Exception]]:
    """Every job with its result, or what it raised, as they finish."""
    finished: SimpleQueue[tuple[Job, Result | Exception]] = SimpleQueue()

    def body(job: Job) -> Callable[[], State[Any]]:
        def wait_for_process() -> State[Any]:
            try:
                found = pool.submit(work.train, root, folder, job).result()
            except Exception as error:
                finished.put((job, error))
                raise
            finished.put((job, found))
            return Completed(message=f"{found.seconds:.1f} s")

        return wait_for_process

    runs = [
        task(name=job.entry.title, task_run_name=job.title, retries=0, cache_policy=NO_CACHE, persist_result=False)(
            body(job)
        ).submit()
        for job in jobs
    ]
    for _ in jobs:
        yield finished.get()
    wait(runs)


@contextmanager
def _pool(root: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that load PyTorch once each and share the cores; ended at once where something goes wrong."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, work.begin, (root, threads))
    try:
        yield pool
    except BaseException as error:
        # What runs is not waited for: it has written nothing yet.
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a training was killed from outside, perhaps for want of memory; what has finished is kept, so run "
                "again, with fewer --workers"
            ) from None
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _note(root: Path, done: Done, job: Job, error: Exception) -> None:
    """Keeps what a training raised.

    Raises:
        BrokenProcessPool: where its process was killed.
    """
    if isinstance(error, BrokenProcessPool):
        raise error
    done.failed.setdefault(job.entry.title, failures.told(error, root, f"compare-{job.entry.method}"))
    if isinstance(error, UserError):
        done.unfit.add(job.entry.title)


def _check(plan: Plan, done: Done) -> None:
    """Refuses a leaderboard that lacks what was asked for.

    Raises:
        UserError: with each failure; finished trainings are kept.
    """
    spared = {title for title in done.unfit if plan.whole and title.split("/")[0] not in (PLAIN, KD)}
    missed = {title: why for title, why in done.failed.items() if title not in spared}
    if missed:
        told = "\n".join(f"  {title}: {why}" for title, why in missed.items())
        raise UserError(f"without a result:\n{told}\nwhat has finished is kept; compare again without these")


@contextmanager
def _untracked() -> Iterator[Callable[[Job], None]]:
    """Nothing was trained, so MLflow knows everything."""
    yield lambda _: None


@contextmanager
def _tracked(root: Path, plan: Plan, done: Done) -> Iterator[Callable[[Job], None]]:
    """A run with one below it for every training, also for those that an earlier comparison has left."""
    with quick_imports():
        tracker = Tracker.connect(root, plan.params.registry.experiment)
    tracker.flush_pending()
    tags = lineage.revision(root) | {"stage": "compare", "prefect_flow_run": str(flow_run.id)}
    parent = tracker.start_run("compare", tags, None)
    parent.log_params({"seeds": plan.seeds, "teachers": plan.teachers, "methods": [e.title for e in plan.entries]})

    def log(job: Job) -> None:
        entry = job.entry
        child = tracker.start_run(
            job.title, {"method": entry.method, "student": entry.student}, parent.id, watched=False
        )
        _log(child, job, done)

    try:
        for job in plan.jobs:
            if job.key in done.results:
                log(job)
        yield log
    except BaseException as error:
        parent.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    for file in (FILE, page.FILE):
        parent.log_artifact(root / file)
    parent.finish("FINISHED")


def _log(child: Run, job: Job, done: Done) -> None:
    """One training in MLflow."""
    decisive: Mapping[str, object] = {key: job.entry.document[key] for key in ("student", "distill")}
    child.log_params({"seed": job.seed, **flat(decisive)})
    found = done.results.get(job.key)
    if found is None:
        child.set_tags({"failure": done.failed[job.entry.title]})
        child.finish("FAILED")
        return
    for split, scores in (("validation", found.validation), ("test", found.test)):
        child.log_metrics({f"{split}_{name}": value for name, value in scores.items()})
    costs = ("seconds", "steps", "epoch", "parameters", "extra_parameters")
    child.log_metrics({name: getattr(found, name) for name in costs})
    child.finish("FINISHED")
