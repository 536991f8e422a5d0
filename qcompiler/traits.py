"""Words: what makes a tensor hard to hold in 8 bits, told from its statistics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcompiler.stats import Stats

HEAVY = 10.0
"""Kurtosis that is told; 3 is a normal distribution's, 6 a Laplace distribution's."""
APART = 10.0
"""Times the median channel's largest magnitude that the largest channel's is told from."""


def described(stats: Stats) -> str:
    """Heavy tails, channels far apart, channels that are always zero; empty where there is none."""
    return ", ".join(_traits(stats)) if stats.count else ""


def _traits(stats: Stats) -> Iterator[str]:
    tails = kurtosis(stats)
    if tails >= HEAVY:
        yield f"heavy tails (kurtosis {tails:.3g})"
    magnitudes = channel_magnitudes(stats)
    alive = magnitudes[magnitudes > 0]
    if len(alive) > 1 and alive.max() >= APART * np.median(alive):
        yield f"one channel {alive.max() / np.median(alive):.3g} times the median one"
    dead = len(magnitudes) - len(alive)
    if dead and len(alive):
        yield f"{dead} of {len(magnitudes)} channels always 0"


def kurtosis(stats: Stats) -> float:
    """The fourth central moment over the squared variance, as the histogram has it; 0 where all
    values are equal."""
    if stats.variance <= 0:
        return 0.0
    h = stats.histogram()
    middle = (h.lower.astype(np.float64) + h.upper) / 2
    fourth = float((h.counts * (middle - stats.mean) ** 4).sum() / h.counts.sum())
    return fourth / stats.variance**2


def channel_magnitudes(stats: Stats) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """float64 [C]: the largest magnitude of each channel in which something was seen."""
    if stats.channels is None:
        return np.zeros(0)
    c = stats.channels
    used = c.counts > 0
    low, high = c.low[used].astype(np.float64), c.high[used].astype(np.float64)
    return np.maximum(np.abs(low), np.abs(high))
