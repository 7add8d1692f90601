"""Changes values in `params.yaml`: only the lines of keys that differ change, comments stay."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distillery.errors import UserError
from tasks.params import FILE, parse

# A comment behind a value; a number sign inside quotes or a word begins none.
_COMMENT = re.compile(r"""^(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'#\s]#*|\s(?!\s*\#))*(\s+\#.*)$""")


def change(root: Path, wanted: Mapping[str, dict[str, Any]]) -> tuple[str, str]:
    """Puts sections in the place of the present ones; returns the text before and after.

    Raises:
        UserError: where the parameters would not be valid, or the file is written in a way that cannot be changed here.
    """
    file = root / FILE
    before = file.read_bytes().decode()
    after, expected = before, yaml.safe_load(before)
    for section, values in wanted.items():
        expected[section] = values
        after = _with_section(after, section, values)
    if yaml.safe_load(after) != expected:
        told = yaml.safe_dump(dict(wanted), sort_keys=False)
        raise UserError(f"{FILE} is written in a way that cannot be changed here; put this into it:\n{told}")
    parse(expected)
    beside = file.with_name(f"{FILE}.tmp")
    beside.write_bytes(after.encode())
    beside.replace(file)
    return before, after


def _with_section(text: str, section: str, wanted: dict[str, Any]) -> str:
    """The text with other values in a section; a key whose value is the same keeps its lines."""
    lines = text.splitlines(keepends=True)
    at, (_, value), end = _place(yaml.compose(text), section, len(lines))
    if value.flow_style or not value.value:
        present = yaml.safe_load("".join(lines[at:end]))[section]
        if present == wanted:
            return text
        return "".join(lines[:at] + _written(section, wanted, 0, _comment(lines[at])) + lines[_last(lines, at, end) :])
    pieces: list[str] = []
    places = {name.value: _place(value, name.value, end) for name, _ in value.value}
    indent = value.value[0][0].start_mark.column
    last = _last(lines, at, end)
    cursor = min(place[0] for place in places.values())
    head = lines[:cursor]
    for name, (first, _, after) in places.items():
        stop = _last(lines, first, min(after, last))
        pieces += lines[cursor:first]
        own = lines[first:stop]
        if name in wanted:
            same = yaml.safe_load("".join(own))[name] == wanted[name]
            pieces += own if same else _written(name, wanted[name], indent, _comment(own[0]))
        cursor = stop
    new = [line for name in wanted if name not in places for line in _written(name, wanted[name], indent, None)]
    return "".join(head + pieces + new + lines[cursor:])


def _place(mapping: Any, name: str, end: int) -> tuple[int, tuple[Any, Any], int]:
    """The first line of a key in a mapping, its node and its value's, and the line where the next key begins."""
    starts = [key.start_mark.line for key, _ in mapping.value] + [end]
    at, pair = next((at, pair) for at, pair in enumerate(mapping.value) if pair[0].value == name)
    return starts[at], pair, starts[at + 1]


def _last(lines: list[str], first: int, end: int) -> int:
    """Where the lines of a key end: empty ones and comments in front of the next key belong to that."""
    while end > first + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _comment(line: str) -> tuple[int, str] | None:
    """The column and the text of the comment behind a value."""
    found = _COMMENT.match(line.rstrip("\r\n"))
    if found is None:
        return None
    return len(line.rstrip("\r\n")) - len(found[1].lstrip()), found[1].lstrip()


def _written(name: str, value: Any, indent: int, comment: tuple[int, str] | None) -> list[str]:
    """A key as `params.yaml` is written: a line for each mapping of a list, all else in one line."""
    pad = " " * indent
    below: list[str] = []
    if _is_listed(value):
        below = [f"{pad}  - {_flow(one)}\n" for one in value]
    elif isinstance(value, dict) and (indent == 0 or any(_is_listed(one) for one in value.values())):
        below = [line for key, one in value.items() for line in _written(key, one, indent + 2, None)]
    first = f"{pad}{name}:" if below else f"{pad}{name}: {_flow(value)}"
    if comment is not None:
        first = f"{first} ".ljust(comment[0]) + comment[1]
    return [f"{first}\n", *below]


def _is_listed(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _flow(value: Any) -> str:
    """A value in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
