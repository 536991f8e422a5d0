"""Division with a remainder, exact: of float32 numbers by steps in float64, of int64 numbers."""

from __future__ import annotations

import math
from typing import TypeVar

from .algebra import Algebra

V = TypeVar("V")

SPLIT = 2.0**26 + 1
"""Veltkamp's factor: `t - (t - q)`, t = SPLIT q, is q to its leading 27 bits (Dekker 1971)."""
FMOD_STEPS = 11
"""Each takes 26 bits off a quotient of float32 numbers; the longest, 2^128 / 2^-149, has 277."""


def fmod(n: Algebra[V], x: V, y: V) -> V:
    """C's fmod of float32 numbers: x - trunc(x / y) y, exact; NaN for y = 0, x = inf or NaN.

    `r - q y`, q the leading bits of rint(r / y), again and again. q y has 27 + 24 bits, and r never
    more than 53, so nothing is rounded. The last r is at most |y| / 2; x's sign is put back.
    """
    a, b = n.cast(x, "float64"), n.cast(y, "float64")
    zero, inf = n.const(0.0, "float64"), n.const(math.inf, "float64")
    size = n.abs(b)
    r = a
    for _ in range(FMOD_STEPS):
        r = n.sub(r, n.mul(_leading(n, n.rint(n.div(r, b))), b))
    low = n.logical_and(n.lt(r, zero), n.ge(a, zero))
    high = n.logical_and(n.gt(r, zero), n.lt(a, zero))
    r = n.where(low, n.add(r, size), n.where(high, n.sub(r, size), r))
    whole = n.logical_and(n.eq(size, inf), n.lt(n.abs(a), inf))
    return n.cast(n.where(whole, a, r), "float32")


def _leading(n: Algebra[V], q: V) -> V:
    t = n.mul(q, n.const(SPLIT, "float64"))
    return n.sub(t, n.sub(t, q))


def trunc_div(n: Algebra[V], a: V, b: V) -> V:
    """a / b toward zero for int64; a where b is 0. A machine may trap on 0 and on min / -1."""
    one, minus = n.const(1, "int64"), n.const(-1, "int64")
    negated = n.eq(b, minus)
    trap = n.logical_or(negated, n.eq(b, n.const(0, "int64")))
    return n.where(negated, n.neg(a), n.trunc_div(a, n.where(trap, one, b)))
