"""What the tracking service has not got yet, one file a run, kept until it has."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

Record = dict[str, Any]


class Journal:
    """The records of one run as lines of JSON, and copies of its artifacts.

    It exists from the start of a run until the service has everything, so a run that was killed leaves one too.
    Its writer holds a lock, which ends with the process; nobody else touches the journal until then.
    """

    def __init__(self, file: Path, lock: FileLock) -> None:
        self.file = file
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, name: str) -> Self:
        """Starts the journal of a new run."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.jsonl"
        lock = _lock(file)
        lock.acquire(timeout=0)
        return cls(file, lock)

    @classmethod
    @contextmanager
    def left_behind(cls, folder: Path) -> Iterator[list[Self]]:
        """The journals that no living process writes, oldest first, held until the block ends."""
        held = []
        for file in sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_ctime_ns):
            lock = _lock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            held.append(cls(file, lock))
        try:
            # A file can have gone while its lock was being taken.
            yield [journal for journal in held if journal.file.exists()]
        finally:
            for journal in held:
                journal.close()

    def append(self, record: Record) -> None:
        """Adds a record; it survives the death of the process, whole or not at all."""
        with self.file.open("ab+") as stream:
            # The line before may be torn: its writer was killed.
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(json.dumps(record).encode() + b"\n")

    def touch(self) -> None:
        """Notes that the run is alive: a killed run ended about when its journal was last touched."""
        os.utime(self.file)

    def touched(self) -> int:
        """When the run was last heard of, in milliseconds since 1970."""
        return int(self.file.stat().st_mtime * 1000)

    def keep(self, path: Path) -> Path:
        """Copies an artifact, since the original may change or go before it is logged."""
        kept = self._files / str(time.time_ns()) / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copy2(path, kept)
        return kept

    def read(self) -> list[Record]:
        """All whole records, in order."""
        records = []
        for line in self.file.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # Torn by a kill: it never counted as written.
        return records

    def reject(self) -> Path:
        """Sets the journal aside as one that the service refuses."""
        return self.file.rename(self.file.with_suffix(".rejected"))

    def remove(self) -> None:
        """Deletes everything: the service has it."""
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self._files, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Leaves the journal to whoever flushes it."""
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    @property
    def _files(self) -> Path:
        return self.file.with_suffix(".files")


def _lock(file: Path) -> FileLock:
    """Held by a process, not by a thread: a run may be finished by another thread than it was started by."""
    return FileLock(file.with_suffix(".lock"), thread_local=False)
