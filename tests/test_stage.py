"""What the wrapper of all stages promises when the disk does not play along."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distillery.errors import UserError
from tests.data_fixtures import project, rows, stages, write_table

NOBODY = 65534


@contextmanager
def as_a_user_who_may_not(folder: Path) -> Iterator[None]:
    """Permissions do not bind root, so root becomes somebody else for a moment."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_output_folder_is_told_and_nothing_is_half_written(open_folder: Path) -> None:
    root = project(open_folder / "project")
    write_table(root, rows())
    stages(root, "ingest", "validate", "prepare")
    shutil.rmtree(root / "data" / "prepared")
    if os.geteuid() == 0:
        for path in [root, *root.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    with as_a_user_who_may_not(root / "data"), pytest.raises(UserError, match=r"data/prepared.* cannot be written"):
        stages(root, "prepare")
    assert not (root / "data" / "prepared").exists()
    stages(root, "prepare")
    assert (root / "data" / "prepared" / "train" / "target-0.npy").exists()


def test_a_full_disk_is_told_and_the_old_output_stays(tmp_path: Path) -> None:
    root = project(tmp_path)
    write_table(root, rows())
    stages(root, "ingest", "validate", "prepare")
    before = (root / "data" / "table" / "rows.parquet").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(UserError, match="no space left to write"):
            stages(root, "ingest")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (root / "data" / "table" / "rows.parquet").read_bytes() == before
    assert not any((root / ".state" / "staging").rglob("*"))


def test_a_launcher_of_several_processes_is_told_that_a_stage_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one of 2 processes"):
        stages(tmp_path, "ingest")
