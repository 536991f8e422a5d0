"""Group scales: one float scale a channel and a small integer factor a group (VS-Quant, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from .params import ArithError, weight_scales
from .proofs import partial_sum_bounds

FACTOR_MAX = 127  # an int8 factor: products of factor and group sum stay in int32


def group_scales(w: Tensor, group: int, qmax: int = 127) -> tuple[Tensor, Tensor]:
    """(scale float32 [C], factors int32 [C, K / group]) of w [C, K]: `s_g = s_c * i_g`.

    `s_c` is the largest group's scale over 127 (rounded up), `i_g = ceil(absmax_g / (qmax s_c))` in
    1..127, so no weight is clipped. Source: Dai et al., VS-Quant, MLSys 2021. Raises ArithError
    when group does not divide K.
    """
    rows, size = w.shape
    if group < 1 or size % group:
        raise ArithError(f"group {group}: expected a divisor of the {size} weights of a channel")
    peaks = w.detach().to(torch.float64).reshape(rows, -1, group).abs().amax(2) / qmax
    scale = weight_scales(w * (1 / FACTOR_MAX), 0, qmax=qmax)
    exact = scale.to(torch.float64).reshape(-1, 1)
    above = torch.where(exact.squeeze(1) * FACTOR_MAX < peaks.amax(1), 1, 0).bool()
    scale = torch.where(above, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    factors = torch.ceil(peaks / scale.to(torch.float64).reshape(-1, 1))
    return scale, factors.clamp(1, FACTOR_MAX).to(torch.int32)


def quantize_groups(w: Tensor, scale: Tensor, factors: Tensor, qmax: int = 127) -> Tensor:
    """int8 codes [C, K]: `rint(w / (s_c i_g))`, half to even, in [-qmax, qmax]."""
    rows = w.shape[0]
    steps = scale.to(torch.float64).reshape(rows, 1) * factors.to(torch.float64)
    grouped = w.detach().to(torch.float64).reshape(rows, factors.shape[1], -1)
    codes = torch.round(grouped / steps.unsqueeze(2)).clamp(-qmax, qmax)
    return codes.to(torch.int8).reshape(w.shape)


def grouped_sum(a: Tensor, codes: Tensor, factors: Tensor) -> Tensor:
    """`sum_g i_g * sum_{k in g} a[k] * w[k]`, int32 [M, C]: exact, no float is added on the way.

    a int [M, K] with the zero point subtracted, codes int8 [C, K], factors int32 [C, G].
    """
    groups = factors.shape[1]
    x = a.to(torch.float64).reshape(a.shape[0], groups, -1)
    w = codes.to(torch.float64).reshape(codes.shape[0], groups, -1)
    partial = torch.einsum("mgk,cgk->mcg", x, w)
    return (partial * factors.to(torch.float64)).sum(2).to(torch.int32)


def grouped_bounds(codes: Tensor, factors: Tensor, a_lo: int, a_hi: int) -> tuple[Tensor, Tensor]:
    """(lo [C], hi [C]), int64, of every partial sum of `grouped_sum` for a in [a_lo, a_hi]."""
    rows, groups = factors.shape
    split = codes.reshape(rows * groups, -1)
    low, high = partial_sum_bounds(split, a_lo, a_hi, split.shape[1])
    low, high = (b.reshape(rows, groups) * factors.to(torch.int64) for b in (low, high))
    return low.sum(1), high.sum(1)
