"""Locks of a project that go when their process does, however it ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distillery.errors import UserError
from tasks.folders import STATE


@contextmanager
def alone(root: Path, name: str, busy: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """One process at a time does what `name` stands for; that process may take the lock again.

    Args:
        root: the project's folder.
        name: of the lock.
        busy: what is said where another process has it.
        wait: told `busy`, and the other one is waited for; None: do not wait.

    Raises:
        UserError: saying `busy`, where `wait` is None.
    """
    from filelock import FileLock, Timeout

    file = root / STATE / f"{name}.lock"
    file.parent.mkdir(exist_ok=True)
    lock = FileLock(file, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if wait is None:
            raise UserError(busy) from None
        wait(busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
