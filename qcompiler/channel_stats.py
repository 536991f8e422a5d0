"""Statistics per channel: extremes and exact sums, a monoid like those of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]

WINDOW_BITS = 16
"""Binary places one column of `sums` stands for. A sum given to `of` is 24 bits long, so it adds
less than 2^40 to a column, which holds 2^23 of them."""

SUM_BITS = 24


@dataclass(frozen=True, eq=False, repr=False)
class Channels:
    """low, high: float32 [C], inf and -inf where nothing was counted. counts: int64 [C].

    sums: int64 [C, n] in fixed point, `sum_k sums[:, k] * 2^(16 (first + k))`: integers add up to
    the same bits in any order.
    """

    low: Array
    high: Array
    counts: Array
    first: int
    sums: Array

    @staticmethod
    def of(x: torch.Tensor, axis: int | None, keep: torch.Tensor | None = None) -> Channels:
        """Of a float32 tensor along `axis` (None: axis 1 of rank 4, else the last one).

        keep: bool, which values count. Without it all do, NaN and inf included.
        """
        import torch

        x = x if x.ndim else x.reshape(1)
        axis = (1 if x.ndim == 4 else x.ndim - 1) if axis is None else axis % x.ndim
        rest = [k for k in range(x.ndim) if k != axis]
        full = torch.full((x.shape[axis],), x.numel() // x.shape[axis])
        if keep is None:
            lows = highs = terms = x
        else:
            keep = keep.reshape(x.shape)
            lows, highs = (torch.where(keep, x, end) for end in (torch.inf, -torch.inf))
            terms = torch.where(keep, x, 0.0)
            full = keep.sum(rest) if rest else keep.long()
        low, high = (lows.amin(rest), highs.amax(rest)) if rest else (lows, highs)
        sums = (terms.sum(rest) if rest else terms).double().numpy()
        if not np.isfinite(sums).all():  # too large for float32, or with values not finite
            sums = (terms.double().sum(rest) if rest else terms.double()).numpy()
        # -0.0 becomes 0.0, or the order of values would show
        ends = (low + 0.0).numpy(), (high + 0.0).numpy()
        return Channels(*ends, full.numpy(), *_windows(sums))

    def merge(self, other: Channels) -> Channels | None:
        """Both together; None where their numbers of channels differ."""
        if self.low.shape != other.low.shape:
            return None
        first = min(self.first, other.first)
        last = max(c.first + c.sums.shape[1] for c in (self, other))
        sums = np.zeros((len(self.low), last - first), np.int64)
        for c in (self, other):
            sums[:, c.first - first : c.first - first + c.sums.shape[1]] += c.sums
        return Channels(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.counts + other.counts,
            *_trimmed(first, sums),
        )

    @property
    def totals(self) -> Array:
        """The sum of each channel, float64."""
        total = np.zeros(len(self.low))
        for k in reversed(range(self.sums.shape[1])):
            total += np.ldexp(self.sums[:, k].astype(np.float64), WINDOW_BITS * (self.first + k))
        return total

    @property
    def means(self) -> Array:
        """The mean of each channel, float64; NaN where nothing was counted."""
        counts = np.where(self.counts > 0, self.counts, 1)
        return np.where(self.counts > 0, self.totals / counts, np.nan)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.low, self.high, self.counts, self.sums))

    def tobytes(self) -> bytes:
        head = f"{self.first} {self.sums.shape}".encode()
        arrays = (self.low, self.high, self.counts, self.sums)
        return head + b"".join(a.tobytes() for a in arrays)


def _windows(sums: Array) -> tuple[int, Array]:
    """Sums rounded to 24 bits, each in the column that its lowest bit falls into."""
    finite = np.where(np.isfinite(sums), sums, 0.0)
    mantissa, exponent = np.frexp(finite)
    units = np.rint(np.ldexp(mantissa, SUM_BITS)).astype(np.int64)
    column, shift = np.divmod(exponent - SUM_BITS, WINDOW_BITS)
    used = units != 0
    if not used.any():
        return 0, np.zeros((len(sums), 0), np.int64)
    first = int(column[used].min())
    table = np.zeros((len(sums), int(column[used].max()) - first + 1), np.int64)
    rows = np.flatnonzero(used)
    table[rows, column[rows] - first] = units[rows] << shift[rows].astype(np.int64)
    return first, table


def _trimmed(first: int, sums: Array) -> tuple[int, Array]:
    """Without outer columns that are zero: one sum has one form."""
    used = np.flatnonzero(sums.any(0))
    if not len(used):
        return 0, sums[:, :0]
    return first + int(used[0]), np.ascontiguousarray(sums[:, used[0] : used[-1] + 1])
