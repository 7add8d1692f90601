"""Git and DVC remotes: what a retraining commits and pushes, where params.yaml asks for it."""

import subprocess
from pathlib import Path

from distillery import partitions
from distillery.errors import UserError
from tasks.params import FILE
from tasks.params.sections import Retraining
from tasks.tracking.service import AwayError
from tasks.versioning.graph import Graph

DATA = (partitions.FOLDER.as_posix(), FILE)
RESULTS = ("dvc.lock",)


def check(root: Path, graph: Graph, retraining: Retraining) -> None:
    """Tells at the beginning what would fail at the end.

    Raises:
        UserError: where commits are asked for and Git does not know whose, or pushes and there is no remote.
    """
    if retraining.commit:
        _git(root, "var", "GIT_COMMITTER_IDENT")
        _git(root, "rev-parse", "--is-inside-work-tree")
    if retraining.push and not graph.has_remote:
        raise UserError("retraining.push: there is no default remote; `dvc remote add --default NAME URL` names one")


def commit(root: Path, paths: tuple[str, ...], message: str) -> bool:
    """Commits these paths and nothing else; False: nothing in them has changed.

    Raises:
        UserError: with what Git says, where it refuses.
    """
    present = [path for path in paths if (root / path).exists()]
    _git(root, "add", "--", *present)
    if not _git(root, "diff", "--cached", "--name-only", "--", *present).strip():
        return False
    _git(root, "commit", "--quiet", "--message", message, "--", *present)
    return True


def push(graph: Graph) -> int:
    """Sends data and results to the default remote; returns the number of files.

    Raises:
        AwayError: where the remote does not take them: it may be away, so trying again can help.
    """
    try:
        return graph.push()
    except Exception as error:
        # Each kind of remote fails in the words of its own library.
        raise AwayError(
            f"retraining.push: {error}; what was made is kept, and the next retraining pushes it"
        ) from error


def _git(root: Path, *arguments: str) -> str:
    """Git's answer."""
    try:
        command = ["git", *arguments]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError:
        raise UserError("retraining.commit: there is no git on this machine") from None
    if answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        raise UserError(f"retraining.commit: git {arguments[0]}: {' '.join(said[:3]) or 'failed'}")
    return answer.stdout
