"""`python -m flows why MODEL`: where a registered model comes from, on one screen or as JSON."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distillery.errors import UserError
from flows.commands.history import plain
from flows.registry.files import downloaded, version_of
from flows.registry.registration import sha256
from flows.terminal import wide
from tasks import environment
from tasks.params import FILE, load
from tasks.promotion import descent
from tasks.promotion.ledger import Ledger
from tasks.promotion.telling import local
from tasks.tracking.service import first_line
from tasks.tracking.tracker import PARENT_TAG, Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FILES = ("onnx_sha256", "weights_sha256")
SOFT_TARGETS = "data/soft_targets"
SHOWN = ("seed", "data", "teachers", "student", "distill", "finetune")


def show(root: Path, model: str, *, as_json: bool) -> int:
    """Prints the descent of a model.

    Args:
        root: the project's folder.
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a file or folder of a registered model.
        as_json: for programs.

    Raises:
        UserError: where there is no such model, or the registry does not answer.
    """
    params = load(root)
    with environment.quick_imports():
        tracker = Tracker.connect(root, params.registry.experiment)
    from mlflow.exceptions import MlflowException

    try:
        version = version_of(tracker, model) if model.startswith("models:/") else _of_file(tracker, Path(model))
        found = collect(root, tracker, version)
    except MlflowException as error:
        raise UserError(f"the registry does not tell where {model} comes from: {first_line(error)}") from error
    print(json.dumps(found, indent=2)) if as_json else _print(found)
    return 0


def collect(root: Path, tracker: Tracker, version: "ModelVersion") -> dict[str, Any]:
    """Everything that is known of a version: what `--json` prints."""
    client, tags = tracker.client, dict(version.tags)
    name, number = str(version.name), str(version.version)
    aliases = client.get_registered_model(name).aliases
    data: dict[str, Any] = {}
    soft_targets: dict[str, str] = {}
    parameters: Any = {}
    # Versions that were registered before there was a lineage have none.
    if "rows" in tags:
        with downloaded(root, tracker, version, descent.FOLDER) as folder:
            known, hashes = descent.data_of(folder), descent.hashes(folder / descent.LOCK)
            file = folder / FILE
            parameters = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
        # A dvc.lock also keeps what it knows of teachers that are no longer asked.
        told = {f"{SOFT_TARGETS}/{key}" for key in (parameters.get("distill") or {}).get("teachers") or []}
        soft_targets = {path: value for path, value in hashes.items() if path in told}
        data = {} if known is None else known.model_dump()
        used = {path for path in hashes if path.startswith("data/") or path == parameters["data"]["path"]}
        data["dvc"] = {path: hashes[path] for path in sorted(used - soft_targets.keys() - {SOFT_TARGETS})}
    moves = [move for move in Ledger(tracker, name).history() if number in (move.before, move.after)]
    return {
        "model": name,
        "version": number,
        "aliases": sorted(alias for alias, of in aliases.items() if str(of) == number),
        "registered": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(),
        "candidate": tags.get("candidate"),
        "digest": tags.get("digest"),
        "scores": {key: value for key, value in tags.items() if key.startswith("test_")},
        "data": data,
        "parameters": parameters,
        "git_revision": tags.get("git_revision"),
        "git_tree": tags.get("git_tree"),
        "teachers": [each for each in tags.get("teacher", "").split(", ") if each],
        "soft_targets": soft_targets,
        "flow_run": version.run_id or None,
        "stages": _stages(tracker, version.run_id) if version.run_id else {},
        "promotion": tags.get("promotion"),
        "gates": {key.removeprefix("gate."): value for key, value in tags.items() if key.startswith("gate.")},
        "history": [plain(move) for move in moves],
    }


def _of_file(tracker: Tracker, path: Path) -> "ModelVersion":
    """The newest version that a file belongs to."""
    file = path / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is no file and no models:/NAME@ALIAS or models:/NAME/VERSION")
    digest = sha256(file)
    found = [one for tag in FILES for one in tracker.client.search_model_versions(f"tags.{tag} = '{digest}'")]
    if not found:
        raise UserError(
            f"no registered model has the file {file} (sha256 {digest[:16]}); `python -m flows run` registers what it "
            "makes: model.onnx and weights.safetensors are known by their content"
        )
    return max(found, key=lambda one: int(one.creation_timestamp))


def _stages(tracker: Tracker, flow: str) -> dict[str, dict[str, str]]:
    """Stage -> the run that computed it: of this flow, or of the earlier one whose result was kept or restored."""
    client = tracker.client
    run = client.get_run(flow)
    found = {}
    for child in client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{flow}'"):
        if "stage" in child.data.tags and child.info.status == "FINISHED":
            found[child.data.tags["stage"]] = {"run": child.info.run_id, "how": "computed"}
    for tag, origin in run.data.tags.items():
        how, _, stage = tag.partition(".")
        if how in ("cached", "restored"):
            # A tag's name may not hold every sign of a stage's name.
            name = stage if origin == "unknown" else client.get_run(origin).data.tags["stage"]
            found[name] = {"run": origin, "how": how}
    return dict(sorted(found.items()))


def _print(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, text in _lines(found):
        table.add_row(heading, text)
    wide(160).print(table, highlight=False, markup=False)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Heading and text, what people ask first in front."""
    aliases = "".join(f" @{alias}" for alias in found["aliases"])
    yield "model", f"{found['model']} version {found['version']}{aliases}, sha256 {str(found['digest'])[:16]}"
    registered = local(datetime.fromisoformat(found["registered"]))
    yield "registered", registered + (f", the {found['candidate']} student" if found["candidate"] else "")
    if found["scores"]:
        yield "scores then", ", ".join(f"{key} {value}" for key, value in found["scores"].items())
    for split, rows in found["data"].get("splits", {}).items():
        yield f"data, {split}", f"{rows['rows']} rows, {rows['labelled']} labelled"
    for path, value in found["data"].get("dvc", {}).items():
        yield "", f"{path}  {value}"
    tree = {"clean": "a clean tree", "dirty": "a tree with changes that Git does not hold"}
    if found["git_revision"]:
        yield "code", f"Git {found['git_revision'][:12]}, {tree.get(found['git_tree'], 'unknown tree')}"
    for teacher in found["teachers"]:
        yield "teacher", teacher.replace("/", " version ")
    for path, value in found["soft_targets"].items():
        yield "soft targets", f"{path}  {value}"
    for section in SHOWN:
        if section in found["parameters"]:
            text = yaml.safe_dump(found["parameters"][section], default_flow_style=True, width=10_000)
            yield section, text.removesuffix("...\n").strip()
    yield from _making_and_serving(found)


def _making_and_serving(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What made it, and what became of it."""
    if found["flow_run"]:
        yield "flow run", found["flow_run"]
    for stage, run in found["stages"].items():
        yield f"  {stage}", f"{run['run']}  {run['how']}"
    if found["promotion"]:
        yield "promotion", found["promotion"]
    for gate, said in found["gates"].items():
        yield f"  {gate}", said
    for move in found["history"]:
        when = local(datetime.fromisoformat(move["time"]))
        yield (
            f"move {move['sequence']}",
            (
                f"{when} {move['action']} {move['before'] or 'none'} to {move['after'] or 'none'} by {move['who']}: "
                f"{move['why']}"
            ),
        )
