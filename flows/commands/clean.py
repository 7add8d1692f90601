"""`python -m flows clean`: what can go, shown first; done with `--yes`.

Nothing goes that the workspace, a model with an alias, or `reproduce` of a registered version needs.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import yaml

from distillery.errors import UserError
from flows.commands.reproduce import COPIES, lineage
from flows.services import prefect_api
from flows.terminal import say
from tasks import environment
from tasks.folders import STATE
from tasks.params import load
from tasks.promotion import descent
from tasks.reporting import wording
from tasks.tracking.service import is_http
from tasks.tracking.tracker import Tracker
from tasks.versioning import cache as dvc_cache
from tasks.versioning.graph import Graph

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCRATCH = ("checkpoints/*/*", "staging/*", "tmp*")
RUNS_AT_ONCE = 200


@dataclass(frozen=True)
class Leftover:
    """Something that can go.

    Attributes:
        kind: what it is.
        name: which one.
        size: bytes; None where nobody knows.
        remove: does it.
    """

    kind: str
    name: str
    size: int | None
    remove: Callable[[], None]


def clean(root: Path, age: timedelta, *, yes: bool) -> int:
    """Shows what can go, and removes it where `yes`; returns the exit code.

    Args:
        root: the project's folder.
        age: only what is older.
        yes: remove it.

    Raises:
        UserError: where a run works on the project, or what a version needs cannot be found out.
    """
    params = load(root)
    environment.enter(root)
    graph = Graph.open(root)
    # Nobody else may write checkpoints, cache or versions meanwhile.
    with graph.hold([step.name for step in graph.plan()]), prefect_api.available(root, say):
        tracker = Tracker.connect(root, params.registry.experiment)
        before = time.time() - age.total_seconds()
        kept, stale = _versions(tracker, before)
        found = [
            *_scratch(root, set(params.teachers), before),
            *(_version(root, tracker, one) for one in stale),
            *_cache(root, tracker, kept, before),
            *_prefect_runs(root, before),
        ]
        _show(found, yes)
        if yes:
            for one in found:
                one.remove()
            if stale and is_http(tracker.uri):
                say("`mlflow gc` where the MLflow server runs frees the space of deleted versions")
    return 0


def _scratch(root: Path, teachers: set[str], before: float) -> Iterator[Leftover]:
    """What runs left that nobody resumed, words of teachers that are no more, and copies that `reproduce` made."""
    found = [path for pattern in SCRATCH for path in sorted((root / STATE).glob(pattern))]
    found += [path for path in sorted((root / STATE / "soft_targets").glob("*")) if path.name not in teachers]
    for path in found:
        if _touched(path) < before:
            name = str(path.relative_to(root))
            yield Leftover("scratch", name, _size(path), lambda path=path: _remove(path))  # type: ignore[misc]
    for path in sorted((root / COPIES).glob("*")):
        if _touched(path / ".git") < before:
            command = ["git", "-C", str(root), "worktree", "remove", "--force", str(path)]
            name = str(path.relative_to(root))
            yield Leftover("copy", name, _size(path), lambda command=command: _done(command))  # type: ignore[misc]


def _versions(tracker: Tracker, before: float) -> "tuple[list[ModelVersion], list[ModelVersion]]":
    """Registered versions that stay, and those that may go: old, without an alias, teacher of none that stays."""
    models = {one.name: set(map(str, one.aliases.values())) for one in tracker.client.search_registered_models()}
    versions = [one for name in models for one in tracker.client.search_model_versions(f"name = '{name}'")]
    kept = {
        (one.name, str(one.version))
        for one in versions
        if str(one.version) in models[one.name] or one.creation_timestamp / 1000 >= before
    }
    teachers = {
        tuple(teacher.split("/"))
        for one in versions
        if (one.name, str(one.version)) in kept
        for teacher in one.tags.get("teacher", "").split(", ")
    }
    stays = kept | teachers
    return (
        [one for one in versions if (one.name, str(one.version)) in stays],
        [one for one in versions if (one.name, str(one.version)) not in stays],
    )


def _version(root: Path, tracker: Tracker, version: "ModelVersion") -> Leftover:
    def remove() -> None:
        client = tracker.client
        if client.get_model_version(version.name, version.version).aliases:
            say(f"{version.name} version {version.version} got an alias meanwhile, so it stays")
            return
        client.delete_model_version(version.name, version.version)
        if version.model_id:
            client.delete_logged_model(version.model_id)
            if not is_http(tracker.uri):
                destination = (root / "mlartifacts").as_uri()
                store = ["--backend-store-uri", tracker.uri, "--artifacts-destination", destination]
                command = [sys.executable, "-m", "mlflow", "gc", "--tracking-uri", tracker.uri, *store]
                _run([*command, "--logged-model-ids", version.model_id])

    return Leftover("version", f"{version.name} version {version.version}", None, remove)


def _cache(root: Path, tracker: Tracker, kept: "list[ModelVersion]", before: float) -> Iterator[Leftover]:
    """Files of DVC's cache that neither a working copy nor a version that stays needs."""
    cache = root / dvc_cache.FOLDER
    if not cache.is_dir():
        return
    needed = dvc_cache.of_workspace(root)
    for line in _run(["git", "-C", str(root), "worktree", "list", "--porcelain"]).splitlines():
        if line.startswith("worktree "):
            needed |= dvc_cache.of_workspace(Path(line.removeprefix("worktree ")))
    for lock in (root / STATE).glob("*/*/dvc.lock"):
        needed |= dvc_cache.of_workspace(lock.parent)
    for version in kept:
        try:
            known = lineage(tracker, version)
            needed |= set(dvc_cache.hashes(yaml.safe_load(known[descent.LOCK])))
            for text in yaml.safe_load(known[descent.PARTITIONS]).values():
                needed |= set(dvc_cache.hashes(yaml.safe_load(text)))
        except UserError as error:
            say(f"DVC's cache is left alone, since what a version needs is not known: {error}")
            return
    files = dvc_cache.unneeded(cache, needed, before)
    if files:

        def remove() -> None:
            for file in files:
                file.unlink(missing_ok=True)

        yield Leftover("cache", f"{len(files)} files", sum(file.stat().st_size for file in files), remove)


def _prefect_runs(root: Path, before: float) -> Iterator[Leftover]:
    """Runs of this project that have ended."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    ended = FlowRunFilter.model_validate(
        {
            "tags": {"any_": [f"{what}:{root}" for what in ("project", "promotion", "retraining", "schedule")]},
            "end_time": {"before_": datetime.fromtimestamp(before, UTC)},
        }
    )
    found: list[UUID] = []
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(
                flow_run_filter=ended, sort=FlowRunSort.ID_DESC, limit=RUNS_AT_ONCE, offset=len(found)
            )
            found += [run.id for run in page]
            if len(page) < RUNS_AT_ONCE:
                break
    if found:

        def remove() -> None:
            with get_client(sync_client=True) as client:
                for identity in found:
                    client.delete_flow_run(identity)

        yield Leftover("Prefect", f"{len(found)} runs", None, remove)


def _show(found: list[Leftover], yes: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not found:
        console.print("nothing can go")
        return
    table = Table("what", "which", box=None, pad_edge=False)
    table.add_column("size", justify="right")
    for one in found:
        table.add_row(one.kind, one.name, "" if one.size is None else wording.size(one.size))
    console.print(table)
    total = wording.size(sum(one.size or 0 for one in found))
    console.print(f"{'removing' if yes else 'nothing is removed yet; --yes removes'} {total}", highlight=False)


def _touched(path: Path) -> float:
    """When something in a folder was last written."""
    if not path.exists():
        return 0.0
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def _size(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path, *path.rglob("*")) if not one.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _run(command: list[str]) -> str:
    """Runs a command and returns what it prints.

    Raises:
        UserError: with what it says, where it fails.
    """
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if answer.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {answer.stderr.strip()[-500:]}")
    return answer.stdout


def _done(command: list[str]) -> None:
    _run(command)
