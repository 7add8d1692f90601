"""Reads and checks `params.yaml`, and says what is wrong with it."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from distillery.errors import UserError
from tasks.params.sections import Params

FILE = "params.yaml"


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The path as the user wrote it: without the tags that unions add behind what they decide about."""
    decided = ("model", "start", "self", "mixing", "weighting", "weight", "temperature", "objectives")
    kept = [
        part
        for last, part in zip((None, *location), location, strict=False)
        if not (last in decided or (isinstance(last, int) and "objectives" in location))
    ]
    return [str(part) for part in kept if not str(part).startswith("literal[")]


def _explain(error: ValidationError) -> str:
    """One line for each mistake: the key's path and what would be valid."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(_path(item["loc"])) or FILE
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is missing (a section may be empty, `{}`, but must stand)"
        elif item["type"].startswith("union_tag"):
            names = str(item["ctx"].get("expected_tags", "")).replace("'", "")
            own = " or package.module:function" if where.endswith("model") else ""
            message = f"must name one of {names.replace(', custom', '')}{own}"
        given = item.get("input")
        shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
        lines.append(f"  {where}: {message}{shown}")
    return "\n".join(dict.fromkeys(lines))


def parse(document: object) -> Params:
    """Checks a parsed YAML document.

    Raises:
        UserError: naming the path of every wrong key and what would be valid.
    """
    if not isinstance(document, dict):
        raise UserError(f"{FILE} must hold sections (seed, data, teachers, ...), not {type(document).__name__}")
    filled = {key: {} if value is None else value for key, value in document.items()}
    try:
        return Params.model_validate(filled)
    except ValidationError as error:
        raise UserError(f"{FILE} is not valid:\n{_explain(error)}") from None


def load(root: Path) -> Params:
    """Reads and checks `params.yaml` of a project, and that `data.path` exists.

    Raises:
        UserError: where the file is missing, is no YAML, or does not hold valid parameters.
    """
    file = root / FILE
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; run from the project's folder, or give --root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from None
    params = parse(document)
    if not (root / params.data.path).exists():
        raise UserError(f"{FILE}: data.path: {params.data.path} does not exist; put your data there or change the key")
    return params
