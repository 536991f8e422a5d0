"""Scales, zero points and multipliers: computed in float64, rounded once to float32.

Scalars are Python floats that float32 represents exactly; per-channel values are float32 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from .law import RESIDUAL_BITS

SCALE_MIN = 2.0**-60
SCALE_MAX = 2.0**60
"""Scales lie between these, so that products of two and quotients of three stay finite."""

BIAS_LIMIT = 2.0**24
"""Largest bias code a weight scale leaves: float32 still counts by ones there."""

ADD_BITS = 20
"""Most fraction bits of an addition's multipliers (design, section 5)."""

ADD_BITS_MIN = -126
"""Fewest: 2^-F must stay a finite float32."""

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


class ArithError(ValueError):
    """A number the law cannot take; says which, what was expected and what was got."""


@dataclass(frozen=True)
class Affine:
    """How a tensor's codes read: `r = scale * (q - zero_point)`, q in [qmin, qmax] of `dtype`."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int
    dtype: str


def float32(x: float) -> float:
    """The float32 nearest to x, as a Python float; inf where it overflows."""
    return float(torch.tensor(x, dtype=torch.float64).to(torch.float32))


def inverse(scale: float) -> float:
    """`float32(1 / scale)`: what quantize multiplies by."""
    if not (math.isfinite(scale) and scale > 0):
        raise ArithError(f"scale: expected a finite positive number, got {scale!r}")
    return float32(1.0 / scale)


@overload
def multiplier(sx: float, sw: float, sy: float, what: str = ...) -> float: ...
@overload
def multiplier(sx: float, sw: Tensor | Sequence[float], sy: float, what: str = ...) -> Tensor: ...
def multiplier(
    sx: float, sw: float | Tensor | Sequence[float], sy: float, what: str = "multiplier"
) -> float | Tensor:
    """`float32(float64(sx) * sw / sy)`, a float for one sw, a float32 tensor for several.

    Convolution and linear: (x, weight, y); multiplication: (a, b, y); concat and plain requantize:
    (x, 1, y); average pool of n elements: (x, 1, n * sy). ArithError where a multiplier is zero or
    not finite in float32; `what` names it there.
    """
    weights = torch.as_tensor(sw, dtype=torch.float64)
    m = (sx * weights / sy).to(torch.float32)
    bad = ~(torch.isfinite(m) & (m > 0))
    if bool(bad.any()):
        channel = int(bad.reshape(-1).nonzero()[0])
        raise ArithError(
            f"{what}, channel {channel}: {sx!r} * {float(weights.reshape(-1)[channel])!r} / {sy!r} "
            f"is {float(m.reshape(-1)[channel])!r} in float32; expected a finite positive number: "
            f"scales this far apart cannot be joined by one multiplication"
        )
    return float(m) if isinstance(sw, (int, float)) else m


@overload
def residual_multiplier(m: float) -> float: ...
@overload
def residual_multiplier(m: Tensor) -> Tensor: ...
def residual_multiplier(m: float | Tensor) -> float | Tensor:
    """`m * 2^8`, exact: the multiplier of `residual_value`."""
    factor = float(1 << RESIDUAL_BITS)
    scaled = m * factor
    if not bool(torch.isfinite(torch.as_tensor(scaled, dtype=torch.float32)).all()):
        raise ArithError(f"residual multiplier {m!r} * 2^8 overflows float32")
    return scaled


def choose_params(lo: float, hi: float, qmin: int, qmax: int, symmetric: bool) -> tuple[float, int]:
    """(scale, zero point) for real values in [lo, hi], widened to include 0, which is exact.

    Asymmetric: `scale = (hi - lo) / (qmax - qmin)`, `zp = qmin - rint(lo / scale)`. Symmetric: zp
    is the middle code (0 for signed, 128 for uint8), the scale the smallest that covers the range.
    The scale is rounded to float32 and clamped into [2^-60, 2^60].
    """
    if not (math.isfinite(lo) and math.isfinite(hi)) or lo > hi:
        raise ArithError(f"range [{lo!r}, {hi!r}]: expected finite bounds, the lower one first")
    if qmin >= qmax:
        raise ArithError(f"codes [{qmin}, {qmax}]: expected at least two")
    low, high = min(lo, 0.0), max(hi, 0.0)
    middle = (qmin + qmax + 1) // 2
    if symmetric:
        return _clamped(max(high / (qmax - middle), -low / (middle - qmin))), middle
    scale = _clamped(high / (qmax - qmin) - low / (qmax - qmin))
    return scale, min(max(qmin - round(low / scale), qmin), qmax)


def weight_scales(
    w: Tensor,
    axis: int,
    *,
    qmax: int = 127,
    x_scale: float | None = None,
    bias: Tensor | None = None,
    proof: Tensor | None = None,
) -> Tensor:
    """Scale per slice of w along `axis`: `max(absmax / qmax, proof, |b| / (sx 2^24), 2^-60)`.

    w float of any shape -> float32 [w.shape[axis]]. With x_scale and bias, bias codes stay within
    2^24, dead channels and large folded biases included; `proof` is `proof_scale`'s answer.
    """
    magnitude = _rows(w, axis).abs().amax(1)
    if not bool(torch.isfinite(magnitude).all()):
        channel = int((~torch.isfinite(magnitude)).nonzero()[0])
        raise ArithError(f"weights, channel {channel}: expected finite numbers, got inf or NaN")
    scale = magnitude / qmax
    if bias is not None:
        if x_scale is None:
            raise ArithError("weight_scales: a bias needs x_scale, the scale of the activations")
        limit = bias.detach().to(torch.float64).abs() / (x_scale * BIAS_LIMIT)
        scale = torch.maximum(scale, limit)
    if proof is not None:
        scale = torch.maximum(scale, proof.to(torch.float64))
    if bool((scale > SCALE_MAX).any()) or bool(torch.isnan(scale).any()):
        channel = int((~(scale <= SCALE_MAX)).nonzero()[0])
        raise ArithError(
            f"weight scale, channel {channel}: expected at most 2^60, got {float(scale[channel])!r}"
        )
    return scale.clamp(min=SCALE_MIN).to(torch.float32)


def quantize_weight(w: Tensor, scales: Tensor, axis: int, qmax: int = 127) -> Tensor:
    """The quantize law with zero point 0: `int8(clamp(rint(w * float32(1 / s)), -qmax, qmax))`.

    w float of any shape, scales float32 [w.shape[axis]]; half to even. For one weight the code's
    magnitude never grows with the scale, which is what `proof_scale` rests on.
    """
    shape = [1] * w.dim()
    shape[axis] = -1
    inv = (1.0 / scales.to(torch.float64)).to(torch.float32).reshape(shape)
    codes = torch.round(w.detach().to(torch.float32) * inv)
    return codes.clamp(-qmax, qmax).to(torch.int8)


def quantize_bias(b: Tensor, sx: float, sw: Tensor | float) -> Tensor:
    """`int32(rint(b / (sx * sw[c])))` in float64; ArithError where it leaves int32."""
    scale = sx * torch.as_tensor(sw, dtype=torch.float64)
    codes = torch.round(b.detach().to(torch.float64) / scale)
    bad = ~((codes >= INT32_MIN) & (codes <= INT32_MAX))
    if bool(bad.any()):
        channel = int(bad.reshape(-1).nonzero()[0])
        raise ArithError(
            f"bias, channel {channel}: {float(b.reshape(-1)[channel])!r} has code "
            f"{float(codes.reshape(-1)[channel])!r}, outside int32: pass the bias to weight_scales"
        )
    return codes.to(torch.int32)


def residual_params(
    scale: float, zero_point: int, qmin: int, qmax: int
) -> tuple[float, tuple[int, int]]:
    """(scale, range) of a `residual_value` in `add_multipliers`; its zero point there is 0.

    The arguments are the convolution's own output parameters.
    """
    factor = 1 << RESIDUAL_BITS
    return scale / factor, ((qmin - zero_point) * factor, (qmax - zero_point) * factor)


def add_multipliers(
    scale_a: float,
    range_a: tuple[int, int],
    scale_b: float,
    range_b: tuple[int, int],
    scale_y: float,
) -> tuple[int, int, int]:
    """(Ma, Mb, F): `M = round(s / sy * 2^F)`, F the largest <= 20 for which int32 is proven.

    range_a and range_b hold `qa - za` and `qb - zb`. Each product, and the sum, is within int32.
    The sum is requantized with `2^-F`; its error is at most (|qa - za| + |qb - zb|) 2^-(F+1) codes.
    """
    for bits in range(ADD_BITS, ADD_BITS_MIN - 1, -1):
        ma = round(math.ldexp(scale_a / scale_y, bits))
        mb = round(math.ldexp(scale_b / scale_y, bits))
        lo = min(ma * range_a[0], 0) + min(mb * range_b[0], 0)
        hi = max(ma * range_a[1], 0) + max(mb * range_b[1], 0)
        if lo >= INT32_MIN and hi <= INT32_MAX and max(ma, mb) <= INT32_MAX:
            return ma, mb, bits
    raise ArithError(
        f"addition: scales {scale_a!r} and {scale_b!r} over {scale_y!r} fit no int32 multiplier; "
        f"expected scales in [2^-60, 2^60] and code ranges of 16 bits"
    )


def _rows(w: Tensor, axis: int) -> Tensor:
    rows = (
        w.detach().to(torch.float64).movedim(axis, 0).flatten(1)
        if w.dim() > 1
        else (w.detach().to(torch.float64).reshape(-1, 1))
    )
    return rows if rows.shape[1] else rows.new_zeros((rows.shape[0], 1))


def _clamped(scale: float) -> float:
    return min(max(float32(scale), SCALE_MIN), SCALE_MAX)
