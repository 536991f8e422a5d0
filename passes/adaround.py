"""AdaRound: up or down is learned for each weight, against the output error of its layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.pipeline import Pass, declare

from .round_weights import Rounding, rounded

if TYPE_CHECKING:
    from torch import Tensor

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""Ends of the stretched sigmoid, clipped to [0, 1] (Louizos et al. 2018, as in Nagel et al.)."""
SHARP_FIRST, SHARP_LAST = 20.0, 2.0
"""Exponents of the term that pulls toward up or down: weak at first, then strong."""
FREE = 0.2
"""Share of the steps without that term."""
PULL = 1.0
"""Its weight against the output error, in units of what the rounding of each weight alone makes.
Correlated inputs of 384 channels, 4-bit weights, 300 steps: 0.14 of the error of the nearest codes
is left (GPTQ 0.10), 0.42 where the sizes of channels are lognormal (one unit for all: 0.68); 0.3
leaves more, 3 no less."""
RATE = 3e-2
"""Of Adam; three times the paper's, for fewer steps."""


def learned(problem: Rounding, steps: int) -> Tensor:
    """Codes by Nagel et al. (ICML 2020): the quadratic output error of eq. 13, over the second
    moments of the data, with the relaxation and the regulariser of eq. 21 to 24."""
    import torch

    low = problem.real.floor()
    share = ((problem.real - low - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)).clamp(0.01, 0.99)
    v = torch.log(share / (1 - share)).float()
    below = ((low - problem.real) * problem.scales).float()
    scales, moments = problem.scales.float(), problem.moments.float()
    # Of each weight alone: what a rounding error, evenly spread over a step, does at the output.
    alone = problem.moments.diagonal(dim1=1, dim2=2).unsqueeze(1) * problem.scales.square() / 12
    unit = (1 / alone.clamp(min=torch.finfo(torch.float32).tiny)).float()
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(1, steps + 1):
        s = torch.sigmoid(v)
        wide = s * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        h = wide.clamp(0, 1)
        gradient = 2 * unit * ((below + h * scales) @ moments) * scales
        gradient += _pull(h, step / steps)
        gradient *= (wide == h) * s * (1 - s) * (STRETCH_HIGH - STRETCH_LOW)
        first = first.lerp(gradient, 0.1)
        second = second.lerp(gradient.square(), 0.001)
        rate = RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        v -= rate * first / (second.sqrt() + 1e-8)
    up = (torch.sigmoid(v) >= 0.5).double()
    return (low + up).clamp(-problem.qmax, problem.qmax)


def _pull(h: Tensor, progress: float) -> Tensor | float:
    """The gradient of `1 - |2 h - 1|^b`, whose exponent b falls."""
    if progress < FREE:
        return 0.0
    along = (progress - FREE) / (1 - FREE)
    sharp = SHARP_LAST + (SHARP_FIRST - SHARP_LAST) * 0.5 * (1 + math.cos(along * math.pi))
    side = 2 * h - 1
    pulled: Tensor = -PULL * 2 * sharp * side.abs().pow(sharp - 1) * side.sign()
    return pulled


@declare("adaround", Level.QDQ, required=True)
@dataclass(frozen=True)
class AdaRound(Pass):
    """dq(q(W)) => dq(q(W')): each weight of W' lies on the code above or below. Needs data.

    steps: of the descent, a layer; the paper takes 10,000 over samples, here each sees all data at
    once, in its second moments, and 1,000 leave no less error than 300.
    """

    steps: int = 300

    def run(self, graph: Graph, ctx: Context) -> Graph:
        def method(problem: Rounding) -> Tensor:
            return learned(problem, self.steps)

        return rounded(graph, ctx, method, self.name)


adaround = AdaRound()
