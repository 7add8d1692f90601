"""Promises of workers: what prefect.yaml deploys runs in the project, by the commands that docs/operate.md shows."""

import json
import re
from pathlib import Path

import pytest

from tasks.environment import TELEMETRY
from tasks.promotion.results import PROMOTION
from tasks.retraining.results import RETRAINING, Retrained
from tests.projects import Project

DOCUMENT = (Path(__file__).parents[1] / "docs" / "operate.md").read_text(encoding="utf-8")
(COMMANDS,) = re.findall(r"```bash\n([^`]*prefect worker start[^`]*)```", DOCUMENT)

# A user's own model, which tells where it was made.
TELLING = """
import json
import os
from pathlib import Path

from custom.models import Flat


def telling(inputs, outputs):
    seen = {"folder": os.getcwd(), "code": __file__, "variables": dict(os.environ)}
    Path("seen.json").write_text(json.dumps(seen))
    return Flat(inputs, outputs)
"""


def work(project: Project, start: str, variables: dict[str, str], *runs: tuple[str, ...]) -> dict[str, str]:
    """Asks for runs of deployments and lets a worker do them; deployment -> how its run ended."""
    asked = {}
    for run in runs:
        told = project.run("prefect", "deployment", "run", *run, **variables)
        asked[re.search(r"UUID: (\S+)", told)[1]] = run[0]
    project.run("bash", "-c", f"{start} --run-once", **variables)
    found = project.prefect("flow_runs/filter", flow_runs={"id": {"any_": list(asked)}})
    return {asked[run["id"]]: run["state_name"] for run in found}


@pytest.mark.slow
def test_a_worker_runs_what_is_deployed(finished: Project, tmp_path: Path) -> None:
    shown = COMMANDS.replace("http://prefect.internal:4200/api", finished.prefect_api)
    *lines, start = shown.replace("/srv/digits", str(finished.root)).splitlines()
    variables = {"PREFECT_HOME": str(tmp_path / "home")}
    for line in lines:
        command, _, _ = line.partition("#")
        if command.startswith("export"):
            variables |= dict(pair.split("=", 1) for pair in command.split()[1:])
        else:
            finished.run(*command.split(), **variables)
    start, _, _ = start.partition("#")

    arrived = finished.root / "data" / "incoming" / "broken.csv"
    arrived.parent.mkdir(parents=True, exist_ok=True)
    arrived.write_text("picture,label\n7,seven\n")
    ended = work(finished, start, variables, ("retraining/worker",), ("promotion/worker",))
    assert ended == {"retraining/worker": "Completed", "promotion/worker": "Completed"}
    assert [batch.outcome for batch in Retrained.read(finished.root / RETRAINING).batches] == ["quarantined"]
    assert (finished.root / PROMOTION).exists()

    (finished.root / "custom" / "telling.py").write_text(TELLING)
    finished.set_params(student={"model": {"name": "custom.telling:telling"}})
    ended = work(finished, start, variables, ("distillation/worker", "--param", 'stages=["distill"]'))
    assert ended == {"distillation/worker": "Completed"}
    assert "distill:" not in finished.dvc("status", "distill")
    seen = json.loads((finished.root / "seen.json").read_text())
    assert seen["folder"] == str(finished.root)
    assert seen["code"] == str(finished.root / "custom" / "telling.py")
    assert TELEMETRY.items() <= seen["variables"].items()
