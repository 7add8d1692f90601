"""What DVC's cache holds and what of it is needed, by DVC's own file formats: `dvc.lock`, `*.dvc` and `.dir`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from distillery.errors import UserError

FOLDER = Path(".dvc") / "cache"
OBJECTS = Path("files") / "md5"


def hashes(document: Any) -> Iterator[str]:
    """The hashes that a `dvc.lock` or a `.dvc` file names, of outputs and of dependencies."""
    if isinstance(document, dict):
        if isinstance(document.get("md5"), str):
            yield document["md5"]
        for value in document.values():
            yield from hashes(value)
    elif isinstance(document, list):
        for value in document:
            yield from hashes(value)


def of_workspace(root: Path) -> set[str]:
    """The hashes that the files of a working copy name.

    Raises:
        UserError: where one of them cannot be read, so that nobody knows what it needs.
    """
    files = [root / "dvc.lock", *root.glob("*.dvc"), *(root / "data").rglob("*.dvc")]
    found: set[str] = set()
    for file in files:
        if file.is_file():
            try:
                found |= set(hashes(yaml.safe_load(file.read_text(encoding="utf-8"))))
            except (OSError, yaml.YAMLError) as error:
                raise UserError(f"{file} cannot be read ({error}), so what it needs is not known") from None
    return found


def unneeded(cache: Path, needed: Iterable[str], before: float) -> list[Path]:
    """Files of the cache that no hash leads to, directly or as part of a folder.

    Args:
        cache: DVC's cache folder.
        needed: hashes.
        before: seconds since 1970; what was made later stays, for a run may be about to name it.
    """
    kept = set(needed)
    for folder in [one for one in kept if one.endswith(".dir")]:
        file = _file(cache, folder)
        if file.exists():
            kept |= {entry["md5"] for entry in json.loads(file.read_text(encoding="utf-8"))}
    return sorted(
        file
        for file in (cache / OBJECTS).glob("*/*")
        if file.parent.name + file.name not in kept and file.stat().st_mtime < before
    )


def _file(cache: Path, name: str) -> Path:
    return cache / OBJECTS / name[:2] / name[2:]
