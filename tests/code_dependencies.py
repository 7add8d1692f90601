"""Which code each stage runs, found in its imports; `python -m tests.code_dependencies` writes it into dvc.yaml.

A folder that stands in a stage's list (a registry of models, objectives or sources) is kept as a whole.
"""

import ast
import re
from pathlib import Path

import yaml

from tasks import STAGES

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What every stage gets from its wrapper and never makes a result stale: parameters, tracking, bars.
WRAPPER = ("stage", "progress", "params", "tracking", "environment", "failures", "folders")
# Registries import their parts by name, so each of them may run.
BY_NAME = {"distillery.models", "distillery.sources"}


def file_of(module: str) -> Path | None:
    """The file of one of the project's own modules."""
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported(file: Path) -> set[str]:
    """The project's own modules that a file imports, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("tasks", "distillery") and file_of(name)}


def needed(stage: str) -> set[str]:
    """The files that a stage runs: its own and, through every import, the parts of distillery and its helpers."""
    waiting, seen = [f"tasks.{stage}"], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module == "tasks" or module.startswith(tuple(f"tasks.{name}" for name in WRAPPER)):
            continue
        seen.add(module)
        file = file_of(module)
        assert file is not None
        waiting += imported(file)
        if module in BY_NAME:
            waiting += [f"{module}.{part.stem}" for part in file.parent.glob("*.py") if part.stem != "__init__"]
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        parents = module.split(".")[:-1]
        waiting += [".".join(parents[: n + 1]) for n in range(len(parents)) if file_of(".".join(parents[: n + 1]))]
    files = {file_of(module) for module in seen}
    return {str(file.relative_to(ROOT)) for file in files if file is not None and file.read_text().count("\n") > 2}


def dependencies(stage: str) -> set[str]:
    definition = PIPELINE[stage].get("do", PIPELINE[stage])
    return set(definition["deps"])


def write() -> None:
    """Replaces the code in every stage's `deps`, sorted behind its data; comments and all else stay."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for stage in STAGES:
        folders = {dep for dep in dependencies(stage) if (ROOT / dep).is_dir() and dep.startswith("distillery/")}
        files = {file for file in needed(stage) if not any(str(parent) in folders for parent in Path(file).parents)}
        head, block, tail = re.split(rf"(^  {stage}:\n(?:    .*\n|\n)*)", text, maxsplit=1, flags=re.MULTILINE)
        line = re.compile(r"^( +- )(?:distillery|tasks)/(?!reporting/pages)\S+\n", re.MULTILINE)
        first = line.search(block)
        assert first is not None
        code = "".join(f"{first[1]}{path}\n" for path in sorted(files | folders))
        block = block[: first.start()] + code + line.sub("", block[first.start() :])
        text = head + block + tail
    (ROOT / "dvc.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
