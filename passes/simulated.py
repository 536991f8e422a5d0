"""Simulated: what is chosen for units, as the passes that follow would make it, run on a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Node, Note
from qcompiler.interpret import run
from qcompiler.types import QParams, Scheme

from .choose_ranges import Known, weight_notes
from .correct_bias import correct_bias
from .insert_qdq import insert_qdq
from .integer_plan import noted, plan_of
from .prices import unrounded
from .units import Option, Unit, codes_of, joined
from .weight_scales import products

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Simulation:
    """A graph, PLANNED, that computes in float, a sample for it and its outputs.

    Codes are what they will be, but for ranges of fewer codes, which are taken for those of all;
    what is computed with them is float32. Unlike gradients this sees errors that saturate, that
    cancel, and that amplify others.
    """

    graph: Graph
    ctx: Context
    sample: Sequence[Tensor]
    exact: Sequence[Tensor]
    known: Known = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, ctx: Context) -> Simulation | None:
        """None where there is no sample."""
        import torch

        if ctx.sample is None:
            return None
        with torch.no_grad():
            exact = run(graph, ctx.sample)[: len(graph.outputs)]
        return Simulation(graph, ctx, ctx.sample, exact)

    def noise(
        self, units: Sequence[Unit], options: Sequence[Option], activations: bool = True
    ) -> float:  # fmt: skip
        """Noise power at the outputs, as a share of their signal power. activations: whether these
        are codes, too, or weights alone."""
        import torch

        graph = in_codes(self.graph, units, options, self.ctx, activations, self.known)
        with torch.no_grad():
            noisy = run(graph, self.sample)
        return sum(map(_share, self.exact, noisy))


def in_codes(
    graph: Graph, units: Sequence[Unit], options: Sequence[Option], ctx: Context,
    activations: bool = True, known: Known | None = None,
) -> Graph:  # fmt: skip
    """The graph, PLANNED, at QDQ, with these options for its units."""
    floats = {
        layer.node: "" for unit, option in zip(units, options, strict=True) if option.floats
        for layer in unit.layers
    }  # fmt: skip
    quiet = replace(ctx, listen=())
    planned, new = noted(graph, plan_of(graph, quiet, floats))
    pairs: list[tuple[Node, Note]] = []
    for unit, option in zip(units, options, strict=True):
        scheme = _ranged(unit.scheme, option.share) if activations else None
        held = [node for node in map(new.__getitem__, unit.members) if node.note.scheme is not None]
        pairs += [(node, replace(node.note, scheme=scheme)) for node in held]
        for layer, sums in zip(unit.layers, option.sums, strict=True):
            weight = new[layer.node].inputs[1]
            if sums is not None and weight.note.scheme is not None:
                proven = replace(weight.note.scheme, products=products(sums))
                pairs.append((weight, replace(weight.note, scheme=proven)))
    ready = planned.noted(joined(pairs))
    ready = ready.noted(weight_notes(ready, {}, quiet, known))
    finer = {node: replace(node.note, scheme=None) for node in unrounded(ready)}
    return correct_bias.run(insert_qdq.run(ready.noted(finer), quiet), quiet)


def _ranged(scheme: Scheme, share: float) -> Scheme:
    """The scheme with that share of its codes, for the same range."""
    if share == 1 or scheme.params is None:
        return scheme if share == 1 else codes_of(scheme, share)
    fewer, p = codes_of(scheme, share), scheme.params
    coarser = (p.qmax - p.qmin) / (fewer.qmax - fewer.qmin)
    scale, zero = arith.float32(p.scale[0] * coarser), round(p.zero_point / coarser)
    return replace(fewer, params=QParams((scale,), zero, fewer.qmin, fewer.qmax))


def _share(exact: Tensor, noisy: Tensor) -> float:
    signal = float(exact.double().square().sum()) if exact.is_floating_point() else 0.0
    error = exact.double() - noisy.double()
    return float(error.square().sum()) / signal if signal > 0 else 0.0
