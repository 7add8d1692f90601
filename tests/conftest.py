"""Projects that tests share: making one takes seconds, running its pipeline more."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests run side by side, and threads of several trainings that share cores wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.projects import Gate, Project


@pytest.fixture(scope="session")
def _fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.create(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="session")
def _finished(_fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = _fresh.copy(tmp_path_factory.mktemp("finished") / "project")
    with project.server():
        project.flows("run")
        yield project


@pytest.fixture
def project(_fresh: Project, tmp_path: Path) -> Project:
    """A project in which nothing has run."""
    return _fresh.copy(tmp_path / "project")


@pytest.fixture
def finished(_finished: Project, tmp_path: Path) -> Project:
    """A project whose whole pipeline was run by the flow; its flows find a Prefect server."""
    return _finished.copy(tmp_path / "project")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate, closed."""
    folder = tmp_path / "gate"
    folder.mkdir()
    return Gate(folder)
