"""Ratios of things that take turns in one run, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        what: was measured.
        value: as told, with its unit.
        aim: what it should be.
        met: whether it is.
    """

    what: str
    value: str
    aim: str
    met: bool


def seconds(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Runs every work once to warm up, then all of them in turn.

    Returns:
        Name -> wall-clock seconds of each round.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        # The order turns around, so that none always follows the same neighbour.
        for name in list(works)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            works[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], ours: str, other: str) -> tuple[float, str]:
    """The median over rounds of ours / other, and the same with its range as text."""
    ratios = sorted(a / b for a, b in zip(times[ours], times[other], strict=True))
    middle = statistics.median(ratios)
    return middle, f"{middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
