"""Weight scales: per output channel, the smallest at which every sum provably fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Node
from qcompiler.ops import Const, Conv2d, Linear
from qcompiler.target import Sums
from qcompiler.types import QParams, Scheme

if TYPE_CHECKING:
    from torch import Tensor

# Of weights that are all zero.
POWER_MIN = 2.0**-120


@dataclass(frozen=True)
class Operand:
    """The activation codes a layer multiplies its weights with.

    scale: None where it is computed at run time; the bias is then added in float. noise: what
    rounding to these codes adds, as a share of the tensor's power. finest: the same where all
    codes of their type are used. varying: the share of the power that is variance; what errors of
    weights do to the mean, `correct-bias` takes back.
    """

    qmin: int
    qmax: int
    zero_point: int
    scale: float | None
    noise: float
    finest: float
    varying: float = 1.0

    @staticmethod
    def of(node: Node, scheme: Scheme) -> Operand:
        if scheme.params is None:
            finest, noise = (row_noise(node, q) for q in (scheme.dtype.limits[1], scheme.qmax))
            return Operand(scheme.qmin, scheme.qmax, 0, None, noise, finest)
        p, stats = scheme.params, node.note.stats
        power = stats.variance + stats.mean**2 if stats is not None and stats.seen else 0.0
        noise = p.scale[0] ** 2 / 12 / power if power > 0 else 0.0
        low, high = scheme.dtype.limits
        finest = noise * ((p.qmax - p.qmin) / (high - low)) ** 2
        varying = stats.variance / power if stats is not None and power > 0 else 1.0
        return Operand(p.qmin, p.qmax, p.zero_point, p.scale[0], noise, finest, varying)


def row_noise(node: Node, qmax: int) -> float:
    """About the noise of rows whose largest value becomes qmax, as a share of the tensor's power.

    The largest of K values of a normal distribution is about `sqrt(2 ln K)` deviations; a channel
    that is an outlier in every row shows in the means. Steps of s add `s^2 / 12`.
    """
    count, stats = node.tensor.shape[-1], node.note.stats
    peak = 2 * math.log(max(count, 2)) if isinstance(count, int) else 1.0
    # Channels of rank 4 are those of axis 1, not of rows.
    if stats is not None and stats.channels is not None and stats.seen and node.tensor.rank != 4:
        power = stats.variance + stats.mean**2
        means = np.nan_to_num(stats.channels.means)
        fits = power > 0 and len(means) == count
        peak = max(peak, float((means**2).max()) / power) if fits else peak
    return peak / qmax**2 / 12


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights, and the codes it reads."""

    node: Node
    x: Operand | None  # None: the activation stays float
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(node: Node, scheme: Scheme | None) -> Layer:
        """node: its weight is Const. scheme: that of its activation."""
        x, (w, *biases) = Operand.of(node.inputs[0], scheme) if scheme else None, node.inputs[1:]
        assert isinstance(w.op, Const)
        static = x is not None and x.scale is not None
        bias = next((b.op.value for b in biases if static and isinstance(b.op, Const)), None)
        return Layer(node, x, w.op.value, bias)

    def rows(self, values: Tensor, rule: arith.SumRule | None) -> Tensor:
        """Weights [O, K] in the order a kernel reads them: row, column, then input channels, these
        padded with zeros to whole groups of the rule: none reaches into the next tap, or into the
        next row where taps are not apart."""
        import torch.nn.functional as F

        op = self.node.op
        if isinstance(op, Conv2d):
            values = values.permute(0, 2, 3, 1)
            taps, channels = values.shape[2:]
            depth = rule.depth if rule else 1
            if arith.rowwise(channels, taps, op.dilation[1], op.groups, depth):
                values = values.flatten(2)
        return F.pad(values, (0, -values.shape[-1] % (rule.block if rule else 1))).flatten(1)

    @property
    def single(self) -> bool:
        """Whether it is computed for one row, which takes as long as its weights take to come from
        memory: exact sums are no slower (4096 -> 11008, AVX2: 1.83 ms, 1.85 of two products)."""
        x = self.node.inputs[0]
        return isinstance(self.node.op, Linear) and all(d == 1 for d in x.tensor.shape[:-1])

    @cached_property
    def base(self) -> Tensor:
        """float32 [O]: the scales that no proof constrains."""
        return arith.weight_scales(self.weight, 0)

    @cached_property
    def rounding(self) -> Tensor:
        """float64 [O]: the error of each channel at those, as a share of the weight's power."""
        w = self.weight.detach().flatten(1)
        error = arith.quantize_weight(w, self.base, 0) * self.base[:, None] - w
        power = w.double().square().sum()
        return error.double().square().sum(1) / power.clamp(min=POWER_MIN)

    def least(self, sums: Sums) -> Tensor:
        """float64 [O]: about the smallest scales at which these sums fit."""
        if sums not in self._least:
            values = self.rows(self.weight, sums.rule)
            self._least[sums] = arith.least_scale(values, sums.low, sums.high, sums.rule)
        return self._least[sums]

    @cached_property
    def _least(self) -> dict[Sums, Tensor]:
        """What was found before."""
        return {}

    def loss(self, least: Tensor, share: float = 1.0) -> float:
        """About how many dB of signal-to-noise ratio scales of at least `least` cost, and codes up
        to that share of the largest, against all codes and scales that no proof constrains."""
        x = self.x
        assert x is not None
        growth = (least / self.base).clamp(min=1).square()
        noise = x.noise / share**2 + x.varying * float((self.rounding * growth).sum())
        finest = x.finest + x.varying * float(self.rounding.sum())
        return 10 * math.log10(noise / finest) if finest > 0 else 0.0


def weight_params(layers: Sequence[Layer], scheme: Scheme, ctx: Context) -> QParams:
    """Parameters of a weight that `layers` read: per channel the largest scale any of them needs.

    Raises ArithError where no scale will do; the reason is for the user to read.
    """
    import torch

    if scheme.group is not None:
        return _group_params(layers, scheme)
    found = [_scales(layer, scheme, ctx) for layer in layers]
    largest = torch.stack([scales for _, scales in found]).amax(0)
    magnitude = max(float(layer.weight.abs().max()) for layer in layers)
    if 0 < magnitude < scheme.qmax * arith.SCALE_MIN:
        raise arith.ArithError(
            f"its weights reach {magnitude:.3g} at most, too little for a scale of 2^-60 or more"
        )
    for layer, (sums, _) in zip(layers, found, strict=True):
        _prove(layer, largest, scheme, sums)
    return QParams(tuple(largest.tolist()), 0, scheme.qmin, scheme.qmax, scheme.axis)


def _group_params(layers: Sequence[Layer], scheme: Scheme) -> QParams:
    """Scales of least squared error per channel and group; integer multiples of one scale a channel
    where the activations are codes, whose int32 sums are then proven."""
    weight, group = layers[0].weight, scheme.group
    assert group is not None
    scales = arith.least_squares_scales(weight, group, scheme.qmax)
    for x in (layer.x for layer in layers):
        if x is not None:
            channel, factors = arith.integer_scales(scales)
            scales = channel.unsqueeze(1) * factors.to(channel.dtype)
            codes = arith.quantize_groups(weight, scales, group, scheme.qmax)
            bounds = arith.grouped_bounds(codes, factors, group, x.qmin, x.qmax)
            _require_int32(*bounds, weight.shape[1])
    flat = tuple(scales.reshape(-1).tolist())
    return QParams(flat, 0, scheme.qmin, scheme.qmax, scheme.axis, group)


def _require_int32(low: Tensor, high: Tensor, products: int) -> None:
    if not arith.fits_int32(low, high):
        worst = max(-int(low.min()), int(high.max()))
        raise arith.ArithError(f"its sums reach {worst} over {products} products, beyond int32")


def _scales(layer: Layer, scheme: Scheme, ctx: Context) -> tuple[Sums | None, Tensor]:
    """(what the layer's sums are proven for, its scales)."""
    x = layer.x
    if x is None:
        return None, arith.weight_scales(layer.weight, 0, qmax=scheme.qmax)
    fast, exact = choices(x.qmin, x.qmax, [layer], ctx)
    if scheme.products is None:
        sums = min(fast, key=products, default=exact)
    else:
        sums = next((s for s in fast if products(s) == scheme.products), exact)
    values = layer.rows(layer.weight, sums.rule)
    proof = arith.proof_scale(values, scheme.qmax, sums.low, sums.high, sums.rule)
    return sums, arith.weight_scales(
        layer.weight, 0, qmax=scheme.qmax, x_scale=x.scale, bias=layer.bias, proof=proof
    )


def choices(low: int, high: int, layers: Sequence[Layer], ctx: Context) -> tuple[list[Sums], Sums]:
    """(sums with a rule that are faster for one of the layers than the exact ones, the exact ones)
    for these codes."""
    here = ctx.target.sums(low, high) if ctx.target is not None else ()
    fast = list(takewhile(lambda sums: sums.rule is not None, here))
    exact = next((sums for sums in here if sums.rule is None), None)
    if exact is not None and all(layer.single for layer in layers):
        return [], exact
    return fast, exact or Sums(None, low, high)


def products(sums: Sums) -> int:
    """How many products are added in 16 bits."""
    return sums.rule.products if sums.rule is not None else 0


def _prove(layer: Layer, scales: Tensor, scheme: Scheme, sums: Sums | None) -> None:
    """Raises ArithError unless every sum with these scales fits where it is kept."""
    x = layer.x
    if x is None or sums is None:
        return
    codes = layer.rows(arith.quantize_weight(layer.weight, scales, 0, scheme.qmax), sums.rule)
    if not bool(arith.fits(codes, sums.low, sums.high, sums.rule).all()):
        raise arith.ArithError(f"its weights do not satisfy {sums.rule}")
    bias = None
    if layer.bias is not None and x.scale is not None:
        bias = arith.quantize_bias(layer.bias, x.scale, scales)
    low, high = arith.int32_bounds(codes, bias, x.zero_point, x.qmin, x.qmax)
    _require_int32(low, high, layer.weight[0].numel())
