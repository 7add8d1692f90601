"""Folders that stages depend on: they always exist, and hold nothing of teachers that are no longer in params."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.params import Params

# What is needed again but is no result: checkpoints, journals, locks; ignored by Git and DVC.
STATE = Path(".state")
# One entry a teacher, as a folder or as a file.
OF_TEACHERS = ("models/teachers", "data/soft_targets", "reports/soft_targets")
STANDING = (*OF_TEACHERS, "custom", "data/partitions")


def make_standing(root: Path) -> None:
    """Makes the folders that DVC would miss; a scheme without a teacher leaves them empty."""
    for folder in STANDING:
        (root / folder).mkdir(parents=True, exist_ok=True)


def prune(root: Path, params: "Params") -> list[Path]:
    """Removes what teachers left that are no longer in params; DVC's cache still has it.

    Returns:
        What was removed, relative to `root`.
    """
    removed = []
    for folder in OF_TEACHERS:
        for entry in sorted((root / folder).iterdir()):
            if entry.name.startswith(".") or entry.stem in params.teachers:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry.relative_to(root))
    return removed
