"""Promises of promotion: only what is shown to be better serves, every move is kept, and nothing is left in between."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dvc.repo import Repo

from distillery import models
from distillery.columns import Columns
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.onnx_export import export
from distillery.saved import save_model
from distillery.schema import Input, Schema, Target
from flows.commands import history, why
from flows.registry import champion
from flows.registry.files import downloaded
from flows.registry.registration import ALIAS, register
from flows.services.processes import LOGS
from tasks.params import load
from tasks.promotion import descent
from tasks.promotion.ledger import CHAMPION, PREVIOUS, Ledger, champion_at
from tasks.promotion.results import PROMOTION, Promotion
from tasks.tracking.tracker import Tracker
from tasks.versioning.graph import Graph
from tests.data_fixtures import project
from tests.mlflow_server import free_port, project_with_database, server_arguments, serving, stop
from tests.test_registry import write_evaluation

HERE = Path(__file__).parents[1]
ROWS = 600
TARGET = np.arange(ROWS, dtype=np.int64) % 3
OF_CLASS_2 = set(np.flatnonzero(TARGET == 2))
# Model -> the test rows that it gets wrong. A model reads its own answers from the row, scaled by a weight of its own.
WRONG: dict[str, Iterable[int]] = {
    "teacher": range(30),
    "alone": range(120),
    "good": range(90),
    "better": range(60),
    "equal": range(90),
    "lucky": [*range(8, 90), *range(300, 306)],
    "uneven": sorted(OF_CLASS_2 & set(range(150))),
    "worse": range(150),
}
NAMES = tuple(WRONG)
STUDENTS = NAMES[2:]
VERSION = {name: str(at + 1) for at, name in enumerate(STUDENTS)}
SCHEMA = Schema(
    inputs={
        "numeric": Input(
            kind="numeric", shape=(3 * len(NAMES),), columns=tuple(f"c{at}" for at in range(3 * len(NAMES)))
        )
    },
    targets={"label": Target(kind="classes", names=("no", "yes", "perhaps"))},
)


def rows(start: int, keys: int = ROWS) -> Columns:
    """Rows in which every model finds its answers."""
    inputs = np.zeros((ROWS, len(NAMES), 3), dtype=np.float32)
    for at, name in enumerate(NAMES):
        said = TARGET.copy()
        wrong = list(WRONG[name])
        said[wrong] = (said[wrong] + 1) % 3
        inputs[np.arange(ROWS), at, said] = 1.0
    return Columns(
        SCHEMA,
        np.arange(start, start + keys, dtype=np.uint64),
        {"label": TARGET},
        {"numeric": inputs.reshape(ROWS, -1)},
    )


def write_model(root: Path, name: str, folder: str, file: str, schema: Schema = SCHEMA) -> None:
    network = models.build(Mlp(name="mlp", hidden=()), schema, seed=0)
    at = NAMES.index(name)
    weights = torch.zeros((schema.outputs, 3 * len(NAMES)))
    weights[:, 3 * at : 3 * at + 3] = torch.eye(schema.outputs, 3) * 4.0
    network.load_state_dict(
        network.state_dict() | {"body.head.weight": weights, "body.head.bias": torch.zeros(schema.outputs)}
    )
    network.eval()
    save_model(root / folder, network, [], {})
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    export(network, root / file)


def record_test_set(root: Path) -> None:
    """Puts the test set under DVC's care, as the output of a stage, and notes soft targets beside it."""
    stage = {"cmd": "true", "deps": ["data/raw.parquet"], "outs": ["data/prepared/test"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": stage}}))
    Repo.init(str(root), no_scm=True).close()
    graph = Graph.open(root)
    graph.plan()
    graph.record("prepare", graph.inputs("prepare"))
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"]["soft_targets@small"] = {
        "cmd": "true",
        "outs": [{"path": "data/soft_targets/small", "md5": "d.dir"}],
    }
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


def recorded(root: Path) -> str:
    """DVC's hash of the test set, from `dvc.lock`."""
    return descent.hashes(root / "dvc.lock")["data/prepared/test"]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a version for each student of `STUDENTS`; its tests copy it, and share the stored files."""
    gates = {"max_latency_ratio": 10.0, "min_retention": 0.85}
    root = project(tmp_path_factory.mktemp("registered") / "project", gates=gates)
    (root / "data" / "raw.parquet").parent.mkdir(parents=True)
    (root / "data" / "raw.parquet").touch()
    for at, split in enumerate(("test", "train", "validation")):
        rows(10_000 * at).write(root / "data" / "prepared" / split)
    shutil.copytree(root / "data" / "prepared", root / "data" / "snapshot")
    write_model(root, "teacher", "models/teachers/small", "models/onnx/teacher-small.onnx")
    write_model(root, "alone", "models/baseline", "models/onnx/baseline.onnx")
    write_evaluation(root)
    shutil.copy(project_with_database(tmp_path_factory) / "mlflow.db", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        record_test_set(root)
        tracker = Tracker.connect(root, "distillation")
        for name in STUDENTS:
            write_model(root, name, "models/student", "models/student/model.onnx")
            register(root, tracker, None)
    return root


@pytest.fixture
def root(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = Path(shutil.copytree(registered, tmp_path / "project", ignore=shutil.ignore_patterns("mlartifacts")))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def tracker(root: Path) -> Tracker:
    return Tracker.connect(root, "distillation")


def silent(_: str) -> None:
    """Nobody listens."""


def challenge(tracker: Tracker, name: str) -> None:
    tracker.client.set_registered_model_alias("student", ALIAS, VERSION[name])


def crown(tracker: Tracker, name: str, **more: float) -> None:
    ledger = Ledger(tracker, "student", **({"clock": lambda: more["time"]} if more else {}))
    ledger.move(VERSION[name], "promote", "because", before=ledger.alias(CHAMPION))


def promote(root: Path, tracker: Tracker) -> Promotion:
    return champion.promote(root, load(root), tracker, silent)


def alias(tracker: Tracker, name: str) -> str | None:
    found = tracker.client.get_registered_model("student").aliases.get(name)
    return None if found is None else str(found)


@contextmanager
def tampered(tracker: Tracker, version: str, flavor: dict[str, str | None]) -> Iterator[None]:
    """The stored MLmodel of a version with something else for `python_function`; tests share the stored files."""
    place = Path(tracker.client.get_model_version_download_uri("student", version).removeprefix("file://"))
    file = place / "MLmodel"
    before = file.read_text()
    document = yaml.safe_load(before)
    document["flavors"]["python_function"] |= flavor
    file.write_text(yaml.safe_dump(document))
    try:
        yield
    finally:
        file.write_text(before)


def failed(found: Promotion) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


def set_gates(root: Path, **gates: object) -> None:
    file = root / "params.yaml"
    document = yaml.safe_load(file.read_text())
    document["gates"] |= gates
    file.write_text(yaml.safe_dump(document))


def test_a_first_champion_is_held_against_its_teacher_and_the_student_alone(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    found = promote(root, tracker)
    assert (found.outcome, found.champion, found.reference) == ("promoted", None, "the student alone")
    figures = {gate.name: (gate.reference, gate.challenger) for gate in found.gates}
    assert figures["retention"] == (pytest.approx(0.95), pytest.approx(0.85))
    assert figures["accuracy"] == (pytest.approx(0.80), pytest.approx(0.85))
    # Both say what the teacher says but for the rows that only they get wrong.
    assert figures["agreement"] == (pytest.approx(1 - 90 / 600), pytest.approx(1 - 60 / 600))
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["good"], None)


def test_a_first_champion_that_keeps_too_little_of_its_teacher_is_refused(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    set_gates(root, min_retention=0.9)
    assert failed(promote(root, tracker)) == {"retention"}
    challenge(tracker, "worse")
    assert {"retention", "accuracy", "macro_f1"} <= failed(promote(root, tracker))
    assert alias(tracker, CHAMPION) is None


def test_a_better_challenger_becomes_champion_and_the_old_one_is_kept(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    challenge(tracker, "better")
    found = promote(root, tracker)
    assert found.outcome == "promoted" and not failed(found) and found.champion == VERSION["good"]
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["better"], VERSION["good"])
    accuracy = next(gate for gate in found.gates if gate.name == "accuracy")
    assert (accuracy.reference, accuracy.challenger) == (pytest.approx(0.85), pytest.approx(0.90))
    assert accuracy.low is not None and 0.03 < accuracy.low < 0.05
    assert Promotion.read(root / PROMOTION) == found
    tags = tracker.client.get_model_version("student", VERSION["better"]).tags
    assert tags["promotion"].startswith("passed") and tags["gate.accuracy"].startswith("passed: accuracy is 90.0 %")
    last = Ledger(tracker, "student").history()[-1]
    assert (last.action, last.before, last.after) == ("promote", VERSION["good"], VERSION["better"])
    assert (last.figures["accuracy"], last.figures["accuracy_before"]) == (pytest.approx(0.90), pytest.approx(0.85))
    assert [one.path for one in tracker.client.list_artifacts(last.run_id)] == ["promotion.json"]


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("worse", {"accuracy", "macro_f1"}),
        ("equal", {"accuracy"}),
        ("lucky", {"accuracy"}),
        ("uneven", {"recall of perhaps"}),
    ],
)
def test_the_champion_stays(root: Path, tracker: Tracker, name: str, gates: set[str]) -> None:
    crown(tracker, "good")
    challenge(tracker, name)
    found = promote(root, tracker)
    assert found.outcome == "kept" and gates <= failed(found)
    assert len(found.reasons) == len(failed(found))
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["good"], None)
    assert tracker.client.get_model_version("student", VERSION[name]).tags["promotion"].startswith("failed")
    assert len(Ledger(tracker, "student").history()) == 1


def test_an_equal_challenger_may_be_enough(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    challenge(tracker, "equal")
    set_gates(root, require="non_inferior")
    assert promote(root, tracker).outcome == "promoted"


def test_the_champion_is_not_its_own_challenger(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    challenge(tracker, "good")
    found = promote(root, tracker)
    assert found.outcome == "unchanged" and not found.gates
    assert len(Ledger(tracker, "student").history()) == 1


def test_both_are_measured_anew_on_the_present_test_set(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    challenge(tracker, "better")
    now = rows(0)
    # Labels were corrected: the champion was right all along.
    now.targets["label"][60:90] = (now.targets["label"][60:90] + 1) % 3
    now.write(root / "data" / "prepared" / "test")
    found = promote(root, tracker)
    now.targets["label"][60:90] = (now.targets["label"][60:90] - 1) % 3
    assert found.outcome == "kept" and found.test_set is not None
    accuracy = next(gate for gate in found.gates if gate.name == "accuracy")
    assert (accuracy.reference, accuracy.challenger) == (pytest.approx(0.90), pytest.approx(0.85))
    # Nobody has recorded the corrected rows, so no hash in dvc.lock is theirs.
    assert found.test_set.dvc is None
    assert "data/prepared/test is not what dvc.lock records" in found.notes[0]
    assert found.test_set.sha256 != found.test_set.challenger_sha256 == found.test_set.reference_sha256
    assert any(found.test_set.sha256[:12] in note for note in found.notes)


def test_the_hash_that_dvc_records_is_told(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    found = promote(root, tracker)
    assert found.test_set is not None and found.test_set.dvc == recorded(root) and recorded(root).endswith(".dir")
    assert not any("records" in note for note in found.notes)


def test_a_promotion_waits_for_who_works_on_the_test_set(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    code = (
        "import pathlib, sys; from tasks.versioning.graph import Graph; graph = Graph.open(pathlib.Path.cwd());"
        "graph.plan()\nwith graph.hold(['prepare']): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "held\n"
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        if line.startswith("waiting"):
            # What is written until it is let go is what counts.
            rows(10_599).write(root / "data" / "prepared" / "test")
            other.communicate()

    with pytest.raises(UserError, match="was trained on 1 of the 600 test rows"):
        champion.promote(root, load(root), tracker, say)
    assert told[0].startswith(f"waiting for the pipeline, held by PID {other.pid}")


def test_a_promotion_within_a_process_that_holds_the_pipeline_does_not_wait_for_itself(
    root: Path, tracker: Tracker
) -> None:
    challenge(tracker, "good")
    graph = Graph.open(root)
    with graph.hold([step.name for step in graph.plan()]):
        assert promote(root, tracker).outcome == "promoted"


def test_a_model_that_has_seen_a_test_row_is_refused(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    rows(10_599).write(root / "data" / "prepared" / "test")
    with pytest.raises(UserError, match="student version 1 was trained on 1 of the 600 test rows"):
        promote(root, tracker)
    rows(20_000).write(root / "data" / "prepared" / "test")
    with pytest.raises(UserError, match="600 of the 600 test rows"):
        promote(root, tracker)
    assert tracker.client.get_model_version("student", "1").tags["promotion"].startswith("refused")
    assert alias(tracker, CHAMPION) is None


def test_a_test_row_that_was_seen_under_another_key_is_told_by_its_content(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    now = rows(50_000)
    # Another key column names every row anew; one of them was among the training rows.
    now.contents = np.arange(70_000, 70_000 + ROWS, dtype=np.uint64)
    now.contents[7] = 10_007
    now.write(root / "data" / "prepared" / "test")
    with pytest.raises(UserError, match="student version 1 was trained on 1 of the 600 test rows"):
        promote(root, tracker)


def test_a_version_of_an_earlier_release_is_known_by_its_keys_alone(tmp_path: Path) -> None:
    assert descent.seen(tmp_path, rows(0)) is None
    for split, keys in (("train", [5, 6]), ("validation", [7, 99_999])):
        np.save(tmp_path / f"{split}-keys.npy", np.array(keys, dtype=np.uint64))
    assert descent.seen(tmp_path, rows(0)) == 3


def test_a_class_that_the_champion_does_not_know_counts_against_it(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    challenge(tracker, "equal")
    names = ("perhaps", "no", "yes", "new")
    schema = SCHEMA.model_copy(update={"targets": {"label": Target(kind="classes", names=names)}})
    now = rows(0)
    moved = Columns(schema, now.keys, {"label": (TARGET + 1) % 3}, now.inputs)
    moved.write(root / "data" / "prepared" / "test")
    found = promote(root, tracker)
    accuracy = next(gate for gate in found.gates if gate.name == "accuracy")
    assert (accuracy.reference, accuracy.challenger) == (pytest.approx(0.85), pytest.approx(0.85))


def test_an_alias_of_a_deleted_version_is_no_champion(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    crown(tracker, "better")
    tracker.client.delete_model_version("student", VERSION["better"])
    told: list[str] = []
    assert champion.rollback(root, load(root), tracker, told.append, to=None, why="gone") == ("none", VERSION["good"])
    assert told == [f"version {VERSION['better']} was deleted, and none is champion"]
    assert [move.action for move in Ledger(tracker, "student").history()] == ["promote", "promote", "found", "rollback"]
    with pytest.raises(UserError, match=r"no version 2, or it was deleted; there are 1, 3, 4, 5, 6"):
        champion.rollback(root, load(root), tracker, silent, to=VERSION["better"], why="")


def test_rollback_goes_to_the_previous_or_a_named_version(root: Path, tracker: Tracker) -> None:
    with pytest.raises(UserError, match="no previous version; name one with --to: there are 1, 2"):
        champion.rollback(root, load(root), tracker, silent, to=None, why="")
    crown(tracker, "good")
    crown(tracker, "better")
    params = load(root)
    assert champion.rollback(root, params, tracker, silent, to=None, why="angry users") == ("2", "1")
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == ("1", "2")
    champion.rollback(root, params, tracker, silent, to="5", why="")
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == ("5", "1")
    assert Ledger(tracker, "student").history()[2].why == "angry users"
    with pytest.raises(UserError, match="version 5 is the champion already"):
        champion.rollback(root, params, tracker, silent, to="5", why="")


def test_the_history_knows_who_was_champion_when(root: Path, tracker: Tracker) -> None:
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    for hours, name in enumerate(("good", "better", "equal")):
        crown(tracker, name, time=(noon + timedelta(hours=hours)).timestamp())
    moves = Ledger(tracker, "student").history()
    assert [(move.sequence, move.before, move.after) for move in moves] == [
        (1, None, "1"),
        (2, "1", "2"),
        (3, "2", "3"),
    ]
    for minutes, version in ((-1, None), (0, "1"), (59, "1"), (60, "2"), (500, "3")):
        assert champion_at(moves, noon + timedelta(minutes=minutes)) == version


def test_a_clock_that_goes_back_does_not_turn_the_history_round(root: Path, tracker: Tracker) -> None:
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    for hours, name in ((0, "good"), (1, "better"), (-2, "equal")):
        crown(tracker, name, time=(noon + timedelta(hours=hours)).timestamp())
    moves = Ledger(tracker, "student").history()
    assert [move.after for move in moves] == ["1", "2", "3"]
    assert champion_at(moves, noon - timedelta(hours=1)) is None
    assert champion_at(moves, noon + timedelta(minutes=59)) == "1"
    assert champion_at(moves, noon + timedelta(hours=1)) == "3"
    run = tracker.client.get_run(moves[-1].run_id)
    assert float(run.data.tags["clock_went_back_seconds"]) == 3 * 3600


def test_a_move_past_this_program_is_noted(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    tracker.client.set_registered_model_alias("student", CHAMPION, VERSION["worse"])
    with champion.settled(root, tracker, "student", silent) as ledger:
        assert [(move.action, move.before, move.after) for move in ledger.history()][1:] == [
            ("found", VERSION["good"], VERSION["worse"])
        ]


KILLED = """
import os, signal, sys
from itertools import islice
from pathlib import Path
import mlflow
from tasks.promotion.ledger import Ledger
from tasks.tracking.tracker import Tracker
for root, steps in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork() == 0:
        ledger = Ledger(Tracker.connect(Path(root), "distillation"), "student")
        list(islice(ledger.steps("2", "promote", "better", before="1"), int(steps)))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


def test_a_promotion_killed_at_any_step_is_finished_or_undone(root: Path, tracker: Tracker, tmp_path: Path) -> None:
    crown(tracker, "equal")
    crown(tracker, "good")
    copies = {str(steps): shutil.copytree(root, tmp_path / f"killed {steps}") for steps in range(1, 6)}
    arguments = [text for steps, copy in copies.items() for text in (str(copy), steps)]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, check=True)
    for steps, copy in copies.items():
        own = Tracker.connect(copy, "distillation")
        moved = int(steps) >= 3
        assert alias(own, CHAMPION) == ("2" if moved else "1"), steps
        told: list[str] = []
        with champion.settled(copy, own, "student", told.append) as ledger:
            history = [(move.before, move.after) for move in ledger.history()]
        assert history == [(None, "3"), ("3", "1")] + ([("1", "2")] if moved else []), steps
        assert (alias(own, CHAMPION), alias(own, PREVIOUS)) == (("2", "1") if moved else ("1", "3")), steps
        assert bool(told) == (int(steps) < 5), steps
        with champion.settled(copy, own, "student", told.append):
            assert len(told) <= 1, "settled once"


def test_two_moves_at_once_are_never_both_made(root: Path, tracker: Tracker, tmp_path: Path) -> None:
    crown(tracker, "good")
    elsewhere = Tracker(tmp_path, tracker.uri, "distillation", tracker.client, tracker.experiment_id)
    first, second = Ledger(tracker, "student"), Ledger(elsewhere, "student")
    steps = first.steps("2", "promote", "first", before="1")
    list(islice(steps, 2))
    with pytest.raises(UserError, match="is moving the champion of student right now"):
        second.move("3", "promote", "second", before="1")
    assert second.settle() == [], "what another machine is doing is left alone"
    list(steps)
    with pytest.raises(UserError, match="the champion of student was 1 and is 2 by now; run again"):
        second.move("3", "promote", "second", before="1")
    assert [(move.why, move.after) for move in first.history()] == [("because", "1"), ("first", "2")]
    assert alias(tracker, CHAMPION) == "2"


def test_a_move_that_another_machine_left_is_settled_after_a_while(
    root: Path, tracker: Tracker, tmp_path: Path
) -> None:
    crown(tracker, "good")
    list(islice(Ledger(tracker, "student").steps("2", "promote", "first", before="1"), 3))
    elsewhere = Tracker(tmp_path, tracker.uri, "distillation", tracker.client, tracker.experiment_id)
    later = datetime.now(UTC) + timedelta(minutes=11)
    told = Ledger(elsewhere, "student", clock=later.timestamp).settle()
    assert len(told) == 1 and told[0].startswith("finished an interrupted promote")


def test_a_second_promotion_of_a_project_waits(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows.registry import champion\nroot = Path(sys.argv[1])\n"
        "with champion.locked(root, lambda told: print(told, flush=True)): print('mine', flush=True)"
    )
    with champion.locked(root, silent):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(root)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waiting for another promotion or rollback of this project\n"
        assert promote(root, tracker).outcome == "promoted"
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_a_champion_that_does_not_serve_goes_back(
    root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crown(tracker, "equal")
    crown(tracker, "good")
    challenge(tracker, "better")
    # Between the check before the move and the one behind it somebody damages the stored file.
    found = tracker.client.get_model_version("student", VERSION["better"])
    stored = Path(tracker.client.get_model_version_download_uri("student", found.version).removeprefix("file://"))
    kept = shutil.copytree(stored, tmp_path / "kept") if stored.is_dir() else None
    move = Ledger.move

    def damaging(self: Ledger, *arguments: object, **more: object) -> None:
        move(self, *arguments, **more)  # type: ignore[arg-type]
        if kept is not None:
            (stored / "model.onnx").write_bytes(b"no model")

    assert kept is not None, "MLflow stores the files elsewhere"
    monkeypatch.setattr(Ledger, "move", damaging)
    try:
        with pytest.raises(UserError, match="version 1 is champion again"):
            promote(root, tracker)
    finally:
        shutil.copy(kept / "model.onnx", stored / "model.onnx")
    # `rollback` goes where it would have gone before, not to the version that does not serve.
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["good"], VERSION["equal"])
    actions = [move.action for move in Ledger(tracker, "student").history()]
    assert actions == ["promote", "promote", "promote", "rollback"]


@pytest.mark.parametrize(
    ("flavor", "told"),
    [
        ({"loader_module": "evil"}, "says loader_module evil, which would run code here"),
        ({"code": "code"}, "says code code, which would run code here"),
        ({"loader_module": None}, "says loader_module None"),
    ],
)
def test_nothing_of_a_version_is_run(
    root: Path, tracker: Tracker, tmp_path: Path, flavor: dict[str, str | None], told: str
) -> None:
    # On a shared MLflow others may write versions too.
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    crown(tracker, "good")
    crown(tracker, "equal")
    challenge(tracker, "better")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for version in (VERSION["good"], VERSION["better"]):
            with tampered(tracker, version, flavor):
                with pytest.raises(UserError, match=told):
                    if version == VERSION["better"]:
                        promote(root, tracker)
                    else:
                        champion.rollback(root, load(root), tracker, silent, to=None, why="")
                where = Path(tracker.client.get_model_version_download_uri("student", version).removeprefix("file://"))
                with pytest.raises(UserError, match=told):
                    champion.serving.check_server(root, where, tracker.uri)
    assert not (tmp_path / "ran").exists()
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["equal"], VERSION["good"])


def test_a_version_that_is_tampered_with_after_the_download_is_not_run(
    root: Path, tracker: Tracker, tmp_path: Path
) -> None:
    crown(tracker, "good")
    version = tracker.client.get_model_version("student", "2")
    with (
        downloaded(root, tracker, version) as folder,
        tampered(tracker, "2", {"loader_module": "evil"}),
        pytest.raises(UserError, match="loader_module evil"),
    ):
        champion.serving.check(root, "models:/student/2", folder, tracker.uri)


def test_an_mlmodel_that_is_none_is_told(tmp_path: Path) -> None:
    for text in (None, "", "flavors: {}", "flavors: {python_function: 3}", "{", "- a"):
        if text is not None:
            (tmp_path / "MLmodel").write_text(text)
        with pytest.raises(UserError, match="MLmodel of that version is damaged"):
            champion.serving.require_harmless(tmp_path)


@pytest.mark.parametrize("first", ["equal", None])
def test_a_restore_killed_at_any_step_keeps_the_previous_one_of_before(
    root: Path, tracker: Tracker, tmp_path: Path, first: str | None
) -> None:
    for name in filter(None, (first, "good")):
        crown(tracker, name)
    ledger = Ledger(tracker, "student")
    before = alias(tracker, PREVIOUS)
    ledger.move("2", "promote", "better", before="1")
    for count in range(1, 6):
        # Who is killed comes back to nothing; another process settles.
        list(islice(ledger.steps("1", "rollback", "broken", before="2", previous=before or ""), count))
        ledger.settle()
        moved = count >= 3
        assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (("1", before) if moved else ("2", "1")), count
        if moved:
            ledger.move("2", "promote", "better", before="1")


def test_a_promotion_without_a_champion_keeps_the_previous_one(root: Path, tracker: Tracker) -> None:
    crown(tracker, "equal")
    crown(tracker, "good")
    tracker.client.delete_model_version("student", VERSION["good"])
    challenge(tracker, "better")
    assert promote(root, tracker).outcome == "promoted"
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (VERSION["better"], VERSION["equal"])


def test_a_first_champion_that_does_not_serve_leaves_no_previous_one(
    root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenge(tracker, "good")

    def check(_root: Path, uri: str, *_: object) -> None:
        if uri.endswith("@champion"):
            raise UserError("it does not answer")

    monkeypatch.setattr(champion.serving, "check", check)
    with pytest.raises(UserError, match="version none is champion again"):
        promote(root, tracker)
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == (None, None)


def test_an_announced_move_of_an_earlier_release_is_finished_as_it_meant(root: Path, tracker: Tracker) -> None:
    crown(tracker, "good")
    list(islice(Ledger(tracker, "student").steps("2", "promote", "better", before="1"), 3))
    tracker.client.delete_tag(Ledger(tracker, "student").moves()[-1].run_id, "previous")
    Ledger(tracker, "student").settle()
    assert (alias(tracker, CHAMPION), alias(tracker, PREVIOUS)) == ("2", "1")


@pytest.mark.parametrize(("asked", "flag"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_challenger_that_mlflow_models_serve_does_not_serve_stays_one(
    root: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, asked: bool, flag: bool
) -> None:
    challenge(tracker, "good")
    set_gates(root, serve_check=asked)

    def refuse(*_: object) -> None:
        raise UserError("the server does not answer")

    monkeypatch.setattr(champion.serving, "check_server", refuse)
    if asked or flag:
        with pytest.raises(UserError, match="the server does not answer"):
            champion.promote(root, load(root), tracker, silent, serve=flag)
        assert alias(tracker, CHAMPION) is None
    else:
        assert champion.promote(root, load(root), tracker, silent, serve=flag).outcome == "promoted"


@pytest.mark.slow
def test_the_parameters_can_ask_for_mlflow_models_serve(root: Path, tracker: Tracker) -> None:
    challenge(tracker, "good")
    set_gates(root, serve_check=True)
    assert promote(root, tracker).outcome == "promoted"
    assert "/invocations" in (root / LOGS / "model.log").read_text()


def test_without_a_challenger_the_mend_is_told(root: Path, tracker: Tracker) -> None:
    tracker.client.delete_registered_model_alias("student", ALIAS)
    with pytest.raises(UserError, match="student has no challenger: `python -m flows run`"):
        promote(root, tracker)
    tracker.client.delete_registered_model("student")
    with pytest.raises(UserError, match="the registry has no student: `python -m flows run`"):
        promote(root, tracker)


def test_why_tells_the_whole_descent(root: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    crown(tracker, "good")
    challenge(tracker, "better")
    promote(root, tracker)
    assert why.show(root, "models:/student@champion", as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["version"], found["aliases"]) == ("student", "2", [ALIAS, CHAMPION])
    assert found["data"]["splits"]["train"] == {"rows": 600, "labelled": 600}
    assert found["data"]["dvc"].pop("data/prepared/test") == recorded(root)
    assert found["data"]["dvc"].keys() == {"data/raw.parquet"}
    assert found["soft_targets"] == {"data/soft_targets/small": "d.dir"}
    assert found["teachers"] == ["teacher/1"] and found["parameters"]["seed"] == 1
    assert found["gates"]["accuracy"].startswith("passed")
    assert [move["after"] for move in found["history"]] == ["2"]
    why.show(root, "models:/student/2", as_json=False)
    told = capsys.readouterr().out
    assert "student version 2 @challenger @champion" in told and "teacher version 1" in told and "600 rows" in told
    assert len(told.splitlines()) < 50


def test_why_knows_a_file_by_its_content(
    root: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # What was written last is the last version.
    for file in ("models/student/model.onnx", "models/student/weights.safetensors", "models/student"):
        why.show(root, str(root / file), as_json=True)
        assert json.loads(capsys.readouterr().out)["version"] == VERSION[STUDENTS[-1]]
    (tmp_path / "other.onnx").write_bytes(b"something")
    with pytest.raises(UserError, match="no registered model has the file"):
        why.show(root, str(tmp_path / "other.onnx"), as_json=False)
    with pytest.raises(UserError, match=r"it has 1, 2, 3, 4, 5, 6"):
        why.show(root, "models:/student/9", as_json=False)


def test_history_prints_and_answers(root: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    assert history.show(root, at=None, as_json=False) == 0
    assert "has never moved" in capsys.readouterr().out
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    crown(tracker, "good", time=noon.timestamp())
    history.show(root, at="2026-11-24T13:30+01:00", as_json=True)
    assert json.loads(capsys.readouterr().out)["champion"] == "1"
    history.show(root, at="2026-11-24T12:30+01:00", as_json=False)
    assert "student had no champion" in capsys.readouterr().out
    history.show(root, at=None, as_json=True)
    (move,) = json.loads(capsys.readouterr().out)
    assert (move["sequence"], move["after"], move["why"]) == (1, "1", "because") and "@" in move["who"]
    history.show(root, at=None, as_json=False)
    assert "because" in capsys.readouterr().out
    with pytest.raises(UserError, match="--at 'yesterday' is no time"):
        history.show(root, at="yesterday", as_json=False)


@pytest.mark.slow
def test_a_registry_that_dies_half_way_leaves_the_old_or_the_new_champion(
    root: Path, registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = tmp_path / "server"
    home.mkdir()
    shutil.copy(root / "mlflow.db", home)
    for done in (2, 3):
        with serving(server_arguments(home), port, home) as server:
            tracker = Tracker.connect(root, "distillation")
            before = alias(tracker, CHAMPION)
            after = "1" if before is None else "2"
            with (
                pytest.raises(UserError, match="the registry failed half-way"),
                champion.settled(root, tracker, "student", silent) as ledger,
            ):
                steps = ledger.steps(after, "promote", "better", before=before)
                list(islice(steps, done))
                stop(server)
                list(steps)
        with serving(server_arguments(home), port, home):
            tracker = Tracker.connect(root, "distillation")
            with champion.settled(root, tracker, "student", silent) as ledger:
                made = [move.after for move in ledger.history()]
            assert alias(tracker, CHAMPION) == (after if done == 3 else before)
            assert made == ([after] if done == 3 else [])


@pytest.mark.slow
def test_the_command_line(root: Path, tracker: Tracker) -> None:
    def flows(*arguments: str, code: int = 0) -> str:
        answer = subprocess.run(
            [sys.executable, "-m", "flows", *arguments, "--root", str(root)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == code, answer.stdout + answer.stderr
        return answer.stdout

    crown(tracker, "good")
    challenge(tracker, "equal")
    output = flows("promote", "--require", code=2)
    assert "not promoted, version 1 stays" in output and "FAILED" in output
    challenge(tracker, "better")
    assert "student version 2 is champion now" in flows("promote", "--serve-check")
    assert "version 1 is champion again" in flows("rollback", "--why", "users complain")
    assert "users complain" in flows("history")
    assert json.loads(flows("why", "models:/student@champion", "--json"))["version"] == "1"
