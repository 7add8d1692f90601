"""`python -m flows init NAME`: lays a scenario, a complete params file, over `params.yaml`."""

import subprocess
import sys
from pathlib import Path

from distillery import partitions
from distillery.errors import UserError
from tasks.params import FILE

FOLDER = "scenarios"


def init(root: Path, name: str | None, *, force: bool) -> int:
    """Puts a scenario in the place of `params.yaml`, or lists what there is; returns the exit code.

    Raises:
        UserError: for an unknown name (with the list), or where `params.yaml` holds changes that are saved nowhere or
            data have arrived for the present parameters.
    """
    known = {file.stem: file for file in sorted((root / FOLDER).glob("*.yaml"))}
    if name is None:
        for each, file in known.items():
            print(f"{each:<12} {_about(file)}")
        return 0
    if name not in known:
        listed = ", ".join(known) or f"none in {root / FOLDER}"
        raise UserError(f"no scenario is called {name!r}; there are: {listed}")
    target = root / FILE
    text = known[name].read_bytes()
    if target.exists() and not force and not _is_saved(root, target.read_bytes(), list(known.values())):
        raise UserError(f"{FILE} holds changes that are saved nowhere: commit or copy it, or give --force")
    if not force and (arrived := partitions.found(root / partitions.FOLDER)):
        raise UserError(
            f"{partitions.FOLDER} holds {len(arrived)} batches of the present data, which would be read as rows of the "
            "scenario: move them away, or give --force"
        )
    target.write_bytes(text)
    print(f"{FILE} is now {name}; `python -m flows run --dry-run` tells what that makes stale", file=sys.stderr)
    return 0


def _about(file: Path) -> str:
    """What the first line of a scenario says of it."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").partition("`")[0].strip()


def _is_saved(root: Path, text: bytes, scenarios: list[Path]) -> bool:
    """Whether Git's last commit or a scenario holds the same text."""
    if any(file.read_bytes() == text for file in scenarios):
        return True
    try:
        command = ["git", "show", f"HEAD:./{FILE}"]
        committed = subprocess.run(command, cwd=root, capture_output=True, check=False)  # noqa: S603 - fixed words
    except FileNotFoundError:
        return False
    return committed.returncode == 0 and committed.stdout == text
