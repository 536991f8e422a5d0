"""Times of several programs, measured in turns so that a busy machine is unfair to none."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TURN = 0.02
"""Seconds that a turn of a short call lasts, in which it is called again and again."""
CALM = 0.01
"""Seconds between turns where several threads are used: workers of most runtimes go on spinning
for a while after a call, and would take the next program's cores."""
WARM_UP = 3
"""Calls before the first that counts: they load pages, caches and threads."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: the median, the quartiles around it, and the least."""

    median: float
    low: float
    high: float
    count: int
    least: float

    @staticmethod
    def of(values: list[float]) -> Times:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return Times(middle, low, high, len(values), min(values))


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Each round calls every program once. rounds: at least 2."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append((time.perf_counter() - start) * 1e3)
        if progress is not None:
            progress("measure", done + 1, rounds)
    return {name: Times.of(values) for name, values in spent.items()}


def in_long_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, calm: float = 0.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Each round gives every program a turn of about 20 ms, at least one call.

    A turn begins with a call that does not count: it brings back what the others pushed out of
    the caches. calm: seconds to wait before it.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        for name, call in calls.items():
            time.sleep(calm)
            call()
            spent[name] += [_seconds(call) * 1e3 for _ in range(repeats[name])]
        if progress is not None:
            progress("measure", done + 1, rounds)
    return {name: Times.of(values) for name, values in spent.items()}


def _repeats(call: Callable[[], object]) -> int:
    """How many calls make a turn, after the warm-up."""
    last = min(_seconds(call) for _ in range(WARM_UP))
    return max(math.ceil(TURN / max(last, 1e-9)), 1)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
