"""Whole projects in temporary folders: the real code, the real tools, small data and short trainings."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CODE = ("custom", "distillery", "flows", "tasks", "scenarios", ".dvcignore", ".gitignore", "dvc.yaml", "prefect.yaml")
FOREIGN = ("PREFECT", "MLFLOW", "DVC", "GIT", "DO_NOT_TRACK", "GATE")
PATIENCE = 240.0

# A user's own models: one waits half-way until a test lets it go on, one breaks half-way.
MODELS = '''
"""Models of a user."""

import math
import os
import time
from pathlib import Path

import torch


class Flat(torch.nn.Module):
    def __init__(self, inputs, outputs, breaks=False):
        super().__init__()
        self.line = torch.nn.Linear(sum(math.prod(shape) for shape in inputs.values()), outputs)
        self.calls_left = 3 if breaks else None

    def forward(self, *inputs):
        if self.training and self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise RuntimeError("the network is worn out")
        if self.training and "GATE" in os.environ:
            gate = Path(os.environ["GATE"])
            (gate / "reached").touch()
            while not (gate / "open").exists():
                time.sleep(0.02)
        return self.line(torch.cat([one.flatten(1) for one in inputs], dim=1))


def waiting(inputs, outputs):
    return Flat(inputs, outputs)


def breaking(inputs, outputs):
    return Flat(inputs, outputs, breaks=True)
'''

PARAMS: dict[str, Any] = {
    "seed": 7,
    "data": {
        "source": "digits",
        "path": "distillery/sources/digits.py",
        "columns": {"inputs": ["image"], "target": "label"},
        "split": {"train": 0.7, "validation": 0.1, "test": 0.2},
        "labelled": 200,
    },
    "ingest": {},
    "validation": {"min_rows_per_class": 2, "soft_targets": {"min_agreement": 0.5, "max_entropy": 1.0}},
    "teachers": {"wide": {"model": {"name": "mlp", "hidden": [32]}, "training": {"epochs": 12, "learning_rate": 0.01}}},
    "soft_targets": {"dtype": "float16"},
    "student": {"model": {"name": "mlp", "hidden": [8]}},
    "distill": {
        "scheme": "offline",
        "teachers": ["wide"],
        "objectives": [
            {"name": "kd", "weight": 0.9, "temperature": 2.0},
            {"name": "cross_entropy", "weight": 0.1},
        ],
        "training": {"epochs": 3, "learning_rate": 0.01},
    },
    "finetune": {"training": {"epochs": 1, "learning_rate": 0.0003}},
    "export": {"int8": False},
    "evaluate": {"primary": "accuracy", "resamples": 200},
    "registry": {"experiment": "distillation", "teacher": "teacher", "student": "student"},
    "retraining": {"snapshot": 0},
}


@dataclass(frozen=True)
class Project:
    """A project and its command lines, each run as a process of its own."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> "Project":
        """A fresh clone, set up as the README says."""
        source = Path(__file__).parents[1]
        root.mkdir(parents=True)
        for name in CODE:
            if (source / name).is_dir():
                shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source / name, root / name)
        (root / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copy(source / ".dvc" / name, root / ".dvc" / name)
        (root / "custom" / "models.py").write_text(MODELS)
        for folder in ("models/teachers", "data/soft_targets", "data/partitions", "reports/soft_targets"):
            (root / folder).mkdir(parents=True)
            (root / folder / ".gitkeep").touch()
        project = cls(root)
        project.set_params()
        project.git("init", "--quiet")
        project.git("add", "--all")
        project.git("-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "Start")
        return project

    def copy(self, root: Path) -> "Project":
        """The same state in another folder, for a test that changes it; a server that runs is shared."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def set_params(self, **changes: Any) -> None:
        """Writes `params.yaml` anew; `evaluate__resamples=100` changes one key."""
        document: dict[str, Any] = json.loads(json.dumps(PARAMS))
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = document
            for section in sections:
                place = place[section]
            place[key] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def start(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """Starts a command in the project; output and errors come together."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        # `python` in dvc.yaml has to be this one.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=env | variables,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A runner that was itself started in the background hands down that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def run(self, *command: str, code: int = 0, **variables: str) -> str:
        """Runs a command to its end and returns what it printed."""
        return ended(self.start(*command, **variables), code)

    def flows(self, *arguments: str, code: int = 0, **variables: str) -> str:
        return self.run(sys.executable, "-m", "flows", *arguments, code=code, **variables)

    def tasks(self, *arguments: str, code: int = 0, **variables: str) -> str:
        return self.run(sys.executable, "-m", "tasks", *arguments, code=code, **variables)

    def dvc(self, *arguments: str, code: int = 0, **variables: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code, **variables)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    @property
    def lock(self) -> str:
        """The text of `dvc.lock`."""
        return (self.root / "dvc.lock").read_text()

    @property
    def files(self) -> dict[str, str]:
        """Stage -> outputs and their hashes in `dvc.lock`, flattened: path -> hash."""
        stages = yaml.safe_load(self.lock)["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}

    @contextlib.contextmanager
    def server(self) -> Iterator[dict[str, str]]:
        """Keeps `python -m flows server` on free ports; yields the addresses."""
        arguments = (sys.executable, "-m", "flows", "server", "--prefect-port", "0", "--mlflow-port", "0")
        process = self.start(*arguments)
        file = self.root / ".state" / "servers.json"
        try:
            until(lambda: file.exists() or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
            yield json.loads(file.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            ended(process, 128 + signal.SIGTERM)

    @property
    def prefect_api(self) -> str:
        """The address of the kept Prefect server, as `PREFECT_API_URL` takes it."""
        servers: dict[str, str] = json.loads((self.root / ".state" / "servers.json").read_text())
        return f"{servers['prefect']}/api"

    def prefect(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Asks the kept Prefect server."""
        body = json.dumps(query).encode()
        request = urllib.request.Request(f"{self.prefect_api}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def flow_runs(self) -> list[dict[str, Any]]:
        """Flow runs of this folder, the newest first."""
        mine = {"tags": {"all_": [f"project:{self.root}"]}}
        return self.prefect("flow_runs/filter", flow_runs=mine, sort="EXPECTED_START_TIME_DESC")


@dataclass(frozen=True)
class Gate:
    """Holds a training of `custom.models:waiting` half-way."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"GATE": str(self.folder)}

    def wait(self, process: "subprocess.Popen[str]") -> None:
        """Returns when the training has come to the gate."""
        until(lambda: (self.folder / "reached").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]

    def open(self) -> None:
        (self.folder / "open").touch()


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Waits for a process, checks how it ended, and returns what it printed."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{process.args} did not end:\n{output}") from None
    assert process.returncode == code, f"{process.args} ended with {process.returncode}:\n{output}"
    assert "Traceback" not in output, output
    return output


def states(output: str) -> dict[str, str]:
    """Stage -> state, from what a flow printed."""
    return dict(re.findall(r"^[✓✗-] (\S+)\s+(Completed|Cached|Restored|Failed|NotReady)", output, re.MULTILINE))


def until(happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits until something has happened."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
