"""One teacher, one set of soft targets, many methods: planned, trained, told and adopted."""

import json
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import scipy.stats
import yaml
from mlflow import MlflowClient

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.saved import load_model, predict
from distillery.scores import scores
from tasks.comparison import adopt as adopting
from tasks.comparison import job as work
from tasks.comparison import leaderboard, page, plan, words
from tasks.comparison.job import Result
from tasks.comparison.significance import gain, mean
from tests import small_project
from tests.projects import Gate, Project, ended

COMPARE = (sys.executable, "-m", "flows", "compare")
OURS = [0.91, 0.93, 0.90, 0.95, 0.92]
THEIRS = [0.88, 0.91, 0.91, 0.90, 0.87]


def write(root: Path, **changes: object) -> None:
    """A params file with a comment, `comparison` and whatever else changed."""
    text = small_project.PARAMS.replace("student:\n", "student:  # what ships\n")
    (root / "params.yaml").write_text(text + (yaml.safe_dump(changes) if changes else ""))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "distillery" / "sources").mkdir(parents=True)
    (tmp_path / "distillery" / "sources" / "digits.py").touch()
    (tmp_path / "reports").mkdir()
    write(tmp_path)
    return tmp_path


def test_intervals_and_p_values_are_those_of_scipy():
    found = mean(OURS, 0.95)
    expected = scipy.stats.t.interval(0.95, 4, np.mean(OURS), scipy.stats.sem(OURS))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    paired = gain(OURS, THEIRS, 0.9)
    test = scipy.stats.ttest_rel(OURS, THEIRS)
    assert paired.p_value == pytest.approx(test.pvalue, rel=1e-12)
    interval = test.confidence_interval(0.9)
    assert (paired.difference.low, paired.difference.high) == pytest.approx(tuple(interval), rel=1e-12)


def test_one_seed_tells_nothing_about_chance():
    assert mean([0.9], 0.95).low is None
    assert gain([0.9], [0.8], 0.95).p_value is None


def test_the_same_difference_with_every_seed():
    assert gain(OURS, OURS, 0.95).p_value == 1
    found = gain([2.0, 3.0], [1.0, 2.0], 0.95)
    assert (found.difference.value, found.difference.low, found.p_value) == (1, None, None)


def test_the_student_alone_and_plain_kd_are_always_among_them(root: Path):
    found = plan.make(root, ["dkd", "rkd"], [], 3)
    assert [entry.method for entry in found.entries] == ["plain", "kd", "dkd", "rkd"]
    assert found.seeds == [3, 103, 203]
    assert len({job.key for job in found.jobs}) == 12
    # One seed of all before the next, so that every method has something to show early.
    assert [job.seed for job in found.jobs[:4]] == [3] * 4
    trainings = [entry.document["distill"]["training"] for entry in found.entries]
    assert all(training == trainings[0] for training in trainings)
    dkd = found.entries[2].document["distill"]["objectives"]
    assert dkd == [{"name": "dkd"}, {"name": "cross_entropy"}]


def test_without_names_the_block_is_compared_and_without_a_block_the_present_method(root: Path):
    assert [entry.method for entry in plan.make(root, [], [], 1).entries] == ["plain", "kd"]  # it is plain KD
    document = yaml.safe_load(small_project.PARAMS)
    document["distill"]["objectives"][0]["temperature"] = 5
    (root / "params.yaml").write_text(yaml.safe_dump(document))
    assert [entry.method for entry in plan.make(root, [], [], 1).entries] == ["plain", "kd", "own"]
    block = {"soft": {"objectives": [{"name": "kd", "temperature": 4}, {"name": "cross_entropy"}]}}
    write(
        root, comparison={"methods": block, "seeds": 2, "students": {"tiny": {"model": {"name": "mlp", "hidden": [3]}}}}
    )
    found = plan.make(root, [], [], None)
    assert [entry.title for entry in found.entries] == ["plain/tiny", "kd/tiny", "soft/tiny"]
    assert len(found.seeds) == 2
    assert len(plan.make(root, ["soft"], ["student", "tiny"], 1).entries) == 6


def test_a_method_may_be_a_scheme(root: Path):
    peer = {"model": {"name": "mlp", "hidden": [12]}}
    block = {
        "born_again": {"scheme": "self", "self": {"name": "born_again"}},
        "mutual": {"scheme": "online", "teachers": [], "peers": {"other": peer}},
    }
    write(root, comparison={"methods": block})
    found = {entry.method: entry.document["distill"] for entry in plan.make(root, [], [], 1).entries}
    assert found["born_again"]["teachers"] == []
    assert set(found["mutual"]["peers"]) == {"other"}


def test_unknown_names_are_told_with_the_right_ones(root: Path):
    with pytest.raises(UserError, match=r"'dk' is no method; there are all, kd, dkd"):
        plan.make(root, ["dk"], [], None)
    with pytest.raises(UserError, match="always compared, as plain"):
        plan.make(root, ["cross_entropy"], [], None)
    with pytest.raises(UserError, match="no student is called 'wide'; there are student"):
        plan.make(root, [], ["wide"], None)


def test_what_parameters_refuse_is_told_before_anything_runs(root: Path):
    with pytest.raises(UserError, match=r"multilabel_kd/student.*is about labels, and label is classes"):
        plan.make(root, ["dkd", "multilabel_kd"], [], None)
    write(root, comparison={"methods": {"exits": {"scheme": "self", "self": {"name": "exits"}}}})
    with pytest.raises(UserError, match=r"exits/student.*give the student a deeper model"):
        plan.make(root, ["exits"], [], None)
    found = plan.make(root, ["all"], [], None)
    assert "deeper model" in found.left_out["exits/student"]
    assert {"dkd", "hints", "rkd", "irg", "adversarial"} <= {entry.method for entry in found.entries}
    assert "multilabel_kd" not in {entry.method for entry in found.entries}


def test_several_targets_each_get_what_they_can_hear(root: Path):
    document = yaml.safe_load(small_project.PARAMS)
    document["data"]["columns"]["target"] = {"label": "classes", "weight": "number"}
    kd = [{"name": "kd"}, {"name": "cross_entropy"}]
    document["distill"]["objectives"] = {"label": kd, "weight": [{"name": "mse_teacher"}]}
    (root / "params.yaml").write_text(yaml.safe_dump(document))
    found = {entry.method: entry.document["distill"] for entry in plan.make(root, ["dkd", "rkd"], [], 1).entries}
    assert [one["name"] for one in found["dkd"]["objectives"]["weight"]] == ["mse_teacher", "mse"]
    assert [one["name"] for one in found["rkd"]["objectives"]["label"]] == ["rkd", "cross_entropy"]


def test_a_training_is_the_pipelines_own(tmp_path: Path):
    root = small_project.copied(tmp_path / "project")
    folder = root / work.FOLDER / "key"
    work.clean(folder)
    plain, kd = plan.make(root, [], [], 1).jobs
    test = Columns.open(root / "data" / "prepared" / "test")
    for job, model in ((plain, "baseline"), (kd, "distilled")):
        found = work.train(root, folder, job)
        network = load_model(root / "models" / model)
        expected = scores(predict(network, test), test.targets, test.schema)
        assert found.test == pytest.approx(expected, rel=1e-6)
        assert found == Result.read(work.file_of(folder, job))
        assert (found.steps, found.extra_parameters) == (plain_steps(root), 0)
    assert not list((folder / work.STAGING).iterdir())
    assert work.latency(root, folder, plain) > 0


def plain_steps(root: Path) -> int:
    return int(json.loads((root / "models" / "baseline" / "training.json").read_text())["steps"])


def test_parameters_that_are_left_behind_are_counted(tmp_path: Path):
    root = small_project.copied(tmp_path / "project")
    peer = {"model": {"name": "mlp", "hidden": [7]}}
    text = (root / "params.yaml").read_text()
    block = {"mutual": {"scheme": "online", "teachers": [], "peers": {"other": peer}}}
    (root / "params.yaml").write_text(text + yaml.safe_dump({"comparison": {"methods": block}}))
    folder = root / work.FOLDER / "key"
    work.clean(folder)
    *_, hints, mutual = plan.make(root, ["hints", "mutual"], [], 1).jobs
    teacher = yaml.safe_load(text)["teachers"]["wide"]["model"]["hidden"][-1]
    assert work.train(root, folder, hints).extra_parameters == (12 + 1) * teacher  # a linear projector
    assert work.train(root, folder, mutual).extra_parameters == 65 * 7 + 8 * 10


def board(root: Path, tests: dict[str, list[float]]) -> leaderboard.Leaderboard:
    """A leaderboard of made-up results."""
    planned = plan.make(root, ["dkd"], [], 5)
    results = {}
    for job in planned.jobs:
        value = tests[job.entry.method][planned.seeds.index(job.seed)]
        scored = {"accuracy": value}
        results[job.key] = Result(
            validation={"accuracy": value - 0.01}, test=scored, epoch=1, steps=10, seconds=2.0,
            parameters=5, extra_parameters=0, warnings=[],
        )  # fmt: skip
    return leaderboard.make(planned, results, {"student": 0.1}, {})


VALUES = {"plain": THEIRS, "kd": [0.9] * 5, "dkd": OURS}


def test_the_validation_split_ranks_and_differences_are_paired_and_corrected(root: Path):
    found = board(root, VALUES)
    assert [standing.method for standing in found.standings] == ["dkd", "kd", "plain"]
    assert found.comparisons == 3  # kd and dkd against plain, dkd against kd
    dkd, kd, plain_ = found.standings
    raw = [
        scipy.stats.ttest_rel(OURS, THEIRS).pvalue,
        scipy.stats.ttest_rel(OURS, [0.9] * 5).pvalue,
        scipy.stats.ttest_rel([0.9] * 5, THEIRS).pvalue,
    ]
    corrected = scipy_holm(raw)
    told = [dkd.against_plain["test"], dkd.against_kd["test"], kd.against_plain["test"]]
    assert [one.corrected for one in told] == pytest.approx(corrected)
    assert not plain_.against_plain and not kd.against_kd and not plain_.blocks
    assert words.headline(found).startswith("dkd is the best on the validation split: +2.8")


def scipy_holm(p_values: list[float]) -> list[float]:
    """By its definition: the largest of the smaller ones, each times how many are not smaller."""
    return [min(1.0, max(q * sum(other >= q for other in p_values) for q in p_values if q <= p)) for p in p_values]


def test_the_page_holds_everything_and_loads_nothing(root: Path):
    found = board(root, VALUES)
    page.write(root, found)
    text = (root / page.FILE).read_text()
    assert "5 seeds" in text and "3 comparisons" in text and "dkd" in text and "<svg" in text
    assert not re.search(r'(src|href)="(?!#)', text)
    page.write(root, found)
    assert text == (root / page.FILE).read_text()


def test_adopting_writes_the_block_and_keeps_the_rest(root: Path):
    board(root, VALUES).write(root / leaderboard.FILE)
    before = (root / "params.yaml").read_text()
    name, difference = adopting.adopt(root, None)
    after = (root / "params.yaml").read_text()
    assert name == "dkd"
    assert "# what ships" in after
    document = yaml.safe_load(after)
    assert document["distill"]["objectives"] == [{"name": "dkd"}, {"name": "cross_entropy"}]
    expected = yaml.safe_load(before)
    expected["distill"] |= {"objectives": document["distill"]["objectives"], "scheme": "offline"}
    assert document == expected
    assert "-  objectives" in difference and "student" not in difference
    assert adopting.adopt(root, "dkd") == ("dkd", "")


@pytest.mark.parametrize("name", ["params.yaml", "scenarios/multifeat.yaml", "scenarios/digits.yaml"])
def test_adopting_changes_only_lines_of_keys_that_differ(root: Path, name: str):
    text = (small_project.ROOT / name).read_text()
    source = yaml.safe_load(text)["data"]["source"]
    (root / "distillery" / "sources" / f"{source}.py").touch()
    (root / "params.yaml").write_text(text)
    planned = plan.make(root, ["dkd", "mutual", "born_again"], [], 1)
    same = Result(
        validation={"accuracy": 0.9}, test={"accuracy": 0.9}, epoch=1, steps=1, seconds=1.0,
        parameters=1, extra_parameters=0, warnings=[],
    )  # fmt: skip
    leaderboard.make(planned, {job.key: same for job in planned.jobs}, {"student": 0.1}, {}).write(
        root / leaderboard.FILE
    )
    for entry in planned.entries[1:]:
        _, difference = adopting.adopt(root, entry.method)
        after = (root / "params.yaml").read_text()
        document = yaml.safe_load(after)
        assert document == {**entry.document, "comparison": yaml.safe_load(text)["comparison"]}
        gone = set(text.splitlines()) - set(after.splitlines())
        assert all(re.match(r"  (scheme|teachers|mixing|peers|self|objectives)|    - ", line) for line in gone), gone
        assert "training" not in "".join(re.findall("(?m)^[-+] .*", difference))
    # And back to the same text, but for a key that is not among all methods' and so comes back without its comment.
    adopting.adopt(root, "kd")
    present = (root / "params.yaml").read_text()
    texts = [[line for line in one.splitlines() if "mixing" not in line] for one in (text, present)]
    assert texts[0] == texts[1]


def test_a_number_sign_is_a_comment_only_where_yaml_says_so(root: Path):
    (root / "params.yaml").write_text(
        small_project.PARAMS.replace("distill:\n", "distill:  # 'how'\n").replace(
            "objectives: [", "objectives:   [  # so\n    "
        )
    )
    board(root, VALUES).write(root / leaderboard.FILE)
    adopting.adopt(root, "dkd")
    text = (root / "params.yaml").read_text()
    assert "  objectives:      # so\n    - {name: dkd}\n" in text and "distill:  # 'how'\n" in text


def test_adopting_refuses_what_it_cannot_write(root: Path):
    with pytest.raises(UserError, match="run `python -m flows compare` first"):
        adopting.adopt(root, "dkd")
    board(root, VALUES).write(root / leaderboard.FILE)
    with pytest.raises(UserError, match="'rkd' is not on the leaderboard; there are dkd, kd, plain"):
        adopting.adopt(root, "rkd")
    with pytest.raises(UserError, match=r"student without a teacher.*the best that listens is dkd"):
        adopting.adopt(root, "plain")


def finished_jobs(project: Project) -> set[str]:
    return {file.name for file in (project.root / work.FOLDER).glob("*/*.json") if "latency" not in file.name}


@pytest.mark.slow
def test_a_comparison_from_the_command_line(finished: Project):
    output = finished.flows("compare", "--objectives", "dkd", "--seeds", "2", "--workers", "2")
    assert output.count("✓") == 6  # everything before them was up to date
    for told in ("accuracy in percent", "2 seeds", "3 comparisons", "plain", "--adopt"):
        assert told in output
    found = leaderboard.Leaderboard.read(finished.root / leaderboard.FILE)
    assert len(found.standings) == 3 and math.isfinite(found.students["student"].latency_ms)
    client = MlflowClient(f"sqlite:///{finished.root / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    (parent,) = client.search_runs(experiments, "tags.stage = 'compare'")
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 6 and {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert all("test_accuracy" in run.data.metrics for run in children)
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == {"leaderboard.json", "leaderboard.html"}
    run, *_ = finished.flow_runs()
    assert run["state_name"] == "Completed"
    told = finished.prefect("artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    assert {one["key"] for one in told} == {"progress", "leaderboard", "leaderboard-page"}
    (progress,) = (one["data"] for one in told if one["key"] == "progress")
    (lines,) = (json.loads(one["data"]) for one in told if one["key"] == "leaderboard")
    assert progress == 100 and {line["method"].rstrip(" *") for line in lines} == {"plain", "kd", "dkd"}
    # The other way in to the same files sees no difference.
    assert "up to date" in finished.dvc("status")

    before = finished_jobs(finished)
    lost = sorted(before)[0]
    (*_, folder) = (finished.root / work.FOLDER).iterdir()
    (folder / lost).unlink()
    told = finished.flows("compare", "--objectives", "dkd", "--seeds", "2", "--dry-run")
    assert "6 trainings, 1 of them to do, about" in told
    assert finished.flows("compare", "--objectives", "dkd", "--seeds", "2").count("✓") == 1
    assert finished_jobs(finished) == before

    adopted = finished.flows("compare", "--adopt", "dkd")
    assert "+" in adopted and "flows run" in adopted
    assert "distill" in finished.flows("run", "--dry-run")


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_keeps_what_has_finished_and_goes_on(finished: Project, gate: Gate):
    student = {"waits": {"model": {"name": "custom.models:waiting"}}}
    finished.set_params(comparison={"students": student, "methods": {}, "seeds": 1})
    assert "0 of them to do" not in finished.flows("compare", "--dry-run")
    flow = finished.start(*COMPARE, "--seeds", "1", "--students", "student,waits", **gate.variables)
    gate.wait(flow)
    workers = psutil.Process(flow.pid).children(recursive=True)
    flow.send_signal(signal.SIGINT)
    assert "finished trainings are kept" in ended(flow, 130)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    kept = finished_jobs(finished)
    assert not list((finished.root / work.FOLDER).rglob("*.tmp"))
    gate.open()
    output = finished.flows("compare", "--seeds", "1", "--students", "student,waits")
    assert output.count("✓") == 4 - len(kept)
    assert "kd/waits" in output
