"""Choose ranges: scale and zero point of every tensor that is to be held as codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node, Note
from qcompiler.op import Fixed
from qcompiler.ops import Const, Conv2d, Linear, Matmul
from qcompiler.pipeline import Pass, declare
from qcompiler.recipe import Recipe
from qcompiler.stats import EMPTY
from qcompiler.types import DType, QParams, Scheme, Sym

from .intervals import Range, hull, intervals, width, within
from .range_methods import Codes, choose_range
from .share_scales import deciders, shared_scales
from .weight_scales import Layer, weight_params

DEAD: Range = (-1.0, 1.0)
"""The range of a tensor that was zero throughout: its codes are right for any scale, and later
values of ordinary size are not clipped away."""


class RangeError(ValueError):
    """A tensor is to be held as codes, but nothing is known about its range."""


@declare("choose-ranges", Level.PLANNED, Level.PLANNED, exact=True)
@dataclass(frozen=True)
class ChooseRanges(Pass):
    """Give every scheme its parameters: activations from statistics and what ops promise, by the
    recipe's method; weights from their values, so that every sum provably fits.

    A layer or matmul whose int32 sums cannot be proven goes back to float, with the reason.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        notes = activation_notes(graph, ctx)
        notes |= weight_notes(graph, notes, ctx)
        notes |= matmul_notes(graph, notes)
        return graph.noted(notes)


def activation_notes(graph: Graph, ctx: Context) -> dict[Node, Note]:
    """Notes with the parameters of every static per-tensor scheme, one range per class."""
    spans = intervals(graph)
    notes: dict[Node, Note] = {}
    for members in shared_scales(graph, spans):
        scheme = members[0].note.scheme
        assert scheme is not None
        scheme = with_params(scheme, members, spans, ctx.recipe)
        notes |= {node: replace(node.note, scheme=scheme) for node in members}
    return notes


def with_params(
    scheme: Scheme, members: list[Node], spans: Mapping[Node, Range], recipe: Recipe
) -> Scheme:
    """The scheme of tensors that share a scale, with it."""
    codes = Codes(scheme.qmin, scheme.qmax, scheme.symmetric)
    scale, zero_point = codes.params(class_range(members, spans, recipe, codes))
    return replace(scheme, params=QParams((scale,), zero_point, scheme.qmin, scheme.qmax))


def class_range(
    members: list[Node], spans: Mapping[Node, Range], recipe: Recipe, codes: Codes
) -> Range:
    """The range of tensors that share a scale: of their merged statistics, within what is known,
    and with all of the ranges that ops fix."""
    free: list[Node] = []
    fixed: list[Range] = []
    for node in deciders(members, spans):
        if isinstance(node.op.quant, Fixed):
            fixed.append((node.op.quant.lo, node.op.quant.hi))
        else:
            free.append(node)
    chosen = hull(*fixed, *([_measured(free, spans, recipe, codes)] if free else []))
    return chosen if width(chosen) > 0 else DEAD


def _measured(
    nodes: list[Node], spans: Mapping[Node, Range], recipe: Recipe, codes: Codes
) -> Range:
    known = hull(*(spans[node] for node in nodes))
    stats = EMPTY
    for node in nodes:
        stats = stats.merge(node.note.stats or EMPTY)
    if stats.seen:
        return within(choose_range(stats, recipe.range, recipe.percentile, codes), known)
    if all(map(math.isfinite, known)):
        return known
    raise RangeError(
        f"%{nodes[0].name} ({nodes[0].op.kind}): expected statistics, got none, and its range is "
        f"not known without; run calibrate with data first"
    )


Known = dict[tuple[object, ...], QParams]
"""Parameters of weights by what they depend on."""


def weight_notes(
    graph: Graph, activations: Mapping[Node, Note], ctx: Context, known: Known | None = None
) -> dict[Node, Note]:
    """Notes with the parameters of every weight; where no scale will do, with the reason.

    known: of other plans for the same graph; what is found is added.
    """
    notes: dict[Node, Note] = {}
    known = {} if known is None else known
    for weight, users in _weights(graph).items():
        scheme = weight.note.scheme
        assert scheme is not None
        require_finite(users)
        layers = [Layer.of(u, _scheme(u.inputs[0], activations)) for u in users]
        operands = (id(i.op) for u in users for i in u.inputs[1:])
        key = (scheme, *operands, *(u.op for u in users), *(layer.x for layer in layers))
        try:
            params = known[key] if key in known else weight_params(layers, scheme, ctx)
        except arith.ArithError as e:
            notes[weight] = replace(weight.note, scheme=None)
            notes |= {u: replace(u.note, precision=DType.FLOAT32, reason=str(e)) for u in users}
        else:
            known[key] = params
            notes[weight] = replace(weight.note, scheme=replace(scheme, params=params))
    return notes


def require_finite(layers: list[Node]) -> None:
    """Raises RangeError naming the layer whose weight or bias holds NaN or inf."""
    for node in layers:
        for operand in node.inputs[1:]:
            if isinstance(operand.op, Const) and not bool(operand.op.value.isfinite().all()):
                origin = f" ({node.note.origin})" if node.note.origin else ""
                raise RangeError(
                    f"%{node.name} = {node.op.kind}{origin}: expected finite weights, got NaN or "
                    f"inf in %{operand.name}; repair the model's parameters"
                )


def _weights(graph: Graph) -> dict[Node, list[Node]]:
    """The weights with a scheme, and the layers that read each."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        if isinstance(node.op, Conv2d | Linear) and _is_weight(node.inputs[1]):
            found.setdefault(node.inputs[1], []).append(node)
    return found


def _is_weight(node: Node) -> bool:
    scheme = node.note.scheme
    return isinstance(node.op, Const) and scheme is not None and scheme.axis == 0


def _scheme(node: Node, notes: Mapping[Node, Note]) -> Scheme | None:
    return notes.get(node, node.note).scheme


def matmul_notes(graph: Graph, activations: Mapping[Node, Note]) -> dict[Node, Note]:
    """Notes with the reason for each product of activations whose sums may leave int32."""
    notes: dict[Node, Note] = {}
    for node in graph.nodes():
        if not isinstance(node.op, Matmul) or node.note.precision is not DType.INT8:
            continue
        operands = [_scheme(i, activations) for i in node.inputs]
        reason = _unproven(node, [s.params for s in operands if s and s.params])
        if reason:
            notes[node] = replace(node.note, precision=DType.FLOAT32, reason=reason)
    return notes


def _unproven(node: Node, operands: list[QParams]) -> str | None:
    k = node.inputs[0].tensor.shape[-1]
    depth = k.max if isinstance(k, Sym) else k
    if depth is None:
        return f"its inner dimension {k!r} has no upper bound, so int32 sums are not proven"
    if len(operands) != 2:
        return None
    a, b = operands
    bounds = arith.matmul_bounds(
        depth, (a.qmin, a.qmax), a.zero_point, (b.qmin, b.qmax), b.zero_point
    )
    if arith.fits_int32(*bounds):
        return None
    return f"its sums reach {max(map(abs, bounds))} over {depth} products, beyond int32"


choose_ranges = ChooseRanges()
