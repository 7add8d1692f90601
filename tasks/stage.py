"""What every stage gets without writing it: parameters, a run, seeds, progress, atomic outputs, clear errors."""

import errno
import importlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError
from tasks import STAGES
from tasks.folders import STATE
from tasks.params import Params, load
from tasks.progress import Progress

if TYPE_CHECKING:
    from tasks.tracking.tracker import Run

Summary = dict[str, float | int | str]


@dataclass(frozen=True)
class Stage:
    """What a stage function gets.

    Attributes:
        name: as DVC addresses it, `distill` or `train_teacher@resnet`.
        root: the project's folder.
        params: the checked parameters.
        run: the MLflow run of this stage; logging to it never raises.
        progress: bars in the terminal.
        state: folder for checkpoints of exactly these inputs and parameters; outlives the process, no output.
    """

    name: str
    root: Path
    params: Params
    run: "Run"
    progress: Progress
    state: Path
    _staging: Path
    _outputs: list[Path] = field(default_factory=list)

    @property
    def item(self) -> str:
        """The part of the name behind `@`: the teacher's key."""
        return self.name.partition("@")[2]

    def path(self, relative: str) -> Path:
        """An input, or a place beside the outputs."""
        return self.root / relative

    def output(self, relative: str) -> Path:
        """Where to write an output; it gets its real place only when the whole stage has succeeded."""
        self._outputs.append(Path(relative))
        staged = self._staging / relative
        staged.parent.mkdir(parents=True, exist_ok=True)
        return staged

    def publish(self) -> None:
        """Moves every output to its real place.

        Raises:
            UserError: where the stage did not write an output that it asked a place for.
        """
        for relative in self._outputs:
            if not (self._staging / relative).exists():
                raise UserError(f"{self.name} did not write {relative}")
        for relative in self._outputs:
            final = self.root / relative
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.is_dir() and not final.is_symlink():
                shutil.rmtree(final)
            # Outputs of DVC may be read-only links into its cache: replaced, never written through.
            (self._staging / relative).replace(final)


StageFunction = Callable[[Stage], Summary]


def function_of(name: str) -> StageFunction:
    """The function behind a stage name, imported on use.

    Raises:
        UserError: where no stage has that name.
    """
    base = name.partition("@")[0]
    if base not in STAGES:
        raise UserError(f"no stage is called {base!r}; there are {', '.join(STAGES)}")
    function: StageFunction = importlib.import_module(f"tasks.{base}").run
    return function


def execute(
    name: str,
    root: Path,
    *,
    run: "Run",
    key: str,
    progress: Progress | None = None,
    record: Callable[[], None] = lambda: None,
) -> Summary:
    """Runs one stage: reads its inputs, writes its outputs, and returns a few figures about it.

    Args:
        name: `distill`, or `train_teacher@resnet` for one of several.
        root: the project's folder.
        run: where parameters and metrics go; finished here, as failed where the stage raises.
        key: names the stage's inputs and parameters; checkpoints of another key are never resumed.
        progress: shared bars of a flow; else the stage draws its own.
        record: notes what was made, once the outputs stand; where it refuses, the run has failed.

    Raises:
        UserError: for a mistake of the user, a full disk or a folder that cannot be written.
    """
    if (processes := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        # Each of them would publish the same outputs and tell MLflow of them.
        raise UserError(
            f"a launcher started this as one of {processes} processes (WORLD_SIZE); a stage is one process, so start "
            "it without: `dvc repro`, `python -m flows run` or `python -m tasks`"
        )
    params = load(root)
    function = function_of(name)
    seed(params.seed)
    state = root / STATE / "checkpoints" / name.replace("@", "-") / key[:16]
    try:
        with _translated_errors(), _staging(root, name) as staging, progress or Progress() as bars:
            state.mkdir(parents=True, exist_ok=True)
            stage = Stage(name, root, params, run, bars, state, staging)
            run.log_params(flat(params.model_dump(mode="json")))
            summary = function(stage)
            stage.publish()
            record()
    except BaseException as error:
        run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.log_metrics({name: value for name, value in summary.items() if not isinstance(value, str)})
    run.finish("FINISHED")
    # A finished stage resumes from nothing, whatever its inputs were: all its checkpoints can go.
    shutil.rmtree(state.parent, ignore_errors=True)
    return summary


def seed(number: int) -> None:
    """Seeds Python's and NumPy's generators; training seeds torch itself."""
    import numpy as np

    random.seed(number)
    np.random.seed(number)


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections as dotted keys, which MLflow can compare."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A folder on the project's own disk, removed whatever happens; leftovers of killed runs go too."""
    parent = root / STATE / "staging" / name.replace("@", "-")
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir(parents=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Says what to do about a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        where = error.filename or "the project's folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left to write {where}: free some and run again; finished work is kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{where} cannot be written: check its permissions and owner") from error
        raise


SHELLS = {"sh", "dash", "bash", "zsh", "ksh", "fish"}


def parent_watchdog() -> None:
    """Ends this process when its parent dies: a killed `dvc repro` must not leave a stage writing behind its back."""
    import threading
    import time

    import psutil

    def ancestors() -> tuple[int, ...]:
        """The parent, and the parent of a shell that stands between: some shells stay where others step aside."""
        try:
            parent = psutil.Process(os.getppid())
            return (parent.pid, parent.ppid()) if parent.name() in SHELLS else (parent.pid,)
        except psutil.NoSuchProcess:
            return ()

    first = ancestors()

    def watch() -> None:
        while ancestors() == first:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watchdog").start()
