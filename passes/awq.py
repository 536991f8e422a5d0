"""AWQ: channels that matter most get larger weights, of which rounding takes a smaller share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.moments import Moments
from qcompiler.ops import Conv2d
from qcompiler.pipeline import Pass, declare
from qcompiler.recipe import Recipe

from .channel_sites import Reader, Site, Weights, balanced, by_channel, columns, sites
from .layer_moments import layer_moments
from .round_weights import shrunk

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 20
"""Exponents tried from 0 to 1, as in Lin et al. (MLSys 2024)."""

WIDE = 127
"""The largest code of 8 bits."""
NARROW = 7
"""Of 4 bits."""


@declare("awq", Level.CALIBRATED, Level.FLOAT, exact=True)
@dataclass(frozen=True)
class Awq(Pass):
    """linear(norm(x; w), W) => linear(norm(x; w / s), W s), where `s = |x|^a` and a is what makes
    the layers' output error over the data least once their weights are rounded (Lin et al. 2023);
    so, too, between two layers. |x| is the root mean square of a channel here. Needs data.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        found: list[Site] = []
        for site in sites(graph):
            if isinstance(site, tuple):
                ctx.emit("missed", scaled_by_magnitude, site[0], site[1].reason)
            elif all(not isinstance(r.layer.op, Conv2d) for r in site.readers):
                found.append(site)
        layers = list(dict.fromkeys(r.layer for site in found for r in site.readers))
        moments = layer_moments(graph, ctx, layers) if layers else {}
        weights = Weights()
        for k, site in enumerate(found):
            again = any(weights.columns_moved(r.layer) for r in site.readers)
            if not again and all(r.layer in moments for r in site.readers):
                scaled_by_magnitude(
                    site, weights, [moments[r.layer] for r in site.readers], ctx.recipe
                )
                ctx.emit("applied", scaled_by_magnitude, site.maker, site.maker)
            ctx.progress("awq", k + 1, len(found))
        return weights.put(graph)


def scaled_by_magnitude(
    site: Site, weights: Weights, moments: list[Moments], recipe: Recipe
) -> None:  # fmt: skip
    """linear(norm(x; w), W) => linear(norm(x; w / s), W s)."""
    size = by_channel(site, [m.second[0].diagonal().sqrt() for m in moments])

    def factors(exponent: float) -> Tensor:
        s = balanced(size.pow(exponent), size.pow(0))
        return s / (s.max() * s.min()).sqrt()

    def loss(exponent: float) -> float:
        s = factors(exponent)
        return sum(
            _error(r, weights.of(r.layer)[0], m, s[r.channels], recipe)
            for r, m in zip(site.readers, moments, strict=True)
        )

    best = min((k / STEPS for k in range(STEPS + 1)), key=loss)
    weights.scale(site, factors(best))


def _error(
    reader: Reader, weight: Tensor, moments: Moments, factors: Tensor, recipe: Recipe
) -> float:  # fmt: skip
    """The mean squared error of the layer's outputs with its weight, so scaled, in codes."""
    wide = columns(reader.layer, weight, factors)
    scaled = (weight * wide).float()
    if recipe.group:
        scales = arith.least_squares_scales(scaled, recipe.group, NARROW)
        codes = arith.quantize_groups(scaled, scales, recipe.group, NARROW)
        spread = arith.spread(scales, recipe.group, scaled.shape[1])
    else:
        scales = arith.weight_scales(scaled, 0, qmax=WIDE)
        codes, spread = arith.quantize_weight(scaled, scales, 0, WIDE), scales.unsqueeze(1)
    error = codes.double() * spread.double() / wide - weight
    second = shrunk(moments.second, moments.count)[0]
    return float((error @ second * error).sum())


awq = Awq()
