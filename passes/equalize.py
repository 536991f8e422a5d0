"""Equalize: the channels between two layers get weights of one size on either side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.ops import Conv2d, Linear
from qcompiler.pipeline import Pass, declare

from .channel_sites import (
    FACTOR_MAX,
    Site,
    Weights,
    balanced,
    by_channel,
    largest_columns,
    sites,
)  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor

SWEEPS = 20
"""Over all sites, each of which changes its neighbours; the paper goes on until nothing moves."""

SETTLED = 1e-3
"""Relative change of all factors below which nothing moves."""


@declare("equalize", Level.FLOAT, exact=True, required=True)
@dataclass(frozen=True)
class Equalize(Pass):
    """layer2(relu(layer1(x; W1, b1)); W2) => layer2(relu(layer1(x; W1 / s, b1 / s)); W2 s), where
    `s = sqrt(r1 / r2)` of the largest magnitudes of a channel in W1 and b1 and in W2 (Nagel et al.
    2019, eq. 11, where biases are absorbed instead). Needs no data; norms make no such pairs here,
    their factors are one a channel anyway.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        import torch

        pairs: list[Site] = []
        for found in sites(graph):
            if isinstance(found, tuple):
                ctx.emit("missed", equalized, found[0], found[1].reason)
            elif isinstance(found.maker.op, Conv2d | Linear):
                pairs.append(found)
                ctx.emit("applied", equalized, found.maker, found.maker)
        weights = Weights()
        so_far = [torch.ones(site.channels, dtype=torch.float64) for site in pairs]
        for _ in range(SWEEPS):
            new = [equalized(site, weights, f) for site, f in zip(pairs, so_far, strict=True)]
            moved = [float((a / b - 1).abs().max()) for a, b in zip(new, so_far, strict=True)]
            so_far = new
            if max(moved, default=0.0) < SETTLED:
                break
        return weights.put(graph) if pairs else graph


def equalized(site: Site, weights: Weights, so_far: Tensor) -> Tensor:
    """layer2(relu(layer1(x; W1, b1)); W2) => layer2(relu(layer1(x; W1 / s, b1 / s)); W2 s).

    so_far: the factors that the site has already, float64 [C]; gives those it has then. What one
    channel adds as a bias counts as its weights do: a constant that is blown up costs all others
    their codes.
    """
    import torch

    weight, *bias = weights.of(site.maker)
    made = weight.flatten(1).abs().amax(1)
    for b in bias:
        made = torch.maximum(made, b.abs())
    read = by_channel(
        site, [largest_columns(r.layer, weights.of(r.layer)[0]) for r in site.readers]
    )
    whole = (so_far * balanced(made, read).sqrt()).clamp(1 / FACTOR_MAX, FACTOR_MAX)
    weights.scale(site, whole / so_far)
    return whole


equalize = Equalize()
