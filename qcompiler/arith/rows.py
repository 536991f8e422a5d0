"""Row reductions of float islands: softmax and the norms, along the last axis, in a fixed order."""

from __future__ import annotations

from typing import TypeVar

from .algebra import RowAlgebra
from .functions import exp, log

V = TypeVar("V")


def row_mean(n: RowAlgebra[V], x: V) -> V:
    """`row_sum(x) / K`, one IEEE division a row."""
    return n.div(n.row_sum(x), n.row_size(x))


def row_variance(n: RowAlgebra[V], x: V) -> V:
    """Biased variance in two passes, `mean((x - mean)^2)`: no cancellation of large sums."""
    d = n.keep(n.sub(x, row_mean(n, x)))
    return row_mean(n, n.mul(d, d))


def softmax(n: RowAlgebra[V], x: V) -> V:
    """`e * (1 / sum(e))`, `e = exp(x - max)`.

    -inf gives 0 (masks); a row of only -inf, or with inf or NaN in it, is NaN, as in torch.
    """
    e = n.keep(exp(n, n.sub(x, n.row_max(x))))
    return n.mul(e, n.div(n.const(1.0), n.row_sum(e)))


def log_softmax(n: RowAlgebra[V], x: V) -> V:
    """`z - log(sum(exp(z)))`, `z = x - max`; -inf stays -inf."""
    z = n.keep(n.sub(x, n.row_max(x)))
    return n.sub(z, log(n, n.row_sum(exp(n, z))))


def layer_norm(
    n: RowAlgebra[V], x: V, w: V | None = None, b: V | None = None, eps: float = 1e-5
) -> V:
    """`d * (1 / sqrt(mean(d^2) + eps)) * w + b`, `d = x - mean(x)` (Ba et al. 2016), two passes."""
    d = n.keep(n.sub(x, row_mean(n, x)))
    y = _normalised(n, d, eps)
    y = y if w is None else n.mul(y, w)
    return y if b is None else n.add(y, b)


def rms_norm(n: RowAlgebra[V], x: V, w: V | None = None, eps: float = 1e-6) -> V:
    """`x * (1 / sqrt(mean(x^2) + eps)) * w` (Zhang and Sennrich 2019)."""
    y = _normalised(n, x, eps)
    return y if w is None else n.mul(y, w)


def _normalised(n: RowAlgebra[V], d: V, eps: float) -> V:
    power = n.add(row_mean(n, n.mul(d, d)), n.const(eps))
    return n.mul(d, n.div(n.const(1.0), n.sqrt(power)))
