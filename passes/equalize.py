"""Equalize: the channels between two layers get weights of one size on either side."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.ops import Conv2d, Linear
from qcompiler.pipeline import Pass, declare

from .channel_sites import Site, Weights, balanced, by_channel, largest_columns, sites

SWEEPS = 20
"""Over all sites, each of which changes its neighbours; the paper goes on until nothing moves."""

SETTLED = 1e-3
"""Relative change of all factors below which nothing moves."""


@declare("equalize", Level.FLOAT, exact=True, required=True)
@dataclass(frozen=True)
class Equalize(Pass):
    """layer2(relu(layer1(x; W1, b1)); W2) => layer2(relu(layer1(x; W1 / s, b1 / s)); W2 s), where
    `s = sqrt(r1 / r2)` of the largest magnitudes of a channel in W1 and in W2 (Nagel et al. 2019,
    eq. 11). Needs no data; norms make no such pairs here, their factors are one a channel anyway.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        pairs: list[Site] = []
        for found in sites(graph):
            if isinstance(found, tuple):
                ctx.emit("missed", equalized, found[0], found[1].reason)
            elif isinstance(found.maker.op, Conv2d | Linear):
                pairs.append(found)
                ctx.emit("applied", equalized, found.maker, found.maker)
        weights = Weights()
        for _ in range(SWEEPS):
            moved = [equalized(site, weights) for site in pairs]
            if max(moved, default=0.0) < SETTLED:
                break
        return weights.put(graph) if pairs else graph


def equalized(site: Site, weights: Weights) -> float:
    """layer2(relu(layer1(x; W1, b1)); W2) => layer2(relu(layer1(x; W1 / s, b1 / s)); W2 s).

    Gives the largest relative change of a channel.
    """
    made = weights.of(site.maker)[0].flatten(1).abs().amax(1)
    read = by_channel(
        site, [largest_columns(r.layer, weights.of(r.layer)[0]) for r in site.readers]
    )
    factors = balanced(made, read).sqrt()
    weights.scale(site, factors)
    return float((factors - 1).abs().max())


equalize = Equalize()
