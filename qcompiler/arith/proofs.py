"""Accumulator proofs: what an instruction adds in 16 bits, and whole sums in 32, provably fits.

A proof is a constraint on the weight scale (design, section 6): codes shrink as the scale grows, so
for each channel there is a smallest scale at which every group fits. The instruction's rule is the
input; with no rule the constraint is empty.

Bounds are over every subset of a group's products, in any order: an instruction may stop anywhere,
and a padded activation is 0. So an activation range is widened to include 0 where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .params import INT32_MAX, INT32_MIN, ArithError, quantize_weight, weight_scales

BRACKET_MARGIN = 2.0**-20
"""Relative room around a bracket of scales for the float32 rounding of inverse and product."""


@dataclass(frozen=True)
class SumRule:
    """Which products along the packed reduction axis are added in [lo, hi], and how many.

    They are `runs` runs of neighbours, each `stride` behind the one before (0: one after the
    other). AVX2 `vpmaddubsw` adds 2 neighbours; where g of them, 4 apart, are added in int16 before
    `vpmaddwd` widens, 2 g products in g runs. ARMv8.0 `smull` and `smlal` add one product each, 2
    apart, before `sadalp` widens. An instruction that accumulates in 32 bits has no rule: None.
    """

    products: int
    lo: int = -(2**15)
    hi: int = 2**15 - 1
    runs: int = 1
    stride: int = 0

    def __post_init__(self) -> None:
        if self.products < 1 or not self.lo <= 0 <= self.hi:
            raise ArithError(f"{self}: expected products >= 1 and lo <= 0 <= hi")
        if self.products % self.runs or self.stride % self.neighbours:
            raise ArithError(f"{self}: expected whole runs, and a stride of whole runs")

    @property
    def neighbours(self) -> int:
        """Products of one run."""
        return self.products // self.runs

    @property
    def depth(self) -> int:
        """Elements of one step along the reduction: of which an accumulator takes the products."""
        return max(self.stride, self.neighbours)

    @property
    def block(self) -> int:
        """Elements along the reduction axis from one set of groups to the next."""
        return self.runs * self.depth

    @property
    def together(self) -> SumRule:
        """The same limits for products that lie side by side."""
        return replace(self, runs=1, stride=0)


def rowwise(channels: int, taps: int, dilation: int, groups: int, depth: int) -> bool:
    """Whether a convolution adds up a kernel row, all its `taps` with all their channels, as other
    ones add up the channels of one tap: where the channels of a tap leave part of a step of `depth`
    idle, and a row lies in memory in one piece."""
    return groups == 1 and dilation == 1 and taps > 1 and channels % depth != 0


def partial_sum_bounds(
    w_codes: Tensor, a_lo: int, a_hi: int, rule: SumRule | int
) -> tuple[Tensor, Tensor]:
    """(min [C], max [C]), int64: the extreme sums of any group that a rule adds.

    w_codes: integer [C, K], in memory order, padding zeros included; activations in [a_lo, a_hi].
    rule: a number means so many neighbours. A last group that is short counts as padded with
    zeros. Exact: codes exist that reach them.
    """
    grouped = SumRule(rule) if isinstance(rule, int) else rule
    lows, highs = _group_bounds(w_codes, a_lo, a_hi, grouped)
    return lows.amin(1), highs.amax(1)


def fits(w_codes: Tensor, a_lo: int, a_hi: int, rule: SumRule | None) -> Tensor:
    """bool [C], the accept test: no group of the channel can leave [rule.lo, rule.hi]."""
    if rule is None:
        return torch.ones(w_codes.shape[0], dtype=torch.bool)
    low, high = partial_sum_bounds(w_codes, a_lo, a_hi, rule)
    return (low >= rule.lo) & (high <= rule.hi)


def proof_scale(w: Tensor, qmax: int, a_lo: int, a_hi: int, rule: SumRule | None) -> Tensor:
    """float32 [C]: the smallest weight scale, at least `absmax / qmax`, at which all groups fit.

    w: float [C, K] in memory order, padding zeros included. Exact to one float32 step: a binary
    search over bit patterns, on the groups that do not fit at absmax / qmax, with codes made by
    `quantize_weight`; the result's own codes pass `fits`, or it is an error. Any larger scale fits
    too, so `weight_scales(proof=...)` may take a maximum.
    """
    base = weight_scales(w, 0, qmax=qmax)
    if rule is None:
        return base
    lows, highs = _group_bounds(quantize_weight(w, base, 0, qmax), a_lo, a_hi, rule)
    channel, group = ((lows < rule.lo) | (highs > rule.hi)).nonzero(as_tuple=True)
    failing = _groups(w.detach().to(torch.float32), rule)[channel, group]
    least, enough = _scale_brackets(failing, (a_lo, a_hi), rule)
    decisive = enough >= torch.zeros_like(base).scatter_reduce(0, channel, least, "amax")[channel]
    channel, failing = channel[decisive], failing[decisive]
    needed = _smallest_scales(failing, base[channel], qmax, (a_lo, a_hi), rule)
    scale = base.scatter_reduce(0, channel, needed, "amax")
    if not bool(fits(quantize_weight(w, scale, 0, qmax), a_lo, a_hi, rule).all()):
        raise ArithError(f"no weight scale up to {float(scale.max())!r} satisfies {rule}")
    return scale


def least_scale(w: Tensor, a_lo: int, a_hi: int, rule: SumRule | None) -> Tensor:
    """float64 [C]: about the smallest scale at which all groups fit, 0 where there is no rule.

    w: float [C, K] in memory order. That of `proof_scale` but for the rounding of codes.
    """
    if rule is None:
        return torch.zeros(w.shape[0], dtype=torch.float64)
    groups, low, high = _groups(w.detach().float(), rule), min(a_lo, 0), max(a_hi, 0)
    positive, negative = groups.clamp(min=0).sum(-1), -groups.clamp(max=0).sum(-1)
    above = (high * positive - low * negative).amax(1) / rule.hi
    below = (high * negative - low * positive).amax(1) / -min(rule.lo, -1)
    return torch.maximum(above, below).double()


def int32_bounds(
    w_codes: Tensor, bias: Tensor | None, zero_point: int, a_lo: int, a_hi: int
) -> tuple[Tensor, Tensor]:
    """(lo [C], hi [C]), int64: bounds of `bias - zp * sum(w) + sum(w * a)` and all partial sums.

    w_codes [C, K], bias codes [C] or None, activation codes in [a_lo, a_hi]. The two constant terms
    may be added first or last, together or apart: every int32 addition on the way is covered.
    """
    lows, highs = _group_bounds(w_codes, a_lo, a_hi, SumRule(max(w_codes.shape[1], 1)))
    low, high = lows[:, 0], highs[:, 0]
    total = w_codes.sum(1, dtype=torch.int64)
    for term in (-zero_point * total, None if bias is None else bias.to(torch.int64)):
        if term is not None:
            low, high = low + term.clamp(max=0), high + term.clamp(min=0)
    return low, high


def toward_zero(
    w_codes: Tensor, real: Tensor, a_lo: int, a_hi: int, rule: SumRule | None
) -> Tensor:  # fmt: skip
    """The codes [C, K], in memory order, with some moved toward zero until every group fits.

    real [C, K]: what they were rounded from, in units of their scales. Of a group that does not fit
    those codes move that add to its sum and lie farthest beyond their real values, one step each.
    """
    if rule is None:
        return w_codes
    codes = w_codes.to(torch.int64)
    groups = _groups(codes, rule)
    values = _groups(real.to(torch.float64), rule)
    low, high = min(a_lo, 0), max(a_hi, 0)
    for up, down, limit in ((high, -low, rule.hi), (-low, high, -rule.lo)):
        pull = torch.where(groups > 0, up, down)
        failing = ((pull * groups.abs()).sum(-1) > limit).nonzero(as_tuple=True)
        groups[failing] = _lowered(groups[failing], values[failing], pull[failing], limit)
    return _ungrouped(groups, codes, rule).to(w_codes.dtype)


def _lowered(groups: Tensor, real: Tensor, pull: Tensor, limit: int) -> Tensor:
    """Rows of codes [N, products] with some moved toward zero, until `sum |q| pull <= limit`."""
    groups = groups.clone()
    left = torch.arange(len(groups))
    while len(left):
        codes = groups[left]
        beyond = torch.where(codes * pull[left] != 0, codes.abs() - real[left].abs(), -torch.inf)
        worst = beyond.argmax(1, keepdim=True)
        groups[left] = codes.scatter_add(1, worst, -codes.gather(1, worst).sign())
        left = left[(groups[left].abs() * pull[left]).sum(1) > limit]
    return groups


def _ungrouped(groups: Tensor, like: Tensor, rule: SumRule) -> Tensor:
    """Back from `_groups` to [C, K]."""
    channels, size = like.shape
    runs = groups.reshape(channels, -1, rule.block // (rule.runs * rule.neighbours), rule.runs,
                          rule.neighbours)  # fmt: skip
    return runs.transpose(2, 3).reshape(channels, -1)[:, :size]


def matmul_bounds(
    k: int, a_range: tuple[int, int], za: int, b_range: tuple[int, int], zb: int
) -> tuple[int, int]:
    """(lo, hi) of `sum (a - za)(b - zb)` over at most k products, corrections in any order.

    `sum(ab) - za sum(b) - zb sum(a) + k za zb`: the ranges are of codes; each term and each partial
    sum of the four is covered.
    """
    a_lo, a_hi = min(a_range[0], 0), max(a_range[1], 0)
    b_lo, b_hi = min(b_range[0], 0), max(b_range[1], 0)
    products = [a * b for a in (a_lo, a_hi) for b in (b_lo, b_hi)]
    terms = (
        (min(products), max(products)),
        _ordered(-za * b_lo, -za * b_hi),
        _ordered(-zb * a_lo, -zb * a_hi),
        _ordered(0, za * zb),
    )
    return k * sum(low for low, _ in terms), k * sum(high for _, high in terms)


def fits_int32(lo: Tensor | int, hi: Tensor | int) -> bool:
    """Whether all bounds lie within int32."""
    low, high = torch.as_tensor(lo), torch.as_tensor(hi)
    return bool((low >= INT32_MIN).all()) and bool((high <= INT32_MAX).all())


def _groups(w: Tensor, rule: SumRule) -> Tensor:
    """[C, K] -> [C, groups, products], padded with zeros; at least one group."""
    channels, size = w.shape
    count = max(-(-size // rule.block), 1)
    padded = torch.nn.functional.pad(w, (0, count * rule.block - size))
    runs = padded.reshape(channels, count, rule.runs, -1, rule.neighbours)
    return runs.transpose(2, 3).reshape(channels, -1, rule.products)


def _group_bounds(w_codes: Tensor, a_lo: int, a_hi: int, rule: SumRule) -> tuple[Tensor, Tensor]:
    """(min, max) of each group, int64 [C, groups]; codes of either sign take opposite ends."""
    groups = _groups(w_codes, rule)
    total = groups.sum(-1, dtype=torch.int64)
    positive = groups.clamp(min=0).sum(-1, dtype=torch.int64)
    negative = total - positive
    low, high = min(a_lo, 0), max(a_hi, 0)
    return low * positive + high * negative, high * positive + low * negative


def _smallest_scales(
    groups: Tensor, failing: Tensor, qmax: int, codes: tuple[int, int], rule: SumRule
) -> Tensor:
    """For each row of groups [N, products] the smallest scale that fits; `failing` ones do not.

    Positive float32 values are ordered as their bit patterns, so the search is over integers.
    """
    least, enough = _scale_brackets(groups, codes, rule)
    low = torch.maximum(failing, least).view(torch.int32)
    high = torch.maximum(failing * (1 + BRACKET_MARGIN), enough).view(torch.int32)
    while bool((high - low > 1).any()):
        middle = low + (high - low) // 2
        scale = middle.view(torch.float32)
        good = fits(quantize_weight(groups, scale, 0, qmax), *codes, rule.together)
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return high.view(torch.float32)


def _scale_brackets(groups: Tensor, codes: tuple[int, int], rule: SumRule) -> tuple[Tensor, Tensor]:
    """Scales that are too small and large enough, float32 [N] each, for groups [N, products].

    A code is within 1/2 of `w / s`, so an extreme sum is within `slack = sum |a| / 2` of `S / s`:
    it cannot fit where `S / s > limit + slack`, and fits where `S / s <= limit - slack`; it also
    fits where all codes are zero, above twice absmax.
    """
    w = groups.to(torch.float64)
    low, high = min(codes[0], 0), max(codes[1], 0)
    zero = torch.zeros(len(w), dtype=torch.float64)
    least, enough = zero, zero
    for positive, negative, limit in ((high, -low, rule.hi), (-low, high, -rule.lo)):
        real = (w.clamp(min=0) * positive - w.clamp(max=0) * negative).sum(1)
        slack = ((w > 0) * positive + (w < 0) * negative).sum(1) / 2
        least = torch.maximum(least, real / (limit + slack))
        enough = torch.maximum(
            enough, torch.where(slack < limit, real / (limit - slack), torch.inf)
        )
    enough = torch.minimum(enough, 3 * w.abs().amax(1))
    margins = (1 - BRACKET_MARGIN, 1 + BRACKET_MARGIN)
    return (least * margins[0]).to(torch.float32), (enough * margins[1]).to(torch.float32)


def _ordered(a: int, b: int) -> tuple[int, int]:
    """The interval from 0 through a and b."""
    return min(a, b, 0), max(a, b, 0)
