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
"""Elements summed in float32 before float64 takes over; bounds the rounding of the moments."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges, in value order: cell k holds values in [lower, upper].

    The outermost edges are the smallest and largest value. int64 counts, float64 edges.
    """

    lower: Cells
    upper: Cells
    counts: Cells


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
    channels: float32 [2, C], extremes per channel; None where their number varied or is unknown.
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
    channels: Cells | None = None

    @staticmethod
    def of(value: torch.Tensor, channel_axis: int | None = None) -> Stats:
        """Statistics of a float32 tensor.

        channel_axis: along which extremes are also kept (axis 1 of rank 4, else the last one).
        """
        import torch

        x = value.detach()
        if x.dtype is not torch.float32:
            raise TypeError(f"Stats.of: expected float32, got {x.dtype}")
        if x.numel() == 0:
            return EMPTY
        channels = _extremes(x, channel_axis)
        if bool((channels.abs() < UNBOUNDED).all()):  # NaN fails it, too
            return _of_finite(x, channels)
        keep = x.abs() < UNBOUNDED
        lows = torch.where(keep, x, math.inf)
        highs = torch.where(keep, x, -math.inf)
        channels = torch.stack(
            (_extremes(lows, channel_axis)[0], _extremes(highs, channel_axis)[1])
        )
        nan = int(x.isnan().sum())
        masked = int((x <= -UNBOUNDED).sum())
        rest = _of_finite(x[keep], channels) if bool(keep.any()) else EMPTY
        infinite = x.numel() - rest.count - nan - masked
        return replace(rest, masked=masked, infinite=infinite, nan=nan, channels=channels.numpy())

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
        numbers = (self.count, self.masked, self.infinite, self.nan, self.total, self.squares)
        return [*map(str, numbers), self.low.hex(), self.high.hex()]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """As tensors, for a .safetensors file; `from_tensors` gives an equal value back."""
        import torch

        head = bytearray(json.dumps(self._head()).encode())
        table = {
            "head": torch.frombuffer(head, dtype=torch.uint8),
            "cells": torch.from_numpy(np.stack((self.cells.astype(np.int64), self.counts))),
        }
        if self.channels is not None:
            table["channels"] = torch.from_numpy(self.channels.copy())
        return table

    @staticmethod
    def from_tensors(table: dict[str, torch.Tensor]) -> Stats:
        head = json.loads(bytes(table["head"].tolist()))
        cells, counts = table["cells"].numpy()
        channels = table.get("channels")
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
            channels=None if channels is None else channels.numpy().copy(),
        )


EMPTY = Stats()


def _of_finite(x: torch.Tensor, channels: torch.Tensor) -> Stats:
    cells, counts = _count(x)
    low, high = channels[0].min(), channels[1].max()
    total, squares = _moments(x)
    return Stats(
        x.numel(),
        low=float(low),
        high=float(high),
        total=Fraction(total),
        squares=Fraction(squares),
        cells=cells,
        counts=counts,
        channels=channels.numpy(),
    )


def _extremes(x: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """[2, C] smallest and largest per channel; -0.0 becomes 0.0, or the order would show."""
    import torch

    if x.ndim == 0:
        return torch.stack((x, x)).reshape(2, 1) + 0.0
    axis = (1 if x.ndim == 4 else x.ndim - 1) if channel_axis is None else channel_axis
    rest = [k for k in range(x.ndim) if k != axis % x.ndim]
    if not rest:
        return torch.stack((x, x)) + 0.0
    return torch.stack((x.amin(rest), x.amax(rest))) + 0.0


def _count(x: torch.Tensor) -> tuple[Cells, Cells]:
    """Used cells in value order and their counts: cell k >= 0 starts at the float32 of pattern
    k << 16; cell k < 0 mirrors cell -1 - k."""
    import torch

    top = x.contiguous().view(torch.int32).reshape(-1) >> LOW_BITS
    top += CELLS // 2
    table = torch.bincount(top).numpy()
    used = np.flatnonzero(table)
    split = int(np.searchsorted(used, CELLS // 2))
    negative, positive = used[:split][::-1], used[split:]
    cells = np.concatenate((-1 - negative, positive - CELLS // 2)).astype(np.int32)
    return cells, np.concatenate((table[negative], table[positive]))


def _edge(cells: Cells) -> Cells:
    """The lower edge of each cell, float64."""
    magnitude = (np.abs(cells).astype(np.int32) << LOW_BITS).view(np.float32)
    return np.where(cells < 0, -1.0, 1.0) * magnitude.astype(np.float64)


def _moments(x: torch.Tensor) -> tuple[float, float]:
    """Sum and sum of squares in float64, of float32 sums over blocks.

    Squares of magnitudes near 2^64 overflow a float32 block; those are summed in float64 instead.
    """
    import torch

    flat = x.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    total, squares = 0.0, 0.0
    for part in (flat[:whole].reshape(-1, BLOCK), flat[whole:].reshape(1, -1)):
        norms = torch.linalg.vector_norm(part, dim=-1)
        wide = part if bool(norms.isfinite().all()) else part.double()
        total += float(wide.sum(-1).double().sum())
        squares += float(torch.linalg.vector_norm(wide, dim=-1).double().square().sum())
    return total, squares


def _merged(a: Stats, b: Stats) -> tuple[Cells, Cells]:
    cells = np.concatenate((a.cells, b.cells))
    if not len(cells):
        return a.cells, a.counts
    first = int(cells.min())
    table = np.zeros(int(cells.max()) - first + 1, np.int64)
    table[a.cells - first] = a.counts
    table[b.cells - first] += b.counts
    used = np.flatnonzero(table)
    return (used + first).astype(np.int32), table[used]


def _joined(a: Cells | None, b: Cells | None) -> Cells | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    return np.stack((np.minimum(a[0], b[0]), np.maximum(a[1], b[1])))
