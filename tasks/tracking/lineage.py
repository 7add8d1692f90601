"""Where a result comes from, as tags of its MLflow run."""

import subprocess
from pathlib import Path

from tasks.tracking.tracker import KEY_TAG
from tasks.versioning.graph import Inputs


def tags(root: Path, name: str, inputs: Inputs) -> dict[str, str]:
    """Tags of the run of one stage: its name, its key, the revision, and the hash of every file it reads."""
    hashes = {f"input.{path}": digest for path, digest in inputs.files.items()}
    return {"stage": name, KEY_TAG: inputs.key} | revision(root) | hashes


def datasets(inputs: Inputs) -> dict[str, str]:
    """Those inputs that are data, not code: path -> DVC's hash."""
    return {path: digest for path, digest in inputs.files.items() if path.startswith("data/")}


def revision(root: Path) -> dict[str, str]:
    """Git's revision and whether the tree is clean: nothing differs from it but `dvc.lock`."""
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return {}
    changed = [line[3:] for line in (_git(root, "status", "--porcelain") or "").splitlines()]
    return {"git_revision": head.strip(), "git_tree": "dirty" if set(changed) - {"dvc.lock"} else "clean"}


def _git(root: Path, *arguments: str) -> str | None:
    """Git's answer; None where there is no Git or it knows no such thing."""
    try:
        command = ["git", *arguments]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    except FileNotFoundError:
        return None
    return answer.stdout if answer.returncode == 0 else None
