"""Promises of "Be told" in docs/operate.md: what it shows, typed in with another address, sends what it says."""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.projects import Project, until
from tests.schedules import served, states_of

DOCUMENT = (Path(__file__).parents[1] / "docs" / "operate.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (block\.py|failed\.yaml|refused\.yaml)\n(.*?)```", DOCUMENT, re.DOTALL))
COMMANDS = re.findall(r"^\$ (prefect automation create .*)$", DOCUMENT, re.MULTILINE)


@contextlib.contextmanager
def chat() -> Iterator[tuple[str, list[str]]]:
    """A server that takes messages; yields its address and what it has heard."""
    heard: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


@pytest.mark.slow
def test_refused_batches_and_failed_runs_are_told(finished: Project, tmp_path: Path) -> None:
    digits = finished.copy(tmp_path / "digits")  # as the document calls it
    variables = {"PREFECT_API_URL": digits.prefect_api, "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "true"}
    with chat() as (address, heard):
        (digits.root / "block.py").write_text(FILES.pop("block.py").replace("https://chat.internal", address))
        block = digits.run(sys.executable, "block.py", **variables).strip()
        for name, text in FILES.items():
            (digits.root / name).write_text(re.sub(r"(?<=block_document_id: )[0-9-]+", block, text))
        for command in COMMANDS:
            assert "Created automation" in digits.run(*command.split(), **variables)

        digits.set_params(schedules={"retraining": {"on_new_data": True}})
        incoming = digits.root / "data" / "incoming"
        with served(digits, PREFECT_RUNNER_POLL_FREQUENCY="1"):
            (incoming / "week.csv").write_text("picture,label\n7,seven\n")
            until(lambda: bool(heard) and states_of(digits) == ["Completed"])
            digits.set_params(schedules={"retraining": {"on_new_data": True}}, seed="seven")
            (incoming / "later.csv").write_text("picture,label\n8,eight\n")
            until(lambda: len(heard) == 2)
    refused, failed = heard
    (place,) = (digits.root / "data" / "quarantine").iterdir()
    assert refused.startswith("week.csv was refused\nweek.csv has no column 'image'")
    assert refused.endswith(f"  data/quarantine/{place.name}")
    assert failed.startswith("retraining Failed\n") and "seed: Input should be a valid integer" in failed
    assert "/runs/flow-run/" in failed
