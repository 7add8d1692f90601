"""A month without anybody watching: batches come week by week, one bad, one of another kind, one that does harm."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.arrivals import Digits, put, set_up
from tests.projects import Project, states

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BASE = 400
PARAMS: dict[str, Any] = {
    "teachers": {"wide": {"model": {"name": "mlp", "hidden": [64]}, "training": {"epochs": 25, "learning_rate": 0.01}}},
    "student": {"model": {"name": "mlp", "hidden": [32]}},
    "distill__training": {"epochs": 12, "learning_rate": 0.01},
    "retraining": {"snapshot": 0, "commit": True, "push": True},
    # What each gate measures is tested elsewhere; here better is better.
    "gates": {
        "min_retention": 0.7,
        "max_loss": 0.03,
        "max_class_loss": 1.0,
        "max_calibration_rise": 1.0,
        "max_agreement_loss": 1.0,
        "max_latency_ratio": 100.0,
    },
}


class Month:
    """A project, what comes in, and what can be seen from outside."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.digits = Digits()

    def retrain(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The report, and the states of the stages."""
        output = self.project.flows("retrain")
        report: dict[str, Any] = json.loads((self.project.root / "reports" / "retraining.json").read_text())
        return report, states(output)

    def retrain_until(self, stage: str) -> None:
        """Kills a retraining when a stage has ended."""
        process = self.project.start(sys.executable, "-m", "flows", "retrain")
        assert process.stdout is not None
        for line in process.stdout:
            if stage in line:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL

    @property
    def rows(self) -> int:
        files = (self.project.root / "data" / "table").glob("*.parquet")
        return sum(pq.read_metadata(file).num_rows for file in files)

    @property
    def history(self) -> list[tuple[str, str | None, str]]:
        """Every move of the champion: what, from, to."""
        moves = json.loads(self.project.flows("history", "--json"))
        return [(move["action"], move["before"], move["after"]) for move in moves]

    @property
    def commits(self) -> list[str]:
        """First lines, the newest first."""
        return self.project.git("log", "--format=%s").splitlines()


def test_a_month(project: Project, tmp_path: Path) -> None:
    month = Month(project)
    set_up(project, month.digits, BASE, **PARAMS)
    for key, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        project.git("config", key, value)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.dvc("add", "data/raw.parquet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "-m", "Our data")
    with project.server():
        the_first_weeks(month)
        the_week_that_does_harm(month)
        the_week_with_a_crash(month)
        # The whole is in Git and in the remote: a colleague gets it all, and nothing is left to do.
        clone = Project(tmp_path / "clone")
        project.git("clone", "--quiet", str(project.root), str(clone.root))
        clone.dvc("pull")
        assert "up to date" in clone.dvc("status")
        assert "nothing new" in project.flows("retrain")


def the_first_weeks(month: Month) -> None:
    """Good data, a bad batch, and one that drifts."""
    project, digits = month.project, month.digits
    report, _ = month.retrain()
    assert (report["outcome"], month.rows, month.history) == ("promoted", BASE, [("promote", None, "1")])

    put(project, "week-1.parquet", digits.table(range(BASE, 900)))
    report, ran = month.retrain()
    assert (report["outcome"], report["snapshot"], month.rows) == ("promoted", 0, 900)
    # The teacher stays as it is, and is asked about new rows alone; students are trained anew.
    assert (ran["train_teacher@wide"], ran["soft_targets@wide"], ran["distill"]) == ("Cached", "Completed", "Completed")
    assert month.commits[:2] == ["Retrain on week-1.parquet", "Take in week-1.parquet"]

    put(project, "week-2.parquet", digits.table(range(900, 1000), labels=["zebra"] * 100))
    report, ran = month.retrain()
    assert (report["batches"][0]["outcome"], report["outcome"], ran, month.rows) == ("quarantined", "", {}, 900)

    put(project, "week-3.parquet", digits.table(range(1000, 1300), lambda pixels: 255 - pixels))
    report, ran = month.retrain()
    assert report["advanced"] == "input image drifted" and report["snapshot"] == 2
    assert ran["train_teacher@wide"] == "Completed"
    assert (report["outcome"], month.rows) == ("promoted", 1200)
    assert month.history == [("promote", None, "1"), ("promote", "1", "2"), ("promote", "2", "3")]


def the_week_that_does_harm(month: Month) -> None:
    """Labels by dice: the champion stays. Then somebody goes back by hand."""
    project, digits = month.project, month.digits
    noise = [str(label) for label in np.random.default_rng(0).integers(0, 10, 300)]
    put(project, "week-4.parquet", digits.table(range(1300, 1600), labels=noise))
    report, _ = month.retrain()
    assert (report["outcome"], month.rows, len(month.history)) == ("kept", 1500, 3)
    # The batch is taken out again.
    (folder,) = [project.root / batch["folder"] for batch in report["batches"]]
    shutil.rmtree(folder)
    for suffix in (".dvc", ".json"):
        folder.with_name(f"{folder.name}{suffix}").unlink()
    project.flows("rollback", "--why", "complaints")
    assert month.history[-1] == ("rollback", "3", "2")


def the_week_with_a_crash(month: Month) -> None:
    """Killed between append and student, then between student and promotion; the next retraining goes on."""
    project, digits = month.project, month.digits
    put(project, "week-5.parquet", digits.table(range(1300, 1700), lambda pixels: 255 - pixels))
    for stage in ("train_baseline", "register"):
        month.retrain_until(stage)
        assert month.history[-1] == ("rollback", "3", "2")
    report, ran = month.retrain()
    assert set(ran.values()) == {"Cached"}
    assert [batch["name"] for batch in report["batches"]] == ["week-5.parquet"]
    assert (report["outcome"], month.rows) == ("promoted", 1600)
    assert month.history[4:] == [("promote", "2", "5")]
    assert not any((project.root / "data" / "incoming").iterdir())
    assert [path.name.partition("-")[0] for path in sorted((project.root / "data/partitions").glob("*.dvc"))] == [
        "0001",
        "0002",
        "0003",
    ]
