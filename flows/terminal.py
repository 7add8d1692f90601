"""What people read on a terminal, or in a log, whose width nobody knows."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Logs and pipes scroll.
LOG_WIDTH = 110


def say(message: str) -> None:
    """One line for whoever watches; what was asked for goes to standard output."""
    print(message, file=sys.stderr, flush=True)


def wide(log_width: int = LOG_WIDTH) -> "Console":
    """Standard output; where it is no terminal, at least `log_width` columns of it."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, log_width)
    return console


def print_fitting(console: "Console", table: "Callable[[bool], Table]") -> None:
    """Prints the wide form of a table, or its narrow one, `table(True)`, where there is no room."""
    from rich.measure import Measurement

    shown = table(False)
    if Measurement.get(console, console.options.update_width(1000), shown).maximum > console.width:
        shown = table(True)
    console.print()
    console.print(shown)


def table_of(
    lines: Sequence[Mapping[str, str]], right: Collection[str] = (), *, title: str = "", alarming: Collection[str] = ()
) -> "Table":
    """Lines under the names of their columns.

    Args:
        lines: column -> text; all have the same columns.
        right: columns of figures.
        title: above them.
        alarming: a line that has one of these texts stands out.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in lines[0]:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for line in lines:
        style = "bold red" if set(line.values()) & set(alarming) else None
        table.add_row(*map(escape, line.values()), style=style)
    return table
