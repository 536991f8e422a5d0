"""Row codes: the largest code of rows quantized at run time, where fewer codes are faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qcompiler.context import Context
from qcompiler.graph import Graph, Node, Note
from qcompiler.ops import Linear
from qcompiler.types import Scheme

from .weight_scales import Layer, Operand, choices

# Largest codes tried. Fewer codes leave room for weights in 16-bit sums: with normal values and 4
# or 8 products the error is least near 100 or 80 (768 inputs: 2.5 dB lost where 127 loses 3.0, and
# 4.0 where it loses 5.4).
LARGEST = (127, 120, 112, 104, 96, 88, 80, 72, 63)


def row_notes(graph: Graph, ctx: Context) -> dict[Node, Note]:
    """Notes with the codes of every tensor that is quantized per row."""
    if not ctx.recipe.sums_loss:
        return {}
    readers = _readers(graph)
    notes: dict[Node, Note] = {}
    for node, layers in readers.items():
        scheme = node.note.scheme
        assert scheme is not None
        qmax = _largest(node, layers, scheme, ctx)
        notes[node] = replace(node.note, scheme=replace(scheme, qmin=-qmax, qmax=qmax))
    return notes


def _readers(graph: Graph) -> Mapping[Node, list[Node]]:
    """The tensors with a dynamic scheme, and the layers that read each."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        scheme = node.inputs[0].note.scheme if isinstance(node.op, Linear) else None
        if scheme is not None and scheme.dynamic:
            found.setdefault(node.inputs[0], []).append(node)
    return found


def _largest(node: Node, readers: list[Node], scheme: Scheme, ctx: Context) -> int:
    """The largest code that costs least with the fastest sums the recipe allows for all readers."""
    layers = [Layer.of(reader, scheme) for reader in readers]
    operands = {q: Operand.of(node, replace(scheme, qmin=-q, qmax=q)) for q in LARGEST}
    for sums in choices(scheme.qmin, scheme.qmax, layers, ctx)[0]:
        least = [(layer, layer.least(sums)) for layer in layers]
        # The scales that sums need are in proportion to the codes.
        losses = [
            (max(layer.loss(x, scale * (q / scheme.qmax)) for layer, scale in least), -q)
            for q, x in operands.items()
        ]
        loss, largest = min(losses)
        if loss <= ctx.recipe.sums_loss:
            return -largest
    return scheme.qmax
