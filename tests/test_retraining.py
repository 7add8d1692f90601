"""Promises about data that arrive: what is sound gets in once, what is not stays out, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from distillery import partitions
from distillery.errors import UserError
from flows import retraining
from tasks.params import load
from tasks.retraining import incoming, taking, versions
from tasks.retraining.incoming import Journal, LeftError
from tasks.retraining.results import RETRAINING, Batch, Retrained
from tasks.versioning.graph import Graph
from tests.arrivals import Digits, put, set_up
from tests.data_fixtures import stages
from tests.projects import Project

BASE = 500


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def _ingested(_fresh: Project, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = _fresh.copy(tmp_path_factory.mktemp("ingested") / "project")
    set_up(project, digits, BASE)
    stages(project.root, "ingest")
    return project


@pytest.fixture
def ingested(_ingested: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose table is up to date."""
    project = _ingested.copy(tmp_path / "project")
    monkeypatch.chdir(project.root)
    yield project


def took(project: Project) -> list[Batch]:
    """Takes in all that has arrived."""
    root = project.root
    taking.settle(root, Graph.open(root), print)
    return [taking.take(root, load(root), Graph.open(root), arrival) for arrival in incoming.waiting(root)]


def table(project: Project) -> pa.Table:
    """The table, made anew."""
    stages(project.root, "ingest")
    return pa.concat_tables([pq.read_table(project.root / f"data/table/{name}.parquet") for name in ("rows", "test")])


def left(project: Project) -> list[str]:
    """What still lies in `data/incoming`."""
    folder = project.root / "data" / "incoming"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_a_sound_batch_becomes_a_partition_that_dvc_knows(ingested: Project, digits: Digits) -> None:
    put(ingested, "week.parquet", digits.table(range(BASE - 20, BASE + 80)))
    (batch,) = took(ingested)
    assert (batch.outcome, batch.rows, batch.new, batch.labels) == ("accepted", 100, 80, 0)
    assert not batch.drifted and {each.what for each in batch.drift} == {"input image", "target label"}
    assert left(ingested) == []
    place = ingested.root / batch.folder
    assert (place / "week.parquet").exists() and place.with_name(f"{place.name}.dvc").exists()
    assert Batch.model_validate_json(place.with_name(f"{place.name}.json").read_text()) == batch
    assert table(ingested).num_rows == BASE + 80
    # DVC brings it back, and Git sees only what describes it.
    shutil.rmtree(place)
    ingested.dvc("checkout", f"{batch.folder}.dvc")
    assert (place / "week.parquet").exists()
    assert ingested.git("status", "--porcelain", "--untracked-files=all", "data/partitions").split()[1::2] == [
        "data/partitions/.gitignore",
        f"{batch.folder}.dvc",
        f"{batch.folder}.json",
    ]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("a.parquet", {"labels": ["zebra"] * 50}, "the label is none of the classes"),
        ("b.parquet", {"change": lambda pixels: pixels[:, :, :6]}, "its inputs are image 1x6x8, those of the table"),
        ("c.parquet", {"change": lambda pixels: pixels * 0}, "all pixels of the image are equal"),
        ("d.parquet", "columns", "no column 'image'"),
        ("e.parquet", "damaged", "e.parquet cannot be read as parquet"),
        ("f.parquet", "contradicting", "have equal inputs but labels"),
        ("g.parquet", "twice", "another row has the same inputs"),
        ("h.txt", "damaged", "h.txt is neither Parquet nor CSV"),
    ],
)
def test_a_bad_batch_stays_out_with_its_report(
    ingested: Project, digits: Digits, name: str, change: Any, problem: str
) -> None:
    before = table(ingested)
    new = digits.table(range(BASE, BASE + 50), **change) if isinstance(change, dict) else None
    if change == "columns":
        new = pa.table({"picture": [1], "label": ["1"]})
    if change == "contradicting":
        new = digits.table(range(40), labels=[str((int(label) + 1) % 10) for label in digits.labels[:40]])
    if change == "twice":
        new = pa.concat_tables([digits.table(range(BASE, BASE + 5))] * 2)
    file = put(ingested, name, digits.table(range(5)) if new is None else new)
    if change == "damaged":
        file.write_bytes(b"PAR1 and nothing more")
    content = file.read_bytes()
    (batch,) = took(ingested)
    assert batch.outcome == "quarantined" and any(problem in said for said in batch.problems), batch.problems
    assert ".state" not in batch.problems[0]  # where it lay for a moment is nobody's business
    place = ingested.root / batch.folder
    assert (place / "files" / name).read_bytes() == content
    assert json.loads((place / "report.json").read_text())["problems"] == list(batch.problems)
    assert left(ingested) == []
    assert table(ingested).equals(before)
    assert partitions.found(ingested.root / partitions.FOLDER) == []


def test_rows_of_the_test_split_never_become_training_rows(ingested: Project, digits: Digits) -> None:
    """Sent again, with or without others, they stay where they are."""
    before = {row["content"]: row["split"] for row in table(ingested).select(["content", "split"]).to_pylist()}
    put(ingested, "all.parquet", digits.table(range(BASE + 10)))
    (batch,) = took(ingested)
    assert (batch.outcome, batch.new) == ("accepted", 10)
    after = {row["content"]: row["split"] for row in table(ingested).select(["content", "split"]).to_pylist()}
    assert {name: after[name] for name in before} == before and len(after) == BASE + 10


def test_what_is_known_is_not_taken_in_again(ingested: Project, digits: Digits) -> None:
    put(ingested, "old.parquet", digits.table(range(100)))
    (old,) = took(ingested)
    assert (old.outcome, old.new, old.labels) == ("known", 0, 0)
    assert (ingested.root / old.folder / "files" / "old.parquet").exists()
    new = digits.table(range(BASE, BASE + 50))
    put(ingested, "new.parquet", new)
    (first,) = took(ingested)
    put(ingested, "new.parquet", new)
    (again,) = took(ingested)
    assert (first.outcome, again.outcome, again.folder) == ("accepted", "known", first.folder)
    assert left(ingested) == [] and table(ingested).num_rows == BASE + 50


def test_labels_of_known_rows_may_come_later(ingested: Project, digits: Digits) -> None:
    put(ingested, "unlabelled.parquet", digits.table(range(BASE, BASE + 60)).drop(["label"]))
    (batch,) = took(ingested)
    assert (batch.outcome, batch.new) == ("accepted", 60)
    assert table(ingested)["target"].null_count == 60
    put(ingested, "labels.parquet", digits.table(range(BASE, BASE + 60)))
    (batch,) = took(ingested)
    assert (batch.outcome, batch.new, batch.labels) == ("accepted", 0, 60)
    assert table(ingested)["target"].null_count == 0


def test_another_brightness_is_drift(ingested: Project, digits: Digits) -> None:
    put(ingested, "dark.parquet", digits.table(range(BASE, BASE + 200), lambda pixels: 255 - pixels))
    (batch,) = took(ingested)
    assert batch.drifted == ("input image",)


def test_images_in_folders_of_classes_are_one_batch(ingested: Project, digits: Digits) -> None:
    from PIL import Image

    ingested.set_params(data__source="table", data__path="data/raw.parquet", ingest={"image_mode": "grey"})
    for number in range(BASE, BASE + 30):
        file = ingested.root / "data" / "incoming" / digits.labels[number] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[number, 0]).save(file)
    (batch,) = took(ingested)
    assert (batch.name, batch.outcome, batch.new) == ("images", "accepted", 30)
    assert left(ingested) == []
    assert table(ingested).num_rows == BASE + 30


def test_a_batch_that_somebody_writes_is_left_alone(ingested: Project, digits: Digits) -> None:
    file = put(ingested, "slow.parquet", digits.table(range(BASE, BASE + 50)))
    (ingested.root / "data/incoming/later.parquet.part").touch()
    (ingested.root / "data/incoming/.hidden").touch()
    (arrival,) = incoming.waiting(ingested.root)
    place, signs = incoming.staged(ingested.root, arrival)
    assert [path.name for path in place.iterdir()] == ["slow.parquet"]
    with file.open("ab") as stream:
        stream.write(b"more")
    incoming.forget(ingested.root, signs)  # what was written since is not what was taken
    assert file.exists()


def test_what_is_written_while_it_is_looked_at_is_left_for_later(
    ingested: Project, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(ingested, "slow.parquet", digits.table(range(BASE, BASE + 50)))
    real = taking.judge

    def meanwhile(*arguments: Any) -> Any:
        found = real(*arguments)
        with file.open("ab") as stream:
            stream.write(b"more")
        return found

    monkeypatch.setattr(taking, "judge", meanwhile)
    with pytest.raises(LeftError, match=r"slow.parquet is still being written"):
        took(ingested)
    assert file.exists() and partitions.found(ingested.root / partitions.FOLDER) == []


def test_a_batch_that_may_not_be_read_or_removed_stops_no_other(
    ingested: Project, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(ingested, "theirs.parquet", digits.table(range(BASE, BASE + 50)))

    def refused(*_: Any) -> None:
        raise PermissionError  # root, under whom tests may run, is refused nothing

    with monkeypatch.context() as patch:
        patch.setattr(incoming.shutil, "copyfile", refused)
        with pytest.raises(LeftError, match=r"theirs.parquet may not be read \(.*\): give this user the right"):
            took(ingested)
    with monkeypatch.context() as patch:
        patch.setattr(incoming.os, "access", lambda *_: False)
        with pytest.raises(LeftError, match="may not be removed once it is taken in"):
            took(ingested)
    assert file.exists() and partitions.found(ingested.root / partitions.FOLDER) == []


def test_what_has_been_written_to_its_end_meanwhile_is_taken_by_the_same_retraining(
    ingested: Project, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "SECONDS", 0.2)
    file = put(ingested, "slow.parquet", digits.table(range(BASE, BASE + 50)))
    (arrival,) = incoming.waiting(ingested.root)
    half_way = ((str(file), 1, 1),)
    assert retraining.has_more(ingested.root, {})
    assert retraining.has_more(ingested.root, {arrival: half_way})
    assert not retraining.has_more(ingested.root, {arrival: arrival.signs()})
    ended = threading.Event()

    def write() -> None:
        with file.open("ab") as stream:
            while not ended.wait(0.02):
                stream.write(b"more")
                stream.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert not retraining.has_more(ingested.root, {arrival: half_way})
    ended.set()
    writer.join()


def test_a_round_that_decides_nothing_leaves_what_was_decided() -> None:
    first = Retrained(advanced="input age drifted", promotion="version 2 is champion now", outcome="promoted")
    both = first.then(Retrained(snapshot=1))
    assert (both.outcome, both.promotion, both.advanced) == (first.outcome, first.promotion, first.advanced)
    assert first.then(Retrained(promotion="kept it", outcome="kept")).outcome == "kept" and both.snapshot == 1


def test_folders_of_tables_are_batches_whatever_their_writer_left_there(ingested: Project, digits: Digits) -> None:
    folder = ingested.root / "data" / "incoming"
    for name in ("week-1", "week-2", "week-3.part"):
        (folder / name).mkdir(parents=True)
        pq.write_table(digits.table(range(BASE, BASE + 20)), folder / name / "0.parquet")
        (folder / name / "_SUCCESS").touch()
        (folder / name / ".DS_Store").touch()
        (folder / name / "1.parquet.part").touch()
    (folder / "empty").mkdir()  # somebody is about to fill it
    assert [arrival.name for arrival in incoming.waiting(ingested.root)] == ["week-1", "week-2"]
    assert [batch.outcome for batch in took(ingested)] == ["accepted", "known"]
    assert (folder / "empty").exists() and (folder / "week-3.part" / "0.parquet").exists()


def test_what_is_expected_of_all_rows_together_is_asked_of_all_of_them(ingested: Project, digits: Digits) -> None:
    def expecting(kind: str, **arguments: Any) -> None:
        expectation = {"type": kind, "arguments": arguments}
        set_up(ingested, digits, BASE, validation={"soft_targets": {}, "expectations": [expectation]})

    # A batch of one class is fine where the table has all.
    expecting("expect_column_distinct_values_to_contain_set", column="label", value_set=digits.labels[:1])
    others = [row for row in range(BASE, 700) if digits.labels[row] != digits.labels[0]]
    put(ingested, "one.parquet", digits.table(range(others[0], others[0] + 1)))
    assert took(ingested)[0].outcome == "accepted"
    expecting("expect_table_row_count_to_be_between", max_value=BASE + 10)
    put(ingested, "many.parquet", digits.table(range(700, 730)))
    (batch,) = took(ingested)
    assert batch.outcome == "quarantined" and "expect_table_row_count_to_be_between" in batch.problems[0]


def test_a_place_that_was_cut_off_half_way_is_no_place(ingested: Project, digits: Digits) -> None:
    file = put(ingested, "bad.parquet", digits.table(range(BASE, BASE + 20), labels=["zebra"] * 20))
    content = file.read_bytes()
    (batch,) = took(ingested)
    place = ingested.root / batch.folder
    # The same comes again, and the kill falls into the middle of what replaces the old folder.
    file.write_bytes(content)
    (arrival,) = incoming.waiting(ingested.root)
    (place / "files" / "bad.parquet").unlink()
    Journal(taken={batch.folder: arrival.signs()}).keep(ingested.root)
    (again,) = took(ingested)
    assert again.outcome == "quarantined"
    assert (place / "files" / "bad.parquet").read_bytes() == content


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.retraining import incoming, taking
from tasks.versioning.graph import Graph
from tasks.params import load

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[1]
if where == "before the rename":
    Path.rename = die
if where == "before dvc":
    Graph.add = die
if where in ("before the files go", "while the files go"):
    whole = incoming.forget
    def half(root, taken):
        if where == "while the files go":
            whole(root, list(taken)[:1])
        die()
    incoming.forget = half
root = Path.cwd()
(arrival,) = incoming.waiting(root)
taking.take(root, load(root), Graph.open(root), arrival)
"""


@pytest.mark.parametrize("where", ["before the rename", "before dvc", "before the files go", "while the files go"])
def test_a_kill_at_any_point_loses_no_row_and_doubles_none(ingested: Project, digits: Digits, where: str) -> None:
    folder = ingested.root / "data" / "incoming" / "week"
    folder.mkdir(parents=True)
    for number in range(2):
        pq.write_table(digits.table(range(BASE + 30 * number, BASE + 30 * number + 30)), folder / f"{number}.parquet")
    environment = os.environ | {"PYTHONPATH": str(ingested.root)}
    killed = subprocess.run([sys.executable, "-c", KILLED, where], cwd=ingested.root, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    took(ingested)
    assert left(ingested) == []
    (partition,) = partitions.found(ingested.root / partitions.FOLDER)
    assert partition.folder.with_name(f"{partition.name}.dvc").exists()
    assert table(ingested).num_rows == BASE + 60
    journal = Journal.left(ingested.root)
    assert journal is not None and not journal.taken
    assert [batch.new for batch in journal.batches] == [60]


@pytest.mark.parametrize(("policy", "drifted", "snapshot"), [
    ("never", True, 0), ("on_drift", False, 0), ("on_drift", True, 1), ("always", False, 1),
])  # fmt: skip
def test_parameters_say_when_teachers_learn_from_new_rows(
    ingested: Project, digits: Digits, policy: str, drifted: bool, snapshot: int
) -> None:
    set_up(ingested, digits, BASE, retraining={"snapshot": 0, "teacher": policy})
    file = ingested.root / "params.yaml"
    file.write_text(file.read_text() + "# the last line\n")
    change = (lambda pixels: 255 - pixels) if drifted else (lambda pixels: pixels)
    put(ingested, "week.parquet", digits.table(range(BASE, BASE + 150), change))
    took(ingested)
    why = taking.advance(ingested.root, load(ingested.root))
    assert load(ingested.root).retraining.snapshot == snapshot
    assert bool(why) == bool(snapshot)
    assert file.read_text().endswith("# the last line\n")
    assert taking.advance(ingested.root, load(ingested.root)) == ""  # once


@pytest.mark.slow
def test_the_teacher_is_asked_about_new_rows_alone(ingested: Project, digits: Digits) -> None:
    target = "soft_targets@wide"
    ingested.dvc("repro", target)
    store = ingested.root / "data" / "soft_targets" / "wide"
    before, known = ingested.files, np.load(store / "keys.npy")
    new = BASE // 20
    put(ingested, "week.parquet", digits.table(range(BASE, BASE + new)))
    took(ingested)
    ingested.dvc("repro", target)
    assert ingested.files["models/teachers/wide"] == before["models/teachers/wide"]
    rows = len(np.setdiff1d(np.load(store / "keys.npy"), known))
    assert np.isin(known, np.load(store / "keys.npy")).all() and 0.5 * new < rows <= new
    (run,) = MlflowClient(f"sqlite:///{ingested.root}/mlflow.db").search_runs(
        ["1"], f"tags.stage = '{target}'", order_by=["start_time DESC"], max_results=1
    )
    assert run.data.metrics["asked"] == rows


def test_data_and_params_are_committed_alone(ingested: Project, digits: Digits) -> None:
    for key, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        ingested.git("config", key, value)
    put(ingested, "week.parquet", digits.table(range(BASE, BASE + 50)))
    (batch,) = took(ingested)
    (ingested.root / "custom" / "left.py").write_text("work in progress\n")
    ingested.git("add", "custom/left.py")
    assert versions.commit(ingested.root, versions.DATA, "Take in week.parquet")
    changed = ingested.git("show", "--name-only", "--format=").split()
    assert changed == ["data/partitions/.gitignore", f"{batch.folder}.dvc", f"{batch.folder}.json", "params.yaml"]
    assert not versions.commit(ingested.root, versions.DATA, "Nothing")
    assert "A  custom/left.py" in ingested.git("status", "--porcelain")


def test_what_would_fail_at_the_end_is_told_at_the_beginning(ingested: Project) -> None:
    root = ingested.root
    retraining = load(root).retraining
    with pytest.raises(UserError, match=r"retraining.push: there is no default remote"):
        versions.check(root, Graph.open(root), retraining.model_copy(update={"push": True}))
    graph = Graph.open(root)
    shutil.rmtree(root / ".git")
    with pytest.raises(UserError, match=r"retraining.commit: git"):
        versions.check(root, graph, retraining.model_copy(update={"commit": True}))


@pytest.mark.slow
def test_one_at_a_time_and_nothing_to_do_is_said(finished: Project) -> None:
    assert "nothing new in data/incoming/, and nothing is stale" in finished.flows("retrain")
    with incoming.locked(finished.root, None):
        assert "another retraining of this project is running" in finished.flows("retrain", code=1)


@pytest.mark.slow
def test_a_promotion_that_was_due_is_made_up_for(finished: Project) -> None:
    """Killed between the run and the promotion: every stage is fresh, and the journal still lies there."""
    Journal().keep(finished.root)
    output = finished.flows("retrain")
    assert "student version 1" in output
    assert Retrained.read(finished.root / RETRAINING).outcome in ("promoted", "kept")
    assert Journal.left(finished.root) is None
    assert "nothing new" in finished.flows("retrain")


@pytest.mark.slow
def test_a_remote_that_is_away_is_told_and_made_up_for(finished: Project, digits: Digits, tmp_path: Path) -> None:
    finished.set_params(retraining={"snapshot": 0, "teacher": "never", "push": True})
    store = tmp_path / "store"
    store.write_text("a file where a folder should be")
    finished.dvc("remote", "add", "--default", "store", str(store))
    put(finished, "week.parquet", digits.table(range(100), lambda pixels: 255 - pixels))
    assert "the next retraining pushes it" in finished.flows("retrain", code=1)
    store.unlink()
    finished.flows("retrain")
    assert "Cache and remote 'store' are in sync." in finished.dvc("status", "--cloud")
    (partition,) = partitions.found(finished.root / partitions.FOLDER)
    # The cache loses the batch and the remote has it.
    shutil.rmtree(partition.folder)
    shutil.rmtree(finished.root / ".dvc" / "cache")
    finished.dvc("pull")
    assert (partition.folder / "week.parquet").exists()
