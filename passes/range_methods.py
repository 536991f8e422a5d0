"""The range of codes from statistics: smallest to largest, percentile, least error, entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qcompiler import arith
from qcompiler.recipe import RangeMethod
from qcompiler.stats import Histogram, Stats

Range = tuple[float, float]
Array = np.ndarray[Any, np.dtype[Any]]

CLIP_STEPS = 8
"""Steps per factor of two of the first search over clipped ranges."""

CLIP_BINADES = 6
"""Factors of two the search goes below the largest magnitude: a range of 1/64 clips all but a
far outlier, and is 6 of 8 bits."""

FINE_STEPS = 64
"""Steps per factor of two of the last search, half a first step to either side: 1 %."""

SEARCH_ROUNDS = 2
"""How often each end is moved with the other held; a third time lowers the error by less than
0.1 % on normal, Laplace, ReLU and SiLU samples."""

NEGLIGIBLE = 2.0**-18
"""Magnitudes below this share of the largest are one cell: 1/16 of the finest step searched."""

PARTS = 16
"""Bins a code's interval is cut into for the entropy: as in Migacz 2017 at the full range
(2048 bins over 128 codes), but there it falls to 1 as the range shrinks, which favours clipping."""


@dataclass(frozen=True)
class Codes:
    """The integer codes a range is chosen for."""

    qmin: int
    qmax: int
    symmetric: bool = False

    def params(self, span: Range) -> tuple[float, int]:
        """Scale and zero point for values in `span`, widened to hold 0."""
        return arith.choose_params(*span, self.qmin, self.qmax, self.symmetric)


def choose_range(stats: Stats, method: RangeMethod, percentile: float, codes: Codes) -> Range:
    """The range [lo, hi] whose ends get the extreme codes; (0, 0) when nothing was seen.

    Values outside are clipped. The same statistics give the same bits.
    """
    if not stats.count:
        return 0.0, 0.0
    if method is RangeMethod.PERCENTILE:
        return percentile_range(stats, percentile)
    if method is RangeMethod.MINMAX or stats.low == stats.high:
        return stats.low, stats.high
    score = mean_squared_error if method is RangeMethod.MSE else divergence
    return search(_without_zeros(stats), codes, score)


def percentile_range(stats: Stats, percentile: float) -> Range:
    """The range that keeps `percentile` % of the values; both tails lose the same share.

    Where all values have one sign, zero ends the range and the other tail loses the whole.
    """
    outside = 1.0 - percentile / 100.0
    if stats.low < 0.0 < stats.high:
        return stats.quantile(outside / 2)[0], stats.quantile(1.0 - outside / 2)[1]
    if stats.low >= 0.0:
        return stats.low, stats.quantile(1.0 - outside)[1]
    return stats.quantile(outside)[0], stats.high


Score = Callable[[Histogram, float, int, Codes], float]


def search(h: Histogram, codes: Codes, score: Score) -> Range:
    """The clipped range of least score: both ends together, then each in turn, then finely."""
    if not len(h.counts):
        return 0.0, 0.0
    low, high = float(min(h.lower[0], 0.0)), float(max(h.upper[-1], 0.0))
    top = max(-low, high)
    shrink = [2.0 ** (-k / CLIP_STEPS) for k in range(CLIP_STEPS * CLIP_BINADES + 1)]
    reach = FINE_STEPS // CLIP_STEPS // 2
    fine = [2.0 ** (k / FINE_STEPS) for k in range(-reach, reach + 1)]

    @cache
    def cost(span: Range) -> float:
        return score(h, *codes.params(span), codes)

    def least(spans: list[Range]) -> Range:
        return min(spans, key=cost)

    best = least([(max(low, -top * f), min(high, top * f)) for f in shrink])
    for _ in range(SEARCH_ROUNDS):
        best = least([best, *((best[0], high * f) for f in shrink)])
        best = least([best, *((low * f, best[1]) for f in shrink)])
    for _ in range(SEARCH_ROUNDS):
        best = least([best, *((best[0], min(high, best[1] * f)) for f in fine)])
        best = least([best, *((max(low, best[0] * f), best[1]) for f in fine)])
    return best


def mean_squared_error(h: Histogram, scale: float, zero_point: int, codes: Codes) -> float:
    """Mean of `(x - dequantize(quantize(x)))^2`, values spread evenly over each cell.

    In units of the scale the integral of the squared error from 0 to t is `k / 12 + r^3 / 3`,
    where k is t's centred code and r = t - k.
    """
    ends = np.stack((h.lower, h.upper)) / scale
    k = np.clip(np.rint(ends), codes.qmin - zero_point, codes.qmax - zero_point)
    (a, b), r = k, ends - k
    width = ends[1] - ends[0]
    squares = r * r
    within = (squares[0] + r[0] * r[1] + squares[1]) / 3
    across = (b - a) / 12 + (squares[1] * r[1] - squares[0] * r[0]) / 3
    error = np.where(a == b, within, across / np.where(a == b, 1.0, width))
    return float((error * h.counts).sum() / h.counts.sum()) * scale * scale


def divergence(h: Histogram, scale: float, zero_point: int, codes: Codes) -> float:
    """Kullback-Leibler divergence of what codes keep from what was there (Migacz 2017).

    Each code's interval is cut into PARTS bins. The reference holds the values, clipped ones in
    the outermost bins; the approximation holds each code's unclipped values spread evenly over
    those of its bins that are not empty, and at least one value's share.
    """
    count = codes.qmax - codes.qmin + 1
    edges = np.linspace(codes.qmin - zero_point - 0.5, codes.qmax - zero_point + 0.5,
                        count * PARTS + 1) * scale  # fmt: skip
    total = float(h.counts.sum())
    below = h.below(edges)
    inside = np.diff(below)
    reference = inside.copy()
    reference[0] += below[0]
    reference[-1] += total - below[-1]
    kept = float(inside.sum())
    if kept <= 0.0:
        return float("inf")
    by_code = inside.reshape(count, PARTS)
    used = by_code > 0
    spread = by_code.sum(1, keepdims=True) / np.maximum(used.sum(1, keepdims=True), 1) * used
    p = reference / total
    q = np.maximum(spread.reshape(-1) / kept, 1.0 / total)
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def _without_zeros(stats: Stats) -> Histogram:
    """The histogram without exact zeros, which every scale keeps, and fine only where it matters.

    Magnitudes below NEGLIGIBLE of the largest become one cell on either side of zero.
    """
    h = stats.histogram()
    nonzero = (stats.cells != 0) & (stats.cells != -1)
    limit = max(-stats.low, stats.high) * NEGLIGIBLE
    lower, upper, counts = h.lower[nonzero], h.upper[nonzero], h.counts[nonzero]
    left, right = lower < -limit, upper > limit
    small = [(-limit, 0.0, (~left) & (upper <= 0)), (0.0, limit, (~right) & (lower >= 0))]
    cells = [(a, b, int(counts[part].sum())) for a, b, part in small]
    middle = np.array([c for c in cells if c[2]]).reshape(-1, 3)
    return Histogram(
        np.concatenate((lower[left], middle[:, 0], lower[right])),
        np.concatenate((upper[left], middle[:, 1], upper[right])),
        np.concatenate((counts[left], middle[:, 2].astype(np.int64), counts[right])),
    )
