"""Elementwise float32 functions on our own polynomials: the same bits wherever they are compiled.

Coefficients: weighted minimax fits (Lawson iteration, 50 digits), rounded to float32 from the
lowest degree upwards with the rest refitted after each rounding. Products are never contracted, so
the stated errors hold everywhere; tests/test_arith_functions.py measures them. One ulp is the
spacing of float32 at the true value; `eps` is 2^-24. The sign of a zero result is not promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from .algebra import Algebra
from .law import value

V = TypeVar("V")

LN2_HI = 355 / 512
"""Leading 9 bits of ln 2: its product with an exponent is exact."""
LN2_LO = math.log(2.0) - LN2_HI
EXP_MIN, EXP_MAX = -104.0, 89.0
"""exp is 0 below the first (ln 2^-150 = -103.97) and inf above the second (ln 2^128 = 88.72)."""
EXPM1_MIN = -18.0
"""exp(x) - 1 rounds to -1 below this (ln 2^-25 = -17.3)."""
ERF_MAX, TANH_MAX = 4.0, 9.3
"""Arguments stop here: true value and rational function both round to 1, so gelu(-1e30) is 0."""
TRIG_MAX = 2.0**18
"""Largest argument of sin and cos: quadrant numbers have 18 bits, products with `HALF_PI` 24."""
HALF_PI = (
    1.5625,
    0.008056640625,
    0.00023651123046875,
    3.159046173095703e-06,
    1.5832483768463135e-08,
    6.07710062827671e-11,
)
"""pi/2 in five parts of 6 bits and a float32 rest (Cody and Waite 1980)."""

EXP = (
    0.4999999403953552,
    0.1666652113199234,
    0.04166827350854874,
    0.008368685841560364,
    0.0013820137828588486,
)
"""(exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2; relative error of exp 3.2e-9."""
LOG = (0.6666666269302368, 0.4000096917152405, 0.284991592168808, 0.24269115924835205)
"""(2 atanh(s)/s - 2) / z, z = s^2 <= 0.0296; relative error of log 2.5e-11."""
LOG1P = (
    0.6666666865348816,
    0.39999768137931824,
    0.28579962253570557,
    0.2209559679031372,
    0.1881708800792694,
    0.16746780276298523,
)
"""The same for z <= 1/9, that is log(1 + f) for f in [0, 1]; relative error 2.7e-11."""
ERF_P = (
    1.1283791065216064,
    0.19057002663612366,
    0.05276578292250633,
    0.003771435469388962,
    0.00028480219771154225,
    2.045992459898116e-06,
)
ERF_Q = (
    1.0,
    0.5022210478782654,
    0.11417257785797119,
    0.01498097088187933,
    0.0011635576374828815,
    3.804525840678252e-05,
)
"""erf(x) = x P(x^2) / Q(x^2), fitted for |x| <= 3.925; relative error 1.9e-8 before rounding."""
TANH_P = (
    1.0,
    0.1337975114583969,
    0.003494070842862129,
    2.0583931473083794e-05,
    1.3319432667913134e-08,
)
TANH_Q = (
    1.0,
    0.4671306610107422,
    0.025871220976114273,
    0.00032831457792781293,
    7.762222367091454e-07,
)
"""tanh(x) = x P(x^2) / Q(x^2), fitted for |x| <= 9.02; relative error 2.1e-8 before rounding."""
SIN = (-0.1666666716337204, 0.008333380334079266, -0.0001985349808819592, 2.8372476208460284e-06)
"""(sin(r)/r - 1) / r^2 for |r| <= pi/4; relative error 1.6e-10."""
COS = (0.04166664555668831, -0.00138873013202101, 2.4430666599073447e-05)
"""(cos(r) - 1 + r^2/2) / r^4 for |r| <= pi/4; absolute error 1.1e-10."""


def exp(n: Algebra[V], x: V) -> V:
    """e^x, at most 1.5 ulp; subnormal results included; exp(-inf) = 0, exp(inf) = inf, NaN passes.

    x = k ln 2 + r, e^x = 2^k (1 + r + r^2 P(r)); 2^k in two factors, so that overflow and gradual
    underflow round once. What would underflow to 0, as masked scores of attention do, is 0 before:
    an x86 core takes 100 cycles and more for a product that underflows.
    """
    v = limit(n, x, EXP_MIN, EXP_MAX)
    k, r = _exp_parts(n, v)
    p = n.add(_expm1_poly(n, r), n.const(1.0))
    p = n.where(n.le(v, n.const(EXP_MIN)), n.const(0.0), p)
    i = n.cast(n.max(k, n.const(-151.0)), "int32")
    half = n.shift_right(i, 1)
    return n.mul(n.mul(p, n.exp2i(half)), n.exp2i(n.sub(i, half)))


def log(n: Algebra[V], x: V) -> V:
    """Natural logarithm, at most 1 ulp; log(0) = -inf, NaN below 0, log(inf) = inf; subnormals too.

    x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f),
    log(1 + f) = f - s (f - z P(z)), z = s^2.
    """
    inf = n.const(math.inf)
    valid = n.logical_and(n.gt(x, n.const(0.0)), n.lt(x, inf))
    v = n.where(valid, x, n.const(1.0))
    small = n.lt(v, n.const(1.0))
    v = n.mul(v, n.where(small, n.const(2.0**64), n.const(2.0**-64)))
    above = n.sub(n.float_bits(v), n.const(0x3F3504F3, "int32"))
    e = n.shift_right(above, 23)
    f = n.sub(n.mul(v, n.exp2i(n.sub(n.const(0, "int32"), e))), n.const(1.0))
    k = n.add(n.cast(e, "float32"), n.where(small, n.const(-64.0), n.const(64.0)))
    low = n.add(_log1p_poly(n, f, LOG), n.mul(k, n.const(LN2_LO)))
    y = n.add(n.mul(k, n.const(LN2_HI)), low)
    special = n.where(n.eq(x, n.const(0.0)), n.const(-math.inf), n.const(math.nan))
    return n.where(valid, y, n.where(n.eq(x, inf), inf, special))


def power(n: Algebra[V], x: V, y: V) -> V:
    """x^y as exp(y log|x|), relative error at most 2e-5; special values as C's pow.

    Below 0 an odd whole y keeps x's sign, an even one drops it, any other gives NaN.
    """
    zero, one, inf = n.const(0.0), n.const(1.0), n.const(math.inf)
    size = n.abs(x)
    endless = n.logical_and(n.eq(size, one), n.eq(n.abs(y), inf))
    unity = n.logical_or(n.logical_or(n.eq(y, zero), n.eq(x, one)), endless)
    r = exp(n, n.where(unity, zero, n.mul(y, log(n, size))))
    half = n.mul(y, n.const(0.5))
    whole = n.eq(n.rint(y), y)
    odd = n.logical_and(whole, n.logical_not(n.eq(n.rint(half), half)))
    negative = n.lt(n.float_bits(x), n.const(0, "int32"))
    r = n.where(n.logical_and(negative, odd), n.neg(r), r)
    below = n.logical_and(n.lt(x, zero), n.gt(x, n.const(-math.inf)))
    return n.where(n.logical_or(whole, n.logical_not(below)), r, n.const(math.nan))


def erf(n: Algebra[V], x: V) -> V:
    """The error function, at most 7 ulp, exactly +-1 beyond +-4; NaN passes."""
    return _rational(n, limit(n, x, -ERF_MAX, ERF_MAX), ERF_P, ERF_Q)


def tanh(n: Algebra[V], x: V) -> V:
    """Hyperbolic tangent, at most 7 ulp, exactly +-1 beyond +-9.3; NaN passes."""
    return _rational(n, limit(n, x, -TANH_MAX, TANH_MAX), TANH_P, TANH_Q)


def sigmoid(n: Algebra[V], x: V) -> V:
    """1 / (1 + exp(-x)), at most 3 ulp above x = -87.3; below it 0 (absolute error 2^-126)."""
    one = n.const(1.0)
    return n.div(one, n.add(one, exp(n, n.neg(x))))


def silu(n: Algebra[V], x: V) -> V:
    """x sigmoid(x), at most 4 ulp above x = -87.3; silu(-inf) is NaN, as in torch."""
    return n.mul(x, sigmoid(n, x))


def gelu(n: Algebra[V], x: V) -> V:
    """x/2 (1 + erf(x / sqrt(2))), absolute error at most 5 eps max(|x|, 1); 0 far below."""
    return _half_gated(n, x, erf(n, n.mul(x, n.const(math.sqrt(0.5)))))


def gelu_tanh(n: Algebra[V], x: V) -> V:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), absolute error at most 5 eps max(|x|, 1)."""
    cube = n.mul(n.mul(x, x), n.mul(x, n.const(0.044715)))
    return _half_gated(n, x, tanh(n, n.mul(n.add(x, cube), n.const(math.sqrt(2.0 / math.pi)))))


def hardsigmoid(n: Algebra[V], x: V) -> V:
    """min(max(x + 3, 0), 6) / 6, by the rounded 1/6, error at most 1.5 eps; NaN passes."""
    return n.mul(limit(n, n.add(x, n.const(3.0)), 0.0, 6.0), n.const(1.0 / 6.0))


def hardswish(n: Algebra[V], x: V) -> V:
    """x hardsigmoid(x): exactly x from 3 upwards; hardswish(-inf) is NaN, as in torch."""
    return n.mul(x, hardsigmoid(n, x))


def softplus(n: Algebra[V], x: V, beta: float = 1.0) -> V:
    """log(1 + exp(beta x)) / beta as max(x, 0) + log1p(exp(-|x|)), at most 3 ulp; NaN passes."""
    v = x if beta == 1.0 else n.mul(x, n.const(beta))
    zero = n.const(0.0)
    # A where, not abs: its derivative at 0 is the function's own.
    folded = n.where(n.gt(v, zero), n.neg(v), v)
    y = n.add(n.max(v, zero), _log1p_poly(n, exp(n, folded), LOG1P))
    return y if beta == 1.0 else n.div(y, n.const(beta))


def elu(n: Algebra[V], x: V, alpha: float = 1.0) -> V:
    """x above 0, else alpha (exp(x) - 1), at most 2 ulp; elu(-inf) = -alpha, NaN passes."""
    zero = n.const(0.0)
    k, r = _exp_parts(n, limit(n, x, EXPM1_MIN, 0.0))
    power = n.exp2i(n.cast(n.max(k, n.const(-126.0)), "int32"))
    below = n.add(n.mul(_expm1_poly(n, r), power), n.sub(power, n.const(1.0)))
    return n.where(n.gt(x, zero), x, below if alpha == 1.0 else n.mul(below, n.const(alpha)))


def sin(n: Algebra[V], x: V) -> V:
    """Sine for |x| <= 2^18 radians, absolute error at most 1.2e-7; beyond, inf and NaN: NaN."""
    return _trig(n, x, 0)


def cos(n: Algebra[V], x: V) -> V:
    """Cosine for |x| <= 2^18 radians, absolute error at most 1.2e-7; beyond, inf and NaN: NaN."""
    return _trig(n, x, 1)


def limit(n: Algebra[V], x: V, lo: V | float, hi: V | float) -> V:
    """`where(x < lo, lo, x)`, then `where(v > hi, hi, v)`: a clamp that lets NaN through."""
    low, high = value(n, lo), value(n, hi)
    v = n.where(n.lt(x, low), low, x)
    return n.where(n.gt(v, high), high, v)


def horner(n: Algebra[V], coefficients: Sequence[float], x: V) -> V:
    """c[0] + x (c[1] + x (c[2] + ...)), one rounded product and one rounded sum a step."""
    y = n.const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y = n.add(n.mul(y, x), n.const(c))
    return y


def _exp_parts(n: Algebra[V], x: V) -> tuple[V, V]:
    """(k, r) with x = k ln 2 + r, k integral and |r| <= ln(2)/2; NaN gives NaN twice."""
    k = n.rint(n.mul(x, n.const(1.0 / math.log(2.0))))
    r = n.sub(n.sub(x, n.mul(k, n.const(LN2_HI))), n.mul(k, n.const(LN2_LO)))
    return k, r


def _expm1_poly(n: Algebra[V], r: V) -> V:
    return n.add(n.mul(n.mul(r, r), horner(n, EXP, r)), r)


def _log1p_poly(n: Algebra[V], f: V, coefficients: Sequence[float]) -> V:
    """f - s (f - z P(z)), s = f / (2 + f), z = s^2: no cancellation, so f keeps its bits."""
    s = n.div(f, n.add(f, n.const(2.0)))
    z = n.mul(s, s)
    return n.sub(f, n.mul(s, n.sub(f, n.mul(z, horner(n, coefficients, z)))))


def _rational(n: Algebra[V], x: V, p: Sequence[float], q: Sequence[float]) -> V:
    t = n.mul(x, x)
    return limit(n, n.div(n.mul(x, horner(n, p, t)), horner(n, q, t)), -1.0, 1.0)


def _half_gated(n: Algebra[V], x: V, gate: V) -> V:
    return n.mul(n.mul(x, n.const(0.5)), n.add(gate, n.const(1.0)))


def _trig(n: Algebra[V], x: V, quarter_turns: int) -> V:
    """sin(x + quarter_turns pi/2): x = i pi/2 + r, the first five products of HALF_PI exact."""
    inside = n.le(n.abs(x), n.const(TRIG_MAX))
    v = n.where(inside, x, n.const(0.0))
    k = n.rint(n.mul(v, n.const(2.0 / math.pi)))
    r = v
    for part in HALF_PI:
        r = n.sub(r, n.mul(k, n.const(part)))
    z = n.mul(r, r)
    sine = n.add(r, n.mul(n.mul(r, z), horner(n, SIN, z)))
    flat = n.sub(n.const(1.0), n.mul(z, n.const(0.5)))
    cosine = n.add(flat, n.mul(n.mul(z, z), horner(n, COS, z)))
    i = n.add(n.cast(k, "int32"), n.const(quarter_turns, "int32"))
    half = n.shift_right(i, 1)
    odd = n.eq(n.sub(i, n.add(half, half)), n.const(1, "int32"))
    pair = n.shift_right(half, 1)
    lower = n.eq(n.sub(half, n.add(pair, pair)), n.const(1, "int32"))
    y = n.where(odd, cosine, sine)
    return n.where(inside, n.where(lower, n.neg(y), y), n.const(math.nan))
