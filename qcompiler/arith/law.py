"""The integer law of design section 5: quantize, requantize, add, multiply, each written once.

`r = scale * (q - zero_point)`. Scales and multipliers come from params.py. Zero points, scales and
multipliers may be Python numbers (they become constants) or values of the algebra (operands).
"""

from __future__ import annotations

from typing import TypeVar

from .algebra import Algebra, RowAlgebra

V = TypeVar("V")

ABSMAX_MIN = 2.0**-100
"""Rows with a smaller absmax get codes 0 and scale 0, so that 127 / absmax stays finite."""

RESIDUAL_BITS = 8
"""Fraction bits a convolution result keeps when a residual is added to it (design, section 5)."""


def clamp(n: Algebra[V], x: V, lo: V | float, hi: V | float) -> V:
    """`where(v > lo, v, lo)`, then `where(v < hi, v, hi)`: NaN becomes lo, unlike torch.clamp."""
    low, high = value(n, lo), value(n, hi)
    v = n.where(n.gt(x, low), x, low)
    return n.where(n.lt(v, high), v, high)


def quantize(
    n: Algebra[V], x: V, inv: V | float, zero_point: V | int, qmin: int, qmax: int, dtype: str
) -> V:
    """`int(clamp(rint(x * inv), qmin - zp, qmax - zp)) + zp`; inv is `inverse(scale)`.

    float32 in, codes of `dtype` out. A product with the rounded inverse, never a division: the two
    differ at ties. NaN gives qmin.
    """
    lo, hi = _bounds(n, zero_point, qmin, qmax)
    code = n.cast(clamp(n, n.rint(n.mul(x, value(n, inv))), lo, hi), "int32")
    return n.cast(_uncentred(n, code, zero_point), dtype)


def dequantize(n: Algebra[V], q: V, scale: V | float, zero_point: V | int) -> V:
    """`float32(q - zp) * scale`, the product rounded once."""
    return n.mul(n.cast(centred(n, q, zero_point), "float32"), value(n, scale))


def requantize(
    n: Algebra[V], acc: V, m: V | float, zero_point: V | int, qmin: int, qmax: int, dtype: str
) -> V:
    """`int(rint(clamp(float32(acc) * m, qmin - zp, qmax - zp))) + zp`; acc int32, m `multiplier`.

    There is no float add, so nothing can be contracted. Within one code of the exact product:
    float32(acc) and the product are each rounded once.
    """
    lo, hi = _bounds(n, zero_point, qmin, qmax)
    scaled = n.mul(n.cast(acc, "float32"), value(n, m))
    code = n.cast(n.rint(clamp(n, scaled, lo, hi)), "int32")
    return n.cast(_uncentred(n, code, zero_point), dtype)


def requantize_select(
    n: Algebra[V],
    acc: V,
    m_positive: V | float,
    m_negative: V | float,
    zero_point: V | int,
    qmin: int,
    qmax: int,
    dtype: str,
) -> V:
    """requantize with `m = where(acc >= 0, m_positive, m_negative)`: PReLU and leaky ReLU."""
    zero = n.const(0, "int32")
    m = n.where(n.ge(acc, zero), value(n, m_positive), value(n, m_negative))
    return requantize(n, acc, m, zero_point, qmin, qmax, dtype)


def residual_value(
    n: Algebra[V], acc: V, m_residual: V | float, zero_point: V | int, qmin: int, qmax: int
) -> V:
    """`int(rint(clamp(float32(acc) * (m * 2^8), (qmin - zp) * 2^8, (qmax - zp) * 2^8)))`, int32.

    The convolution's result with 8 fraction bits, as it enters a residual add: zero point 0, scale
    `s / 2^8` (`residual_params`). `m_residual` is `residual_multiplier(m)`; s, zp, qmin and qmax
    are the convolution's own output parameters.
    """
    factor = 1 << RESIDUAL_BITS
    lo, hi = _bounds(n, zero_point, qmin, qmax, factor)
    scaled = n.mul(n.cast(acc, "float32"), value(n, m_residual))
    return n.cast(n.rint(clamp(n, scaled, lo, hi)), "int32")


def int_add(n: Algebra[V], qa: V, qb: V, za: V | int, zb: V | int, ma: V | int, mb: V | int) -> V:
    """`(qa - za) * Ma + (qb - zb) * Mb` in int32, within it by the proof of `add_multipliers`.

    Requantize the result with `2^-F`.
    """
    a = n.mul(centred(n, qa, za), value(n, ma, "int32"))
    b = n.mul(centred(n, qb, zb), value(n, mb, "int32"))
    return n.add(a, b)


def int_mul(n: Algebra[V], qa: V, qb: V, za: V | int, zb: V | int) -> V:
    """`(qa - za) * (qb - zb)` in int32; requantize with `multiplier(sa, sb, sy)`."""
    return n.mul(centred(n, qa, za), centred(n, qb, zb))


def rescale(n: Algebra[V], acc: V, sx: V | float, sw: V | float) -> V:
    """`float32(acc) * (sx * sw)`, in this order: the float32 result of dynamic quantization."""
    return n.mul(n.cast(acc, "float32"), n.mul(value(n, sx), value(n, sw)))


def dynamic_quantize(n: RowAlgebra[V], x: V, qmax: int = 127) -> tuple[V, V]:
    """Symmetric codes per row (last axis): (int8 codes in [-qmax, qmax], float32 row scale).

    `sx = absmax * float32(1 / qmax)`, `inv = qmax / absmax` (one IEEE division), qmax in 1..127.
    A row whose absmax is below 2^-100 gets codes 0 and sx 0. NaN is left out of absmax and gets
    code -qmax.
    """
    absmax = n.keep(n.row_max(n.abs(x)))
    tiny = n.lt(absmax, n.const(ABSMAX_MIN))
    zero, top = n.const(0.0), n.const(float(qmax))
    inv = n.where(tiny, zero, n.div(top, n.where(tiny, n.const(1.0), absmax)))
    sx = n.where(tiny, zero, n.mul(absmax, n.const(1.0 / qmax)))
    return quantize(n, x, inv, 0, -qmax, qmax, "int8"), sx


def value(n: Algebra[V], v: V | float, dtype: str = "float32") -> V:
    """A Python number as a constant; anything else is already a value."""
    return n.const(v, dtype) if isinstance(v, (int, float)) else v


def centred(n: Algebra[V], q: V, zero_point: V | int) -> V:
    """`q - zp` in int32."""
    wide = n.cast(q, "int32")
    if isinstance(zero_point, int) and zero_point == 0:
        return wide
    return n.sub(wide, value(n, zero_point, "int32"))


def _uncentred(n: Algebra[V], code: V, zero_point: V | int) -> V:
    if isinstance(zero_point, int) and zero_point == 0:
        return code
    return n.add(code, value(n, zero_point, "int32"))


def _bounds(
    n: Algebra[V], zero_point: V | int, qmin: int, qmax: int, factor: int = 1
) -> tuple[V, V]:
    """`(qmin - zp) * factor` and `(qmax - zp) * factor` in float32, exact for codes of 16 bits."""
    if isinstance(zero_point, int):
        low, high = (qmin - zero_point) * factor, (qmax - zero_point) * factor
        return n.const(float(low)), n.const(float(high))
    scale = n.const(factor, "int32")
    low_v = n.mul(n.sub(n.const(qmin, "int32"), zero_point), scale)
    high_v = n.mul(n.sub(n.const(qmax, "int32"), zero_point), scale)
    return n.cast(low_v, "float32"), n.cast(high_v, "float32")
