"""`python -m flows reproduce`: makes a registered model again, in a copy of the project, and compares it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from distillery import partitions
from distillery.errors import UserError
from flows.registry.files import Files, downloaded, registered_files, version_of
from flows.registry.registration import digest, sha256
from flows.terminal import say
from tasks import folders
from tasks.folders import STATE
from tasks.params import FILE, Params, load
from tasks.promotion import descent
from tasks.tracking.service import default_service
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LINEAGE = (descent.LOCK, FILE, descent.PARTITIONS)
COPIES = STATE / "reproduce"


def reproduce(root: Path, model: str, into: Path | None, *, force: bool) -> int:
    """Brings `dvc.lock` and `params.yaml` of a version back in a Git worktree, runs what is missing, and compares.

    The worktree shares DVC's cache with the project, so what the cache holds is not computed again.

    Args:
        root: the project's folder.
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        into: where the copy goes, a folder that does not exist; None: below `.state/reproduce`.
        force: compute every stage, whatever the cache holds.

    Returns:
        0 where the files that decide what the model answers are equal to the registered ones, else 1.

    Raises:
        UserError: where the version, its lineage, its revision or its data cannot be had, or a stage fails.
    """
    tracker = Tracker.connect(root, load(root).registry.experiment)
    version = version_of(tracker, model)
    name = f"{version.name} version {version.version}"
    copy = (root / COPIES / f"{version.name}-{version.version}" if into is None else into).absolute()
    with downloaded(root, tracker, version) as folder:
        registered = registered_files(folder, version)
        weights = sha256(registered.weights)
    place = _worktree(root, copy, version)
    texts = lineage(tracker, version)
    for file in (descent.LOCK, FILE):
        (place / file).write_text(texts[file], encoding="utf-8")
    _bring_partitions(place, yaml.safe_load(texts[descent.PARTITIONS]))
    if version.tags.get("git_tree") == "dirty":
        say(f"{name} was made from a tree with changes that Git does not hold: its code may have been another")
    params = load(place)
    _share_cache(root, place)
    _bring_files(place, params)
    made, stage = _place(place, params, version.name)
    say(f"bringing {name} up to date in {place}")
    command = ["repro", stage, *(["--force"] if force else [])]
    if _dvc(place, *command, shown=True).returncode:
        raise UserError(f"`dvc repro` failed in {place}; mend what it tells and repeat")
    equal = digest(made.onnx, made.weights, made.description) == version.tags["digest"]
    told = "equal" if sha256(made.weights) == weights else "DIFFERENT"
    print(f"weights  {told}  (sha256 {weights[:16]} registered, {sha256(made.weights)[:16]} reproduced)")
    print(f"model    {'equal' if equal else 'DIFFERENT'}  (weights, model.json and the ONNX file)")
    print(f"copy     {place}; `git worktree remove --force {copy}` removes it")
    if not equal:
        say(
            "other library versions, another processor or another number of threads round differently; so do soft "
            "targets that are asked for all at once, where they had grown with the data"
        )
    return 0 if equal else 1


def _worktree(root: Path, copy: Path, version: "ModelVersion") -> Path:
    """The project's folder in a worktree at the version's revision."""
    revision = version.tags.get("git_revision")
    if revision is None:
        raise UserError(f"{version.name} version {version.version} does not say of which Git revision it is")
    prefix = _git(root, "rev-parse", "--show-prefix").strip()
    if copy.exists():
        head = _git(copy, "rev-parse", "HEAD").strip()
        if head != revision or not (copy / ".git").is_file():
            raise UserError(f"{copy} exists and is no copy of that revision; remove it, or give --into")
    else:
        _git(root, "worktree", "prune")
        _git(root, "worktree", "add", "--detach", str(copy), revision)
    return copy / prefix


def _bring_partitions(place: Path, arrived: Mapping[str, str]) -> None:
    """Makes the `.dvc` files of what had arrived those of that time, committed or not.

    Raises:
        UserError: where a name is none of a partition.
    """
    folder = place / partitions.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.dvc"):
        file.unlink()
    for name, text in arrived.items():
        if not partitions.NAME.fullmatch(name.removesuffix(".dvc")):
            raise UserError(f"{descent.PARTITIONS} of that version names {name!r}, which is no partition")
        (folder / name).write_text(text, encoding="utf-8")


def lineage(tracker: Tracker, version: "ModelVersion") -> dict[str, str]:
    """The texts of `LINEAGE`: of the version's own files, else of the run that registered it.

    Raises:
        UserError: where it has none.
    """
    from mlflow.artifacts import list_artifacts, load_text
    from mlflow.exceptions import MlflowException

    places = (f"models:/{version.name}/{version.version}/lineage", f"runs:/{version.run_id}")
    found = {}
    with default_service(tracker.uri):
        for name in LINEAGE:
            for place in places:
                try:
                    found[name] = load_text(f"{place}/{name}")
                    break
                except (MlflowException, OSError):
                    continue
            else:
                listed = [Path(each.path).name for each in list_artifacts(places[0])]
                if name != descent.PARTITIONS or name in listed:
                    raise UserError(
                        f"{version.name} version {version.version} has no {name}: its registration was interrupted"
                    )
                found[name] = "{}"  # it was registered before anything could arrive
    return found


def _share_cache(root: Path, place: Path) -> None:
    """Lets the copy use the project's cache, and its remotes with their credentials."""
    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copyfile(local, place / ".dvc" / "config.local")
    cache = _dvc(root, "cache", "dir").stdout.strip()
    _dvc(place, "cache", "dir", "--local", cache)


def _bring_files(place: Path, params: Params) -> None:
    """Takes files from the cache, and into the cache from the default remote where there is one."""
    if _dvc(place, "config", "core.remote").stdout.strip():
        _dvc(place, "fetch", "--run-cache", shown=True)
    _dvc(place, "checkout", "--force", "--allow-missing")
    folders.make_standing(place)
    if not (place / params.data.path).exists():
        raise UserError(
            f"{params.data.path} of that time is neither in Git nor in DVC's cache or remote, so nothing can be made "
            f"from it: put it into {place}, or `dvc remote add` the remote that holds it"
        )


def _place(root: Path, params: Params, name: str) -> tuple[Files, str]:
    """The files of a model in the copy, and the stage that makes the last of them."""
    if name == params.registry.student:
        folder = onnx = root / "models" / "student"
        return Files(name, onnx / "model.onnx", folder / "model.json", folder / "weights.safetensors"), "evaluate"
    keys = params.distill.teachers
    key = next((key for key in keys if name in (f"{params.registry.teacher}-{key}", params.registry.teacher)), None)
    if key is None:
        raise UserError(f"params.yaml of that version names no model {name!r}")
    folder = root / "models" / "teachers" / key
    onnx = root / "models" / "onnx" / f"teacher-{key}.onnx"
    return Files(name, onnx, folder / "model.json", folder / "weights.safetensors"), "export"


def _git(folder: Path, *arguments: str) -> str:
    """Git's answer.

    Raises:
        UserError: with what Git says, where it refuses.
    """
    command = ["git", "-C", str(folder), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    if answer.returncode:
        raise UserError(
            f"git {arguments[0]}: {answer.stderr.strip() or 'failed'}; `git fetch` may bring what is missing"
        )
    return answer.stdout


def _dvc(folder: Path, *arguments: str, shown: bool = False) -> "subprocess.CompletedProcess[str]":
    """Runs DVC as a user would, with the `python` of its stages being this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    output = None if shown else subprocess.PIPE
    return subprocess.run(  # noqa: S603 - fixed words
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": path},
        text=True,
        stdout=sys.stderr if shown else output,
        stderr=output,
        check=False,
    )
