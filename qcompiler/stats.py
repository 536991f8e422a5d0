"""Statistics of one tensor over many samples: a monoid whose merge is exact.

Values are counted by the top 16 bits of their float32 pattern (sign, exponent and the first bits
of the mantissa), so counts of any two runs add up cell by cell: no range has to be known before.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.channel_stats import Channels

if TYPE_CHECKING:
    import torch

    Cells = np.ndarray[Any, np.dtype[Any]]

MANTISSA_BITS = 7
"""Bits of the mantissa that are counted: a cell is at most 2^-7 of its values wide."""

LOW_BITS = 23 - MANTISSA_BITS
CELLS = 1 << (32 - LOW_BITS)

UNBOUNDED = 2.0**100
"""Magnitudes from here on count as infinite: far above any code's value (scales end at 2^60), and
below what stands in for -inf in masks (float32's lowest, -3.4e38, and sums with it)."""

BLOCK = 4096
"""Squares summed in float32 before float64 takes over."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges, in value order: cell k holds values in [lower, upper].

    The outermost edges are the smallest and largest value. int64 counts, float64 edges.
    """

    lower: Cells
    upper: Cells
    counts: Cells

    def below(self, at: Cells) -> Cells:
        """How many values lie below each point, spread evenly over their cells; float64."""
        ends = np.cumsum(self.counts)
        points = np.stack((self.lower, self.upper), 1).reshape(-1)
        values = np.stack((ends - self.counts, ends), 1).reshape(-1).astype(np.float64)
        return np.interp(at, points, values)


def _no_cells() -> Cells:
    return np.zeros(0, np.int32)


def _no_counts() -> Cells:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Stats:
    """Counts, extremes and moments of the finite values seen; `merge` adds two of them.

    masked, infinite, nan: values left out of everything else (-inf, inf, NaN; see UNBOUNDED).
    low, high: extremes; inf and -inf when nothing was seen. total, squares: exact sums of what
    float64 sums of each call to `of` gave. cells: used cells in value order, int32; counts: int64.
    channels: the same per channel; None where the number of channels varied.
    """

    count: int = 0
    masked: int = 0
    infinite: int = 0
    nan: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)
    cells: Cells = field(default_factory=_no_cells)
    counts: Cells = field(default_factory=_no_counts)
    channels: Channels | None = None

    @staticmethod
    def of(value: torch.Tensor, channel_axis: int | None = None) -> Stats:
        """Statistics of a float32 tensor.

        channel_axis: the axis of channels (None: axis 1 of rank 4, else the last one).
        """
        import torch

        x = value.detach()
        if x.dtype is not torch.float32:
            raise TypeError(f"Stats.of: expected float32, got {x.dtype}")
        if x.numel() == 0:
            return EMPTY
        channels = Channels.of(x, channel_axis)
        largest = np.maximum(np.abs(channels.low), np.abs(channels.high)).max()
        if largest < UNBOUNDED:  # NaN fails it, too
            return _of_finite(x, channels)
        keep = x.abs() < UNBOUNDED
        channels = Channels.of(x, channel_axis, keep)
        nan = int(x.isnan().sum())
        masked = int((x <= -UNBOUNDED).sum())
        rest = _of_finite(x[keep], channels) if bool(keep.any()) else EMPTY
        infinite = x.numel() - rest.count - nan - masked
        return replace(rest, masked=masked, infinite=infinite, nan=nan, channels=channels)

    def merge(self, other: Stats) -> Stats:
        """The statistics of both. Associative and commutative, bit for bit; EMPTY is neutral."""
        if self.seen == 0 or other.seen == 0:
            return other if self.seen == 0 else self
        cells, counts = _merged(self, other)
        return Stats(
            self.count + other.count,
            self.masked + other.masked,
            self.infinite + other.infinite,
            self.nan + other.nan,
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
            cells,
            counts,
            _joined(self.channels, other.channels),
        )

    @property
    def seen(self) -> int:
        """All values, those left out included."""
        return self.count + self.masked + self.infinite + self.nan

    @property
    def mean(self) -> float:
        return float(self.total / self.count) if self.count else math.nan

    @property
    def variance(self) -> float:
        """Of the population; never negative."""
        if not self.count:
            return math.nan
        return max(float(self.squares / self.count - (self.total / self.count) ** 2), 0.0)

    def histogram(self) -> Histogram:
        """Counts in value order, the outer edges drawn in to the extremes."""
        lower, upper = _edge(self.cells), _edge(self.cells + 1)
        return Histogram(np.maximum(lower, self.low), np.minimum(upper, self.high), self.counts)

    def quantile(self, share: float) -> tuple[float, float]:
        """Edges between which the value lies that `share` of all values do not exceed.

        share in [0, 1]; the value is the ceil(share * count)-th smallest, at least the first.
        Raises ValueError when nothing was seen.
        """
        if not self.count:
            raise ValueError("quantile: expected statistics of at least one finite value")
        rank = min(max(math.ceil(share * self.count), 1), self.count)
        k = int(np.searchsorted(np.cumsum(self.counts), rank))
        cells = self.histogram()
        return float(cells.lower[k]), float(cells.upper[k])

    @cached_property
    def digest(self) -> str:
        """Hash of everything; equal digests mean equal statistics."""
        h = hashlib.sha256(json.dumps(self._head()).encode())
        h.update(self.cells.tobytes() + self.counts.tobytes())
        h.update(b"" if self.channels is None else self.channels.tobytes())
        return h.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Stats({self.count} in [{self.low:g}, {self.high:g}], mean {self.mean:g})"

    def _head(self) -> list[str]:
        first = 0 if self.channels is None else self.channels.first
        numbers = (self.count, self.masked, self.infinite, self.nan, self.total, self.squares)
        return [*map(str, numbers), self.low.hex(), self.high.hex(), str(first)]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """As tensors, for a .safetensors file; `from_tensors` gives an equal value back."""
        import torch

        head = bytearray(json.dumps(self._head()).encode())
        table = {
            "head": torch.frombuffer(head, dtype=torch.uint8),
            "cells": torch.from_numpy(np.stack((self.cells.astype(np.int64), self.counts))),
        }
        c = self.channels
        if c is not None:
            table["channels"] = torch.from_numpy(np.stack((c.low, c.high)))
            table["sums"] = torch.from_numpy(np.column_stack((c.counts, c.sums)))
        return table

    @staticmethod
    def from_tensors(table: dict[str, torch.Tensor]) -> Stats:
        head = json.loads(bytes(table["head"].tolist()))
        cells, counts = table["cells"].numpy()
        channels = None
        if "channels" in table:
            (low, high), sums = table["channels"].numpy().copy(), table["sums"].numpy().copy()
            channels = Channels(low, high, sums[:, 0], int(head[8]), sums[:, 1:])
        count, masked, infinite, nan = map(int, head[:4])
        return Stats(
            count,
            masked,
            infinite,
            nan,
            low=float.fromhex(head[6]),
            high=float.fromhex(head[7]),
            total=Fraction(head[4]),
            squares=Fraction(head[5]),
            cells=cells.astype(np.int32),
            counts=counts.copy(),
            channels=channels,
        )


EMPTY = Stats()


def _of_finite(x: torch.Tensor, channels: Channels) -> Stats:
    cells, counts = _count(x)
    return Stats(
        x.numel(),
        low=float(channels.low.min()),
        high=float(channels.high.max()),
        total=Fraction(float(channels.totals.sum())),
        squares=Fraction(_squares(x)),
        cells=cells,
        counts=counts,
        channels=channels,
    )


def _count(x: torch.Tensor) -> tuple[Cells, Cells]:
    """Used cells in value order and their counts: cell k >= 0 starts at the float32 of pattern
    k << 16; cell k < 0 mirrors cell -1 - k."""
    import torch

    top = x.contiguous().view(torch.int32).reshape(-1) >> LOW_BITS
    top += CELLS // 2
    table = torch.bincount(top).numpy()
    used = np.flatnonzero(table != 0)  # of bool it is 5 times as fast
    split = int(np.searchsorted(used, CELLS // 2))
    negative, positive = used[:split][::-1], used[split:]
    cells = np.concatenate((-1 - negative, positive - CELLS // 2)).astype(np.int32)
    return cells, np.concatenate((table[negative], table[positive]))


def _edge(cells: Cells) -> Cells:
    """The lower edge of each cell, float64."""
    magnitude = (np.abs(cells).astype(np.int32) << LOW_BITS).view(np.float32)
    return np.where(cells < 0, -1.0, 1.0) * magnitude.astype(np.float64)


def _squares(x: torch.Tensor) -> float:
    """The sum of squares: float64, of float32 sums over blocks.

    Squares of magnitudes near 2^64 overflow float32; then all are summed in float64.
    """
    import torch

    flat = x.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    norms = torch.linalg.vector_norm(flat[:whole].reshape(-1, BLOCK), dim=-1).double()
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64)
    total = float(norms.square().sum() + rest.square())
    if math.isfinite(total):
        return total
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64).square())


def _merged(a: Stats, b: Stats) -> tuple[Cells, Cells]:
    cells = np.concatenate((a.cells, b.cells))
    if not len(cells):
        return a.cells, a.counts
    order = np.argsort(cells, kind="stable")  # a merge of two sorted runs
    cells = cells[order]
    first = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
    return cells[first], np.add.reduceat(np.concatenate((a.counts, b.counts))[order], first)


def _joined(a: Channels | None, b: Channels | None) -> Channels | None:
    return None if a is None or b is None else a.merge(b)
