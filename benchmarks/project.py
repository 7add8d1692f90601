"""A copy of this project in a folder of its own, with git and DVC."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Project:
    """The copy.

    Attributes:
        root: its folder.
        environment: in which its commands run.
    """

    root: Path
    environment: dict[str, str]

    @classmethod
    def copy(cls, folder: Path) -> "Project":
        """Copies what git tracks, so that no cache and no result comes along."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        project = cls.at(folder)
        project.run("git", "init", "--quiet")
        return project

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """A copy that was made before."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        # The copy's own code runs there, not that of who asks.
        environment["PYTHONPATH"] = str(folder)
        return cls(folder, environment)

    def run(self, *command: str) -> None:
        """Runs a command there.

        Raises:
            CalledProcessError: where it fails; its output goes to the terminal.
        """
        result = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            sys.stderr.write(result.stdout + result.stderr)
            result.check_returncode()

    def python(self, *arguments: str) -> None:
        """Runs Python there."""
        self.run(sys.executable, *arguments)
