"""Promises of the registry: what is registered serves, holds no code, and is registered once."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from distillery import models
from distillery.columns import Columns
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.onnx_export import export
from distillery.saved import save_model
from distillery.schema import Input, Schema, Target
from flows.registry.registration import ALIAS, register
from tasks.results import (
    ClassScores,
    Deployed,
    Estimate,
    Evaluation,
    Measured,
    Role,
    Scores,
    Shipped,
    SplitFacts,
)
from tasks.tracking.tracker import Tracker
from tests.data_fixtures import project
from tests.mlflow_server import free_port, project_with_database, server_arguments, serving

HERE = Path(__file__).parents[1]
SCHEMA = Schema(
    inputs={
        "image": Input(kind="image", shape=(1, 4, 4), columns=("image",)),
        "numeric": Input(kind="numeric", shape=(2,), columns=("a", "b")),
    },
    targets={"label": Target(kind="classes", names=("no", "yes", "perhaps"))},
)
HARMLESS = {"", ".onnx", ".safetensors", ".json", ".md", ".yaml", ".txt", ".npy", ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything that registering reads, and a prepared database."""
    root = project(tmp_path_factory.mktemp("finished"))
    (root / "data" / "raw.parquet").parent.mkdir(parents=True)
    (root / "data" / "raw.parquet").touch()
    random = np.random.default_rng(0)
    for at, split in enumerate(("test", "validation", "train")):
        Columns(
            SCHEMA,
            np.arange(5, dtype=np.uint64) + np.uint64(5 * at),
            {"label": np.array([0, 1, 2, 0, 1], dtype=np.int64)},
            {
                "image": random.integers(0, 256, (5, 1, 4, 4), dtype=np.uint8),
                "numeric": random.normal(size=(5, 2)).astype(np.float32),
            },
        ).write(root / "data" / "prepared" / split)
    shutil.copytree(root / "data" / "prepared", root / "data" / "snapshot")
    write_model(root, "models/teachers/small", "models/onnx/teacher-small.onnx", seed=1)
    write_model(root, "models/student", "models/student/model.onnx", seed=2)
    write_model(root, "models/baseline", "models/onnx/baseline.onnx", seed=4)
    shutil.copy(root / "models/student/model.onnx", root / "models/student/model.int8.onnx")
    write_evaluation(root)
    (root / "reports" / "model_card.md").write_text("# A student\n")
    (root / "dvc.lock").write_text(
        "stages:\n  evaluate:\n    outs:\n    - {path: models/student, md5: abc.dir}\n"
        "  train_teacher@small:\n    outs:\n    - {path: models/teachers/small, md5: def.dir}\n"
    )
    shutil.copy(project_with_database(tmp_path_factory) / "mlflow.db", root)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copytree(finished, tmp_path / "project"))


@pytest.fixture
def tracker(root: Path) -> Tracker:
    return Tracker.connect(root, "distillation")


@pytest.fixture(scope="module")
def registered(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """A project whose models are registered; tests only read it."""
    root = Path(shutil.copytree(finished, tmp_path_factory.mktemp("registered") / "project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker.connect(root, "distillation")
        register(root, tracker, None)
        patch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
        yield tracker


def write_model(root: Path, folder: str, file: str, seed: int) -> None:
    network = models.build(Mlp(name="mlp", hidden=(8,)), SCHEMA, seed=seed)
    save_model(root / folder, network, [], {})
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    export(network, root / file)


def write_evaluation(root: Path) -> None:
    """What `evaluate` writes, with the teacher at 0.9 and the students at 0.8."""

    def measured(role: Role, value: float) -> Measured:
        estimate = Estimate(value=value, low=value - 0.1, high=value + 0.1)
        classes = ClassScores(
            rows=5, accuracy=estimate, macro_f1=estimate, nll=1.0, calibration_error=0.1, agreement=None, kl=None,
            recall=[], confusion=[], reliability=[],
        )  # fmt: skip
        scores = Scores(score=estimate, targets={"label": classes})
        deployed = Deployed(file="x", size=1, test=scores, latency_ms=1.0, latency_p95_ms=1.0, throughput=1.0)
        return Measured(
            role=role, model=Mlp(name="mlp"), parameters=1, weights_sha256="", best_epoch=1, validation=scores,
            test=scores, onnx=deployed, int8=None,
        )  # fmt: skip

    shipped = Shipped(candidate="distilled", because="", primary="accuracy", validation={}, test={}, files={})
    facts = SplitFacts(rows=5, labelled=5, sha256="")
    (root / "reports").mkdir()
    Evaluation(
        targets=SCHEMA.targets, inputs={}, primary="accuracy", confidence=0.95, resamples=100,
        teacher="teacher-small", splits={"validation": facts, "test": facts}, comparisons=[], shipped=shipped,
        runtime={}, models={"teacher-small": measured("teacher", 0.9), "distilled": measured("distilled", 0.8)},
    ).write(root / "reports" / "evaluation.json")  # fmt: skip


def versions(tracker: Tracker, name: str) -> list[str]:
    return sorted(str(one.version) for one in tracker.client.search_model_versions(f"name = '{name}'"))


def challenger(tracker: Tracker, name: str) -> str:
    return str(tracker.client.get_model_version_by_alias(name, ALIAS).version)


def rows(root: Path) -> dict[str, npt.NDArray[np.generic]]:
    folder = root / "data" / "prepared" / "test"
    return {name: np.load(folder / f"{name}.npy") for name in SCHEMA.inputs}


def answer_of_onnx_runtime(root: Path) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(root / "models/student/model.onnx", providers=["CPUExecutionProvider"])
    logits: npt.NDArray[np.float32] = session.run(["logits"], rows(root))[0]
    return logits


def test_versions_say_what_they_are(registered: Tracker) -> None:
    student = registered.client.get_model_version_by_alias("student", ALIAS)
    teacher = registered.client.get_model_version_by_alias("teacher", ALIAS)
    assert student.tags["teacher"] == f"teacher/{teacher.version}"
    assert (student.tags["test_accuracy"], teacher.tags["test_accuracy"]) == ("0.8000", "0.9000")
    assert (student.tags["dvc_hash"], teacher.tags["dvc_hash"]) == ("abc.dir", "def.dir")
    assert student.tags["candidate"] == "distilled"
    assert len(student.tags["digest"]) == 64
    assert student.tags["digest"] != teacher.tags["digest"]


def test_signature_and_class_names_tell_a_client_everything(registered: Tracker) -> None:
    info = mlflow.models.get_model_info(f"models:/student@{ALIAS}")
    inputs = [(spec.name, spec.type.name, spec.shape) for spec in info.signature.inputs.inputs]
    assert inputs == [("image", "uint8", (-1, 1, 4, 4)), ("numeric", "float32", (-1, 2))]
    (output,) = info.signature.outputs.inputs
    assert (output.name, output.type.name, output.shape) == ("logits", "float32", (-1, 3))
    assert info.metadata is not None
    assert info.metadata["targets"]["label"]["names"] == list(SCHEMA.classes)


def test_no_file_of_a_model_can_run_code(registered: Tracker, tmp_path: Path) -> None:
    for name, extras in (("teacher", set()), ("student", {"model.int8.onnx", "model_card.md"})):
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@{ALIAS}", dst_path=str(tmp_path / name)))
        files = {path for path in folder.rglob("*") if path.is_file()}
        assert {path.suffix for path in files} <= HARMLESS
        assert {path.name for path in files if path.suffix == ""} == {"MLmodel", "registered_model_meta"}
        assert {path.name for path in folder.glob("extra_files/*")} == {"weights.safetensors", "model.json"} | extras
        onnx.checker.check_model(onnx.load(folder / "model.onnx"))
        requirements = (folder / "requirements.txt").read_text().split()
        assert {line.partition("==")[0] for line in requirements} == {"mlflow", "onnx", "onnxruntime"}
        for path in files:
            assert path.read_bytes()[:2] != b"\x80\x04", f"{path} is a pickle"


def test_a_loaded_model_answers_as_onnx_runtime_does(registered: Tracker) -> None:
    model = mlflow.pyfunc.load_model(f"models:/student@{ALIAS}")
    np.testing.assert_array_equal(
        model.predict(rows(registered.root))["logits"], answer_of_onnx_runtime(registered.root)
    )


def test_registering_again_changes_nothing(root: Path, tracker: Tracker) -> None:
    run = tracker.start_run("flow", {}, None)
    first = register(root, tracker, run.id)
    run.finish("FINISHED")
    assert [(one.name, one.version, one.is_new) for one in first] == [("teacher", "1", True), ("student", "1", True)]
    assert tracker.client.get_model_version("student", "1").run_id == run.id

    def files() -> int:
        return sum(1 for _ in (root / "mlartifacts").rglob("*"))

    before = files()
    again = register(root, tracker, None)
    assert [(one.name, one.version, one.is_new) for one in again] == [("teacher", "1", False), ("student", "1", False)]
    assert files() == before
    assert len(tracker.client.search_logged_models([tracker.experiment_id])) == 2


def test_a_changed_student_is_a_new_version_and_the_old_one_comes_back(root: Path, tracker: Tracker) -> None:
    register(root, tracker, None)
    shutil.move(root / "models" / "student", root / "before")
    write_model(root, "models/student", "models/student/model.onnx", seed=3)
    assert [one.version for one in register(root, tracker, None)] == ["1", "2"]
    shutil.rmtree(root / "models" / "student")
    shutil.move(root / "before", root / "models" / "student")
    assert [one.version for one in register(root, tracker, None)] == ["1", "1"]
    assert versions(tracker, "student") == ["1", "2"]
    assert challenger(tracker, "student") == "1"


def test_a_version_that_does_not_say_on_which_rows_it_was_trained_is_registered_anew(
    root: Path, tracker: Tracker
) -> None:
    register(root, tracker, None)
    # As versions of earlier releases are.
    tracker.client.delete_model_version_tag("student", "1", "rows")
    assert [(one.version, one.is_new) for one in register(root, tracker, None)] == [("1", False), ("2", True)]
    assert challenger(tracker, "student") == "2"


def test_a_version_keeps_what_it_descends_from(registered: Tracker, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/student@{ALIAS}/lineage", dst_path=str(tmp_path)))
    for name in ("dvc.lock", "params.yaml"):
        assert (folder / name).read_bytes() == (registered.root / name).read_bytes()
    np.testing.assert_array_equal(np.load(folder / "train-keys.npy"), np.arange(10, 15))
    np.testing.assert_array_equal(np.load(folder / "validation-keys.npy"), np.arange(5, 10))
    np.testing.assert_array_equal(np.load(folder / "train-contents.npy"), np.arange(10, 15))
    np.testing.assert_allclose(
        np.load(folder / "example_output.npy"), answer_of_onnx_runtime(registered.root)[:1], rtol=1e-6
    )
    alone = registered.root / "models" / "onnx" / "baseline.onnx"
    assert (folder / "alone.onnx").read_bytes() == alone.read_bytes()
    assert json.loads((folder / "data.json").read_text())["splits"]["train"] == {"rows": 5, "labelled": 5}


@pytest.mark.parametrize(
    "moment",
    [
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "create_registered_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
def test_registering_stopped_at_any_moment_is_mended_by_the_next_run(
    root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    # The step is done, and then Ctrl-C: everything behind it is missing.
    done = getattr(tracker.client, moment)

    def last_step(*args: object, **kwargs: object) -> None:
        done(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, moment, last_step)
        with pytest.raises(KeyboardInterrupt):
            register(root, tracker, None)
    assert {one.version for one in register(root, tracker, None)} == {"1"}
    for name in ("teacher", "student"):
        assert versions(tracker, name) == ["1"]
        assert challenger(tracker, name) == "1"
    assert not list((root / ".state").glob("tmp*"))


def test_registering_prints_nothing(root: Path) -> None:
    code = (
        "from pathlib import Path\nfrom flows.registry.registration import register\n"
        "from tasks.tracking.tracker import Tracker\n"
        f"root = Path({str(root)!r})\nregister(root, Tracker.connect(root, 'distillation'), None)"
    )
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_a_missing_model_is_told(root: Path, tracker: Tracker) -> None:
    (root / "models" / "onnx" / "teacher-small.onnx").unlink()
    with pytest.raises(UserError, match=r"teacher-small\.onnx is missing; run `python -m flows run`"):
        register(root, tracker, None)


def test_a_service_that_fails_is_told(root: Path, tracker: Tracker) -> None:
    (root / "mlflow.db").write_bytes(b"no database" * 10_000)
    with pytest.raises(UserError, match="the models are finished, but MLflow did not register them"):
        register(root, tracker, None)


@pytest.mark.slow
def test_a_served_student_answers_a_request_with_the_input_example(
    registered: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    model = Path(mlflow.artifacts.download_artifacts(f"models:/student@{ALIAS}", dst_path=str(tmp_path / "model")))
    expected = answer_of_onnx_runtime(registered.root)
    arguments = ["models", "serve", "-m", f"models:/student@{ALIAS}", "--env-manager", "local"]
    with serving(arguments, port, tmp_path):
        example = ask(port, (model / "serving_input_example.json").read_bytes())
        np.testing.assert_allclose(example, expected[:1], rtol=1e-6)
        everything = json.dumps({"inputs": {name: column.tolist() for name, column in rows(registered.root).items()}})
        np.testing.assert_allclose(ask(port, everything.encode()), expected, rtol=1e-6)


def ask(port: int, body: bytes) -> npt.NDArray[np.float64]:
    """Logits that a served model answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}, method="POST"
    )
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return np.array(json.load(response)["predictions"]["logits"])
        except ConnectionError:
            time.sleep(0.2)
    raise TimeoutError


@pytest.mark.slow
def test_a_server_gets_the_same_as_a_database(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    home = tmp_path / "server"
    home.mkdir()
    shutil.copy(root / "mlflow.db", home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with serving(server_arguments(home), port, home):
        tracker = Tracker.connect(root, "distillation")
        run = tracker.start_run("flow", {}, None)
        first = register(root, tracker, run.id)
        run.finish("FINISHED")
        again = register(root, tracker, run.id)
        assert [(one.name, one.version) for one in first] == [("teacher", "1"), ("student", "1")]
        assert [one.is_new for one in again] == [False, False]
        model = mlflow.pyfunc.load_model(f"models:/student@{ALIAS}")
        np.testing.assert_array_equal(model.predict(rows(root))["logits"], answer_of_onnx_runtime(root))
