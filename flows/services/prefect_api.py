"""Which Prefect server a flow talks to, found before Prefect is imported, since Prefect reads it then."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distillery.errors import UserError
from flows.commands.server import PREFECT_VARIABLE, find
from flows.services.processes import Service, answers, free_port, stop
from tasks.folders import STATE

START_LOCK_SECONDS = 180.0
PROBE_SECONDS = 3.0


@contextmanager
def available(root: Path, say: Callable[[str], None]) -> Iterator[str | None]:
    """Sees to it that PREFECT_API_URL names a server that answers: the user's, the project's, else a temporary one.

    Yields:
        The address of the dashboard; None for a temporary server.

    Raises:
        UserError: where the user's server does not answer, or the temporary one does not start.
    """
    if url := os.environ.get(PREFECT_VARIABLE):
        if not answers(f"{url.rstrip('/')}/health"):
            raise UserError(
                f"the Prefect server {url} ({PREFECT_VARIABLE}) does not answer; start it, or unset the variable "
                "to use a temporary one"
            )
        if not _admits(url):
            raise UserError(
                f"the Prefect server {url} ({PREFECT_VARIABLE}) wants a login: "
                "set PREFECT_API_AUTH_STRING to user:password"
            )
        yield url.removesuffix("/api")
    elif found := find(root):
        os.environ[PREFECT_VARIABLE] = f"{found['prefect']}/api"
        yield found["prefect"]
    else:
        say("starting a temporary Prefect server (`python -m flows server` keeps one) ...")
        service = _temporary(root)
        try:
            os.environ[PREFECT_VARIABLE] = f"{service.url}/api"
            yield None
        finally:
            stop([service])


def _admits(url: str) -> bool:
    """Whether a server takes the login of the environment; its health it tells everybody."""
    import requests

    login = os.environ.get("PREFECT_API_AUTH_STRING")
    user, _, password = (login or "").partition(":")
    try:
        answer = requests.get(
            f"{url.rstrip('/')}/admin/version", auth=(user, password) if login else None, timeout=PROBE_SECONDS
        )
    except requests.exceptions.RequestException:
        return True  # whatever it is, it is not about a login
    return answer.status_code not in (401, 403)


def _temporary(root: Path) -> Service:
    """A server that answers."""
    from filelock import FileLock

    lock = root / STATE / "prefect.lock"
    lock.parent.mkdir(exist_ok=True)
    # Two servers that make the tables of one fresh database at once break each other.
    with FileLock(lock, timeout=START_LOCK_SECONDS):
        service = Service.prefect(root, free_port(), ui=False)
        try:
            service.wait()
        except BaseException:
            stop([service])
            raise
    return service
