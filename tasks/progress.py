"""Progress bars: drawn in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
LINE_SECONDS = 10.0


class Progress:
    """Bars for whatever takes more than a few seconds; used as a context manager, nested freely."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(file=sys.stderr)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._depth = 0

    def __enter__(self) -> Self:
        if self._depth == 0 and self.console.is_terminal:
            self._bars.start()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._bars.stop()

    def say(self, message: str) -> None:
        """One line above the bars."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def note(self, message: str) -> None:
        """A line that warns of nothing."""
        self.say(message)

    def track(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Yields the items and moves a bar."""
        with Bar(self, description, total) as bar:
            for item in items:
                yield item
                bar.advance()


class Silent(Progress):
    """Draws nothing, for work beside other work.

    Attributes:
        said: what would have been printed, but notes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console.quiet = True
        self.said: list[str] = []

    def say(self, message: str) -> None:
        """Keeps a line."""
        self.said.append(message)

    def note(self, message: str) -> None:
        """Lets it go."""


class Bar:
    """One bar; `note` shows a figure beside it."""

    def __init__(self, progress: Progress, description: str, total: int, done: int = 0) -> None:
        self._progress = progress
        self._description = description
        self._total = total
        self._done = done
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._task = self._progress._bars.add_task(self._description, total=self._total, completed=self._done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress._bars.remove_task(self._task)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Moves the bar; without a terminal, says so every ten seconds."""
        self._done += steps
        self._progress._bars.update(self._task, advance=steps, note=note)
        if not self._progress.console.is_terminal and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            self._progress.say(f"{self._description} {self._done}/{self._total} {note}".rstrip())
