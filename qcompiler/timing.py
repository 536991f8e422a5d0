"""Times of several programs, measured in turns so that a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WARM_UP = 3
"""Calls before the first that counts: they load pages, caches and threads."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: the median, and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: list[float]) -> Times:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return Times(middle, low, high, len(values))


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
