"""Models by name: `models:/student@champion`, `models:/student/3`, or a folder such as `models/student`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distillery.errors import UserError
from tasks.folders import STATE
from tasks.tracking.service import default_service, first_line
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>.+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Files:
    """A model on disk.

    Attributes:
        title: for people.
        onnx: the exported model.
        description: its `model.json`, which holds the schema.
        weights: its `weights.safetensors`.
    """

    title: str
    onnx: Path
    description: Path
    weights: Path


def version_of(tracker: Tracker, uri: str) -> "ModelVersion":
    """The registered version that a URI names.

    Raises:
        UserError: where it is no such URI, or the registry has no such version.
    """
    from mlflow.exceptions import MlflowException

    found = URI.fullmatch(uri)
    if found is None:
        raise UserError(f"{uri!r} names no version: say models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        if found["alias"]:
            return tracker.client.get_model_version_by_alias(found["name"], found["alias"])
        return tracker.client.get_model_version(found["name"], found["version"])
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                f"the registry has no {uri} ({first_line(error)}){_others(tracker, found['name'])}"
            ) from None
        raise UserError(f"the registry does not tell what {uri} is ({first_line(error)}); try again") from error


@contextmanager
def downloaded(root: Path, tracker: Tracker, version: "ModelVersion", part: str = "") -> Iterator[Path]:
    """The folder that was registered, or a folder in it, until the block ends.

    Raises:
        UserError: where the files of the version cannot be had.
    """
    from mlflow.artifacts import download_artifacts

    uri = f"models:/{version.name}/{version.version}/{part}".rstrip("/")
    (root / STATE).mkdir(exist_ok=True)
    with TemporaryDirectory(dir=root / STATE) as place:
        try:
            with default_service(tracker.uri):
                folder = Path(download_artifacts(uri, dst_path=place))
        except Exception as error:
            raise UserError(f"the files of {uri} cannot be had: {first_line(error)}") from error
        yield folder


def registered_files(folder: Path, version: "ModelVersion") -> Files:
    """The files of a downloaded version."""
    extra = folder / "extra_files"
    title = f"{version.name} version {version.version}"
    return Files(title, folder / "model.onnx", extra / "model.json", extra / "weights.safetensors")


def local_files(folder: Path) -> Files:
    """The files of a folder such as `models/student`.

    Raises:
        UserError: where it holds no exported model.
    """
    if not (folder / "model.onnx").exists():
        raise UserError(f"{folder} holds no model.onnx: `python -m flows run` makes models/student")
    return Files(str(folder), folder / "model.onnx", folder / "model.json", folder / "weights.safetensors")


def _others(tracker: Tracker, name: str) -> str:
    """What the registry has under a name instead."""
    try:
        model = tracker.client.get_registered_model(name)
        versions = sorted(int(one.version) for one in tracker.client.search_model_versions(f"name = '{name}'"))
    except Exception as error:
        return f"; {first_line(error)}"
    aliases = ", ".join(f"@{alias} ({version})" for alias, version in sorted(model.aliases.items()))
    return f"; it has {', '.join(map(str, versions)) or 'no version'}" + (
        f" and the aliases {aliases}" if aliases else ""
    )
