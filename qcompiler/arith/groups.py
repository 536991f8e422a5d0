"""Group scales: one scale for every `group` weights of a channel, as float or as integer factors.

A channel of K weights has ceil(K / group) groups; where group does not divide K the last one is
shorter. Scales and factors are [C, groups].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from .params import SCALE_MAX, SCALE_MIN, ArithError
from .proofs import partial_sum_bounds

Array = npt.NDArray[Any]

FACTOR_MAX = 127
"""Integer sub-scales are i_g in 1..127 (Dai et al., VS-Quant, MLSys 2021)."""

EXACT_BITS = 17
"""Significant bits of a channel's scale: its products with factors of 7 bits are float32."""

SHRINK = tuple(1 + k / 32 for k in range(17))
"""How much smaller than absmax / qmax the scales tried are: 1 to 1.5 times. Gaussian weights of 4
bits in groups of 32: 20.84 dB, 20.27 with absmax / 7; steps four times as fine gain 0.001 dB, and
scales that are larger as well 0.03 dB."""

CHUNK = 1 << 16
"""Weights searched at once: 256 KiB of float32, which stay in a second-level cache."""


def group_count(size: int, group: int | None) -> int:
    """Groups of a channel of `size` weights; one where there are none."""
    return 1 if group is None else -(-size // group)


def split(w: Tensor, group: int) -> Tensor:
    """[C, K] -> [C, groups, group], the last group filled up with zeros."""
    return pad(w, (0, -w.shape[1] % group)).reshape(w.shape[0], -1, group)


def spread(values: Tensor, group: int, size: int) -> Tensor:
    """[C, groups] -> [C, size]: for each weight the value of its group."""
    return values.repeat_interleave(group, 1)[:, :size]


def decode(codes: Tensor, scale: Tensor, group: int | None = None) -> Tensor:
    """`float32(q) * scale`, rounded once: codes int [C, K], scale float32 [C] or [C, groups]."""
    wide = scale.reshape(-1, 1) if group is None else spread(scale, group, codes.shape[1])
    return codes.to(torch.float32) * wide


def least_squares_scales(w: Tensor, group: int, qmax: int) -> Tensor:
    """float32 [C, groups]: per group about the scale of least squared error of `s rint(w / s)`.

    w float [C, K]. Of codes at absmax / (qmax f), f in SHRINK, those whose best multiple
    `(sum w q)^2 / sum q^2` is largest, and that multiple `sum w q / sum q^2` as the scale.
    """
    values = w.detach().to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ArithError("weights: expected finite numbers, got inf or NaN")
    groups, rows = split(values, group).numpy(), max(CHUNK // max(values.shape[1], 1), 1)
    parts = [_least_squares(groups[k : k + rows], qmax) for k in range(0, len(groups), rows)]
    return torch.from_numpy(np.concatenate(parts)).clamp(SCALE_MIN, SCALE_MAX)


def _least_squares(w: Array, qmax: int) -> Array:
    """The scale of each group of w [C, groups, group].

    In numpy: torch shares each small step among threads, which costs more than the steps (4096 x
    1024 weights on 2 virtual cores: 2.8 s, 0.1 s here).
    """
    base = np.abs(w).max(-1) / np.float32(qmax)
    inverse = np.divide(1, base, out=np.zeros_like(base), where=base > SCALE_MIN)
    best: Array = np.full_like(base, -1)
    scale: Array = base
    codes = np.empty_like(w)
    for factor in SHRINK:
        np.multiply(w, (inverse * np.float32(factor))[..., None], out=codes)
        np.clip(np.rint(codes, out=codes), -qmax, qmax, out=codes)
        met = np.einsum("cgk,cgk->cg", w, codes)
        fit = met / np.maximum(np.einsum("cgk,cgk->cg", codes, codes), 1)
        better = met * fit > best
        best, scale = np.where(better, met * fit, best), np.where(better, fit, scale)
    return scale


def integer_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """(scale float32 [C], factors int32 [C, groups]): about the scales [C, groups], `s_c * i_g`.

    i_g in 1..127, s_c the largest scale over 127 rounded up to EXACT_BITS, so that `s_c * i_g` is a
    float32.
    """
    top = (scales.to(torch.float64).amax(1) / FACTOR_MAX).clamp(SCALE_MIN, SCALE_MAX)
    mantissa, exponent = torch.frexp(top)
    scale = torch.ldexp(torch.ceil(mantissa * 2**EXACT_BITS), exponent - EXACT_BITS)
    factors = torch.round(scales.to(torch.float64) / scale.unsqueeze(1))
    return scale.to(torch.float32), factors.clamp(1, FACTOR_MAX).to(torch.int32)


def factored(scales: Tensor) -> tuple[Tensor, Tensor]:
    """(scale float32 [C], factors int32 [C, groups]) whose products are exactly `scales`.

    The scale is the greatest common divisor of a channel's. Raises ArithError naming a channel
    whose factors would not all be in 1..127, or whose divisor is no float32.
    """
    mantissa, exponent = torch.frexp(scales.to(torch.float64))
    least = exponent.amin(1, keepdim=True)
    apart = (exponent - least).clamp(max=FACTOR_MAX.bit_length() + EXACT_BITS)
    whole = (mantissa * 2**24).to(torch.int64) << apart.to(torch.int64)
    divisor = whole[:, :1]
    for k in range(1, whole.shape[1]):
        divisor = torch.gcd(divisor, whole[:, k : k + 1])
    factors = whole // divisor
    scale = torch.ldexp(divisor.to(torch.float64), least - 24).to(torch.float32)
    exact = scale.double() * factors.double() == scales.double()
    bad = ~(exact & (factors <= FACTOR_MAX)).all(1)
    if bool(bad.any()):
        raise ArithError(
            f"group scales, channel {int(bad.nonzero()[0])}: expected one scale times integers in "
            f"1..{FACTOR_MAX}, got others"
        )
    return scale.reshape(-1), factors.to(torch.int32)


def quantize_groups(w: Tensor, scales: Tensor, group: int, qmax: int) -> Tensor:
    """int8 codes [C, K] by the quantize law: `clamp(rint(w * float32(1 / s_g)), -qmax, qmax)`."""
    inverse = (1.0 / scales.to(torch.float64)).to(torch.float32)
    scaled = w.detach().to(torch.float32) * spread(inverse, group, w.shape[1])
    return torch.round(scaled).clamp(-qmax, qmax).to(torch.int8)


def grouped_sum(a: Tensor, codes: Tensor, factors: Tensor, group: int) -> Tensor:
    """`sum_g i_g * sum_{k in g} a[k] * w[k]`, int32 [..., C]: no float is added on the way.

    a int [..., K] with the zero point subtracted, codes int8 [C, K], factors int [C, groups].
    Exact: the products are multiplied in float64, where they are integers below 2^53.
    """
    wide = codes.to(torch.float64) * spread(factors.to(torch.float64), group, codes.shape[1])
    return (a.to(torch.float64) @ wide.T).to(torch.int32)


def grouped_bounds(
    codes: Tensor, factors: Tensor, group: int, a_lo: int, a_hi: int
) -> tuple[Tensor, Tensor]:
    """(lo [C], hi [C]), int64, of every partial sum of `grouped_sum` for a in [a_lo, a_hi]."""
    rows, groups = factors.shape
    parts = split(codes, group).reshape(rows * groups, group)
    low, high = partial_sum_bounds(parts, a_lo, a_hi, group)
    low, high = (b.reshape(rows, groups) * factors.to(torch.int64) for b in (low, high))
    return low.sum(1), high.sum(1)
