"""Teacher and shipped student in MLflow's registry: once each, whatever happens in between."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from distillery.errors import UserError
from distillery.schema import Schema
from tasks.folders import STATE
from tasks.params import load
from tasks.promotion import descent
from tasks.results import EVALUATION, Evaluation
from tasks.tracking.lineage import revision
from tasks.tracking.service import AwayError, default_service, first_line, health_problem, is_http
from tasks.tracking.tracker import PENDING, Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from distillery.inference import Feed

ALIAS = "challenger"


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: of the registered model.
        version: that has the alias `challenger` now.
        digest: SHA-256 of its files.
        is_new: whether this call made it; else the same files had been registered before.
    """

    name: str
    version: str
    digest: str
    is_new: bool


@dataclass(frozen=True)
class _Model:
    """What is to be registered: an ONNX file, the saved model it was made from, and files that go with them.

    Attributes:
        seen: the rows that it was trained on; see `tasks.promotion.descent`.
        alone: of a student, the ONNX file of the same network trained without a teacher.
    """

    name: str
    onnx: Path
    folder: Path
    extras: tuple[Path, ...]
    seen: Path
    tags: Mapping[str, str]
    alone: Path | None = None

    @property
    def saved(self) -> tuple[Path, Path]:
        return self.folder / "weights.safetensors", self.folder / "model.json"

    @property
    def schema(self) -> Schema:
        return Schema.model_validate(json.loads(self.saved[1].read_bytes())["schema_"])


def register(root: Path, tracker: Tracker, parent_run: str | None) -> list[Registered]:
    """Registers the teachers and the student that ships, each with the alias `challenger`.

    The names are those of the section `registry`; of several teachers each has its key behind the name. A model whose
    files are registered already keeps its version, so this may be repeated, also after it was killed at any point.

    Args:
        root: the project's folder, with a finished pipeline.
        tracker: where to register.
        parent_run: the run that this belongs to.

    Raises:
        UserError: where a model is missing, or the service cannot do it.
    """
    params = load(root)
    evaluation = Evaluation.read(root / EVALUATION)
    try:
        shared = revision(root)
        rows = {seen: {"rows": descent.identity(root, seen)} for seen in (descent.OF_TEACHERS, descent.OF_STUDENTS)}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run `python -m flows run` first") from error
    run = None if parent_run is None or parent_run.startswith(PENDING) else parent_run
    keys, name = params.distill.teachers, params.registry.teacher
    teachers = [
        _Model(
            name=name if len(keys) == 1 else f"{name}-{key}",
            onnx=root / "models" / "onnx" / f"teacher-{key}.onnx",
            folder=root / "models" / "teachers" / key,
            extras=(),
            seen=descent.OF_TEACHERS,
            tags=shared
            | rows[descent.OF_TEACHERS]
            | _scores(evaluation, f"teacher-{key}")
            | _dvc_hash(root, f"models/teachers/{key}"),
        )
        for key in keys
        # An api is somebody else's, and there is no file of it.
        if evaluation.models[f"teacher-{key}"].onnx is not None
    ]
    try:
        found = [_register(root, tracker, run, model) for model in teachers]
        folder, card = root / "models" / "student", root / "reports" / "model_card.md"
        chosen = evaluation.shipped.candidate
        student = _Model(
            name=params.registry.student,
            onnx=folder / "model.onnx",
            folder=folder,
            extras=(
                *sorted(folder.glob("*.int8.onnx")),
                *sorted(folder.glob("exit-*.onnx")),
                *([card] if card.exists() else []),
            ),
            seen=descent.OF_STUDENTS,
            tags=shared
            | rows[descent.OF_STUDENTS]
            | _scores(evaluation, chosen)
            | _dvc_hash(root, "models/student")
            | {"candidate": chosen, "teacher": ", ".join(f"{one.name}/{one.version}" for one in found)},
            alone=root / "models" / "onnx" / "baseline.onnx",
        )
        return [*found, _register(root, tracker, run, student)]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run `python -m flows run` first") from error
    except UserError:
        raise
    except Exception as error:
        is_away = is_http(tracker.uri) and health_problem(tracker.uri) is not None
        raise (AwayError if is_away else UserError)(
            f"the models are finished, but MLflow did not register them ({first_line(error)}); run again to do so"
        ) from error


def _register(root: Path, tracker: Tracker, run: str | None, model: _Model) -> Registered:
    """Finds or makes the version of a model, and moves the alias to it."""
    client = tracker.client
    identity = digest(model.onnx, *model.saved)
    alike = client.search_model_versions(f"name = '{model.name}' and tags.digest = '{identity}'")
    # An older version does not say on which rows it was trained, so nobody can promote it.
    same = [one for one in alike if "rows" in one.tags]
    version = str(max((int(one.version) for one in same), default=0))
    if not same:
        version = str(_new_version(root, tracker, run, model, identity).version)
    if str(client.get_registered_model(model.name).aliases.get(ALIAS)) != version:
        client.set_registered_model_alias(model.name, ALIAS, version)
    return Registered(model.name, version, identity, is_new=not same)


def _new_version(root: Path, tracker: Tracker, run: str | None, model: _Model, digest: str) -> "ModelVersion":
    """Uploads a model, and makes a version of it under its name."""
    from mlflow.exceptions import MlflowException

    client = tracker.client
    logged = _uploaded(tracker, digest) or _upload(root, tracker, run, model, digest)
    try:
        client.create_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    files = {"onnx_sha256": sha256(model.onnx), "weights_sha256": sha256(model.saved[0])}
    tags = dict(model.tags) | files | {"digest": digest}
    with default_service(tracker.uri):
        return client.create_model_version(model.name, f"models:/{logged}", run, tags, model_id=logged)


def _uploaded(tracker: Tracker, digest: str) -> str | None:
    """A model that was uploaded by a process which died before it made a version."""
    found = tracker.client.search_logged_models([tracker.experiment_id], f"tags.digest = '{digest}'")
    return next((str(one.model_id) for one in found if str(one.status) == "READY" and "rows" in one.tags), None)


def _upload(root: Path, tracker: Tracker, run: str | None, model: _Model, digest: str) -> str:
    """Stores the files of a model and returns its id."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import Model

    from distillery.inference import logits, open_session

    client = tracker.client
    graph = onnx.load(model.onnx)
    schema = model.schema
    example = _example(root, schema)
    logged = client.create_logged_model(
        tracker.experiment_id, model.name, run, tags={"digest": digest, "rows": model.tags["rows"]}, model_type="onnx"
    )
    with tempfile.TemporaryDirectory(dir=root / STATE) as place:
        folder = Path(place) / "model"
        mlflow.onnx.save_model(
            graph,
            folder,
            mlflow_model=Model(logged.artifact_location, run, model_id=logged.model_id, model_uuid=logged.model_id),
            signature=_signature(schema, graph.graph.output[0].name),
            input_example=example,
            # Named here, else MLflow starts a process that loads the model and looks what it imports.
            pip_requirements=mlflow.onnx.get_default_pip_requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            metadata={**schema.model_dump(mode="json"), "digest": digest},
            # One file where that is possible; a protobuf ends at 2 GB.
            save_as_external_data=model.onnx.stat().st_size > 1e9,
            extra_files=[str(file) for file in (*model.saved, *model.extras)],
        )
        descent.write(root, model.seen, folder / descent.FOLDER, model.alone)
        np.save(folder / descent.FOLDER / "example_output.npy", logits(open_session(model.onnx), example))
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _signature(schema: Schema, output: str) -> "ModelSignature":
    """Names, types and shapes of what a client sends and gets; the batch is free."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema as MlflowSchema
    from mlflow.types import TensorSpec

    inputs = {name: TensorSpec(np.dtype(spec.dtype), (-1, *spec.shape), name) for name, spec in schema.inputs.items()}
    outputs = TensorSpec(np.dtype("float32"), (-1, schema.outputs), output)
    return ModelSignature(MlflowSchema([*inputs.values()]), MlflowSchema([outputs]))


def _example(root: Path, schema: Schema) -> "Feed":
    """The first row of the test split: input name -> (1, *shape)."""
    from distillery.columns import Columns

    columns = Columns.open(root / "data" / "prepared" / "test").select(schema)
    rows = columns.gather(slice(0, 1))
    return {name: tensor.numpy() for name, tensor in zip(schema.inputs, rows, strict=True)}


def digest(onnx: Path, weights: Path, description: Path) -> str:
    """SHA-256 over everything that decides what a model answers and what its answers are called."""
    total = hashlib.sha256()
    for file in (onnx, weights, description):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def sha256(file: Path) -> str:
    """Digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _scores(evaluation: Evaluation, candidate: str) -> dict[str, str]:
    """Test scores of a candidate."""
    test, primary = evaluation.models[candidate].test, evaluation.primary
    return {f"test_{primary}": f"{test.figure(primary).value:.4f}"}


def _dvc_hash(root: Path, path: str) -> dict[str, str]:
    """DVC's hash of an output, where DVC knows it."""
    file = root / "dvc.lock"
    lock = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    for stage in ((lock or {}).get("stages") or {}).values():
        for out in stage.get("outs") or []:
            if out.get("path") == path:
                return {"dvc_hash": str(out["md5"])}
    return {}
