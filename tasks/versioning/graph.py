"""DVC's graph, staleness, run cache and locks: the one module that uses DVC's internal Python API.

Bound to `dvc >= 3.63, < 3.68`; tests/test_dvc_graph.py is the contract that an upgrade must pass. A `Graph` belongs to
one thread, and expects the project's folder as working directory, as the command lines set it.
"""

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from distillery.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo

POLL_SECONDS = 1.0
NEVER = "never ran"
Say = Callable[[str], None]


class BusyError(UserError):
    """Another process works on the same files."""


@dataclass(frozen=True)
class Step:
    """A stage of the graph.

    Attributes:
        name: `distill`, `train_teacher@resnet`, or `data/raw.dvc` for data added with `dvc add`.
        upstream: names of the stages whose results it reads.
        is_source: whether it is data that somebody added, which nothing here can make.
    """

    name: str
    upstream: tuple[str, ...]
    is_source: bool

    def is_named(self, targets: Sequence[str]) -> bool:
        """Whether the targets name this stage; none of them: every stage but data."""
        return not self.is_source and (not targets or self.name in targets or self.name.partition("@")[0] in targets)


@dataclass(frozen=True)
class Reasons:
    """Why a stage is stale; all empty: it is fresh.

    Attributes:
        stage: about the stage itself: it never ran, or its command is another one.
        dependencies: path or parameter -> what became of it (new, modified, deleted).
        outputs: path -> what became of it (modified, deleted, not in cache).
    """

    stage: tuple[str, ...] = ()
    dependencies: Mapping[str, str] | None = None
    outputs: Mapping[str, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.stage or self.dependencies or self.outputs)

    @property
    def is_about_outputs(self) -> bool:
        """Whether outputs alone are missing or altered, so that `dvc.lock` says what they were."""
        return bool(self.outputs) and not self.stage and not self.dependencies

    def __str__(self) -> str:
        parts = list(self.stage)
        if self.stage != (NEVER,):
            parts += [f"{name} {what}" for name, what in (self.dependencies or {}).items()]
            parts += [f"output {name} {what}" for name, what in (self.outputs or {}).items()]
        return ", ".join(parts)


class Graph:
    """The stages of one project."""

    def __init__(self, root: Path, repo: "Repo") -> None:
        self.root = root
        self._repo = repo
        self._stages: dict[str, Any] = {}

    @classmethod
    def open(cls, root: Path) -> Self:
        """Opens the project in `root`.

        Raises:
            UserError: where it is no DVC project, or `dvc.yaml` cannot be used.
        """
        from dvc.repo import Repo

        # DVC's own bars and lines would cross ours; its errors arrive as exceptions.
        logging.getLogger("dvc").setLevel(logging.CRITICAL)
        if not (root / ".dvc").is_dir():
            raise UserError(f"{root} is no DVC project: run `git init && dvc init` there, or give --root")
        with _translated():
            return cls(root, Repo(str(root)))

    def plan(self, targets: Iterable[str] = ()) -> list[Step]:
        """The stages that lead to the targets (else all), upstream first, in DVC's own order.

        Args:
            targets: names; `train_teacher` stands for all `train_teacher@...`.

        Raises:
            UserError: for an unknown name (with the list), or a `dvc.yaml` that cannot be used.
        """
        from dvc.repo.reproduce import get_active_graph, plan_repro

        with self._locked(), _translated():
            graph = get_active_graph(self._repo.index.graph)
            ours = [stage for stage in self._repo.index.stages if stage.path_in_repo == "dvc.yaml"]
            order = plan_repro(graph, _chosen(ours, tuple(targets)))
            self._stages = {_name(stage): stage for stage in order}
            return [
                Step(name, tuple(sorted(_name(other) for other in graph.successors(stage))), stage.cmd is None)
                for name, stage in self._stages.items()
            ]

    def why(self, name: str) -> Reasons:
        """Why a stage is stale, in the words of `dvc status`."""
        stage = self._stages[name]
        with self._locked(), _translated():
            found = [entry for entries in stage.status().values() for entry in entries]
            keys = {dep.def_path: _changed_keys(dep.hash_info.value, dep.read_params()) for dep in stage.params}
        told = [entry for entry in found if isinstance(entry, str)]
        dependencies: dict[str, str] = {}
        outputs: dict[str, str] = {}
        for entry in found:
            if isinstance(entry, dict):
                outputs |= entry.get("changed outs", {})
                for path, what in entry.get("changed deps", {}).items():
                    dependencies |= keys.get(path, {path: what})
        if not any(out.hash_info for out in stage.outs):
            told = [NEVER]
        return Reasons(tuple(told), dependencies, outputs)

    def changed(self, name: str) -> bool:
        """Whether a stage is stale."""
        with self._locked(), _translated():
            return bool(self._stages[name].changed())

    def is_stale(self, targets: Iterable[str] = ()) -> bool:
        """Whether any stage up to these is stale; none named: any at all."""
        return any(self.changed(step.name) for step in self.plan(targets))

    def key(self, name: str) -> str:
        """The hash of command, dependencies and parameters as they are now, through either door the same.

        Raises:
            UserError: where a dependency is missing.
        """
        return self.inputs(name).key

    def inputs(self, name: str) -> "Inputs":
        """What a stage is made from, as it is now; needs no lock, so that a stage run by `dvc repro` may ask too.

        Raises:
            UserError: where a dependency is missing.
        """
        from dvc.dependency import ParamsDependency

        stage = self._stages[name]
        files: dict[str, str] = {}
        params: dict[str, Any] = {}
        with _translated():
            for dep in stage.deps:
                if not dep.exists:
                    raise UserError(f"{name} needs {dep.def_path}, which does not exist; `dvc repro` makes what it can")
                if isinstance(dep, ParamsDependency):
                    params[dep.def_path] = dep.get_hash().value
                else:
                    files[dep.def_path] = str(dep.get_hash().value)
        text = json.dumps([stage.cmd, files, params], sort_keys=True)
        return Inputs(hashlib.sha256(text.encode()).hexdigest(), files)

    def outputs(self, name: str) -> list[str]:
        """Paths of what a stage makes."""
        return [self._relative(out) for out in self._stages[name].outs]

    def remove_outputs(self, name: str) -> None:
        """Removes what a stage has made; DVC's cache keeps what was recorded."""
        with self._locked(), _translated():
            self._stages[name].remove_outs(ignore_remove=False, force=False)

    def can_restore(self, name: str) -> bool:
        """Whether DVC's run cache holds a stage's result for its present inputs; changes nothing on disk."""
        stage = self._stages[name]
        if any(not dep.exists for dep in stage.deps):
            return False
        with self._locked(), _translated():
            # A lookup fills in the hashes of today, and staleness is judged by those of dvc.lock.
            recorded = [(dep, dep.hash_info, dep.meta) for dep in stage.deps]
            try:
                stage.save_deps()
                entry = self._repo.stage_cache._load(stage)
            finally:
                for dep, hash_info, meta in recorded:
                    dep.hash_info, dep.meta = hash_info, meta
            return entry is not None and self._repo.stage_cache._create_stage(entry, wdir=stage.wdir).outs_cached()

    def is_kept(self, name: str) -> bool:
        """Whether DVC's cache holds the outputs that `dvc.lock` names."""
        with self._locked(), _translated():
            return bool(self._stages[name].outs_cached())

    def restore(self, name: str) -> bool:
        """Takes a stage's result from DVC's run cache and records it in `dvc.lock`; False: the cache has none.

        Outputs are removed in any case.

        Raises:
            UserError: where a dependency is missing.
        """
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self._stages[name]
        with self._locked(), _translated():
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            _save(stage)
        return True

    def record(self, name: str, before: "Inputs") -> None:
        """Moves a stage's outputs into DVC's cache and records the stage in `dvc.lock`.

        Args:
            name: of the stage.
            before: its inputs when it started.

        Raises:
            UserError: where an input changed since, so that nobody knows what the outputs were made from, or an
                output is missing. Nothing is recorded then.
        """
        now = self.inputs(name)
        if now != before:
            paths = sorted({*now.files, *before.files})
            moved = [path for path in paths if now.files.get(path) != before.files.get(path)]
            raise UserError(
                f"{', '.join(moved) or 'params.yaml'} changed while {name} ran, so its result is not recorded; "
                "run again"
            )
        with self._locked(), _translated():
            _save(self._stages[name])

    def record_source(self, name: str) -> bool:
        """Records data that changed since `dvc add`, as `dvc repro` does; False: nothing changed.

        Raises:
            UserError: where the data are missing.
        """
        stage = self._stages[name]
        if not self.changed(name):
            return False
        missing = [self._relative(out) for out in stage.outs if not out.exists]
        if missing:
            raise UserError(
                f"{', '.join(missing)} is missing: `dvc checkout {name}` or `dvc pull {name}` brings it back"
            )
        with self._locked(), _translated():
            _save(stage)
        return True

    def add(self, path: Path) -> None:
        """Puts data under DVC's care, as `dvc add` does; the stages that read them have to be planned anew.

        Raises:
            UserError: where DVC refuses.
        """
        with self._locked(), _translated():
            self._repo.add(str(path))

    def push(self) -> int:
        """Sends what `dvc.lock` and added data name to the default remote; returns the number of files sent.

        Raises:
            UserError: where there is no remote, or it does not take them.
        """
        with self._locked(), _translated():
            return int(self._repo.push())

    @property
    def has_remote(self) -> bool:
        """Whether there is a default remote."""
        return bool(self._repo.config["core"].get("remote"))

    @contextmanager
    def hold(self, names: Iterable[str], *, wait: Say | None = None) -> Iterator[None]:
        """Keeps the files of stages for this process, in DVC's own lock: `dvc repro` respects it, and it DVC's.

        Held again by the same process, it does nothing. A process that died holds nothing.

        Args:
            names: of the stages.
            wait: told once who holds the files; then they are waited for. None: do not wait.

        Raises:
            BusyError: where another process holds one of them and `wait` is None.
        """
        from dvc.lock import LockError
        from dvc.rwlock import rwlock

        stages = [self._stages[name] for name in names]
        write = sorted({out.fs_path for stage in stages if stage.cmd for out in stage.outs})
        read = sorted({item.fs_path for stage in stages for item in (stage.deps if stage.cmd else stage.outs)})
        # Stages lock under this very command, so what is held here does not stand in their way.
        command = " ".join(sys.argv)
        hardlink = self._repo.config["core"].get("hardlink_lock", False)
        told = False
        with ExitStack() as held:
            while True:
                try:
                    with self._locked(patient=False):
                        held.enter_context(rwlock(self._repo.tmp_dir, self._repo.fs, command, read, write, hardlink))
                    break
                except LockError as error:
                    holder = _holder(str(error)) or self._lock_holder() or str(error)
                    if wait is None:
                        raise BusyError(
                            f"the pipeline is held by {holder}; wait for it to end, or give --wait"
                        ) from None
                    if not told:
                        wait(f"waiting for the pipeline, held by {holder}")
                    told = True
                    time.sleep(POLL_SECONDS)
            yield

    @contextmanager
    def _locked(self, patient: bool = True) -> Iterator[None]:
        """DVC's lock of the repository, held for moments; waited for, since losing a finished stage to it is dear."""
        from dvc.lock import LockError
        from dvc.repo import lock_repo

        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock_repo(self._repo))
                    break
                except LockError:
                    if not patient:
                        raise
            yield

    def _relative(self, item: Any) -> str:
        """Path of an output or dependency in the project."""
        return Path(item.fs_path).relative_to(self._repo.root_dir).as_posix()

    def _lock_holder(self) -> str | None:
        """Who holds the repository's lock, which DVC does not tell: its file holds the PID."""
        import psutil

        try:
            pid = int((self.root / ".dvc" / "tmp" / "lock").read_text().split()[0])
            return f"PID {pid}: {' '.join(psutil.Process(pid).cmdline())}"
        except (OSError, ValueError, IndexError, psutil.Error):
            return None


@dataclass(frozen=True)
class Inputs:
    """What a stage is made from.

    Attributes:
        key: hash of command, dependencies and parameters.
        files: path -> DVC's hash.
    """

    key: str
    files: Mapping[str, str]


def _name(stage: Any) -> str:
    """As on DVC's command line in the project's folder."""
    path, name = stage.path_in_repo, getattr(stage, "name", None)
    if name is None:
        return str(path)
    return str(name) if path == "dvc.yaml" else f"{path}:{name}"


def _chosen(stages: list[Any], targets: tuple[str, ...]) -> list[Any]:
    """The stages that targets name."""
    names = [_name(stage) for stage in stages]
    unknown = [one for one in targets if not any(name == one or name.startswith(f"{one}@") for name in names)]
    if unknown:
        known = ", ".join(names)
        raise UserError(f"no stage is called {', '.join(map(repr, unknown))}; there are {known}")
    return [
        stage
        for stage, name in zip(stages, names, strict=True)
        if not targets or name in targets or name.partition("@")[0] in targets
    ]


def _changed_keys(old: Any, new: Any, path: str = "") -> dict[str, str]:
    """Parameters that differ: dotted path -> what became of it."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in sorted(old.keys() | new.keys(), key=str):
            found |= _changed_keys(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if old == new:
        return {}
    return {path: "new" if old is None else "deleted" if new is None else f"{old} -> {new}"}


def _save(stage: Any) -> None:
    """Records a stage as `dvc repro` does after a run."""
    # As in Stage.run: an output that Git holds cannot be brought back from the run cache.
    only_cached = all(out.use_cache or out.is_metric or out.is_plot for out in stage.outs)
    stage.save(run_cache=only_cached)
    stage.commit()
    stage.dump(update_pipeline=False)


def _holder(message: str) -> str | None:
    """Who blocks, from DVC's message, one `(PID 7): command` a line."""
    found = dict.fromkeys(re.findall(r"\(PID (\d+)\): (.*)", message))
    return " and ".join(f"PID {pid}: {command}" for pid, command in found) or None


@contextmanager
def _translated() -> Iterator[None]:
    """DVC's errors are about `dvc.yaml`, `params.yaml` or files of the user: they are told without a traceback."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        yield
    except LockError as error:
        raise BusyError(f"the pipeline is held by {_holder(str(error)) or error}; wait for it to end") from None
    except DvcException as error:
        told: list[str] = []
        link: BaseException | None = error
        while link is not None:
            if str(link) and str(link) not in told:
                told.append(str(link))
            link = link.__cause__
        raise UserError("DVC: " + ": ".join(told)) from error
