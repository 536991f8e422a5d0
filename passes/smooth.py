"""Smooth: outlier channels of activations become smaller, the weights that read them larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.ops import Conv2d
from qcompiler.pipeline import Pass, declare
from qcompiler.rewrite import Miss
from qcompiler.stats import Stats

from .channel_sites import Reader, Site, Weights, balanced, by_channel, largest_columns, sites

if TYPE_CHECKING:
    from torch import Tensor

TWICE = "a layer that reads it was scaled for another value that it is made of"


@declare("smooth", Level.CALIBRATED, Level.FLOAT, exact=True)
@dataclass(frozen=True)
class Smooth(Pass):
    """linear(norm(x; w), W) => linear(norm(x; w / s), W s), where `s = max|x|^strength /
    max|W|^(1 - strength)` of each channel (Xiao et al. 2022, eq. 4); so, too, between two layers.

    What was measured holds no longer: calibrate again. strength: 0.5 in the paper for most models;
    0 leaves the activations, 1 the weights as hard as they are.
    """

    strength: float = 0.5

    def run(self, graph: Graph, ctx: Context) -> Graph:
        weights = Weights()
        for found in sites(graph):
            if isinstance(found, tuple):
                ctx.emit("missed", smoothed, found[0], found[1].reason)
                continue
            again = any(weights.columns_moved(r.layer) for r in found.readers)
            problem = Miss(TWICE) if again else smoothed(found, weights, self.strength)
            if problem is not None:
                ctx.emit("missed", smoothed, found.maker, problem.reason)
            else:
                ctx.emit("applied", smoothed, found.maker, found.maker)
        return weights.put(graph)


def smoothed(site: Site, weights: Weights, strength: float) -> Miss | None:
    """linear(norm(x; w), W) => linear(norm(x; w / s), W s).

    Condition: the extremes of each channel were measured.
    """
    seen = [magnitudes(reader) for reader in site.readers]
    known = [s for s in seen if s is not None]
    if len(known) < len(seen):
        return Miss("the extremes of its channels were not measured")
    read = [largest_columns(r.layer, weights.of(r.layer)[0]) for r in site.readers]
    above, below = by_channel(site, known), by_channel(site, read)
    factors = balanced(above.pow(strength), below.pow(1 - strength))
    # What all channels have in common moves nothing between them.
    weights.scale(site, factors / factors.log().mean().exp())
    return None


def magnitudes(reader: Reader) -> Tensor | None:
    """float64 [C]: the largest magnitude of each input channel of a layer; None: not measured."""
    import torch

    x = reader.layer.inputs[0]
    stats: Stats | None = x.note.stats
    # Statistics of rank 4 are along axis 1, which is not what a linear layer contracts.
    if (x.tensor.rank == 4) != isinstance(reader.layer.op, Conv2d):
        return None
    if stats is None or stats.channels is None or len(stats.channels.low) != len(reader.channels):
        return None
    c = stats.channels
    top = np.where(c.counts > 0, np.maximum(np.abs(c.low), np.abs(c.high)), 0.0)
    return torch.from_numpy(top.astype(np.float64))


smooth = Smooth()
