"""Code counts: the largest code of the activations that layers read, where fewer are faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.op import Same
from qcompiler.ops import Clamp, Concat, Conv2d, Linear
from qcompiler.types import DType, Scheme

from .schemes import ROWS
from .weight_scales import Layer, Operand, choices, row_noise

# Largest codes tried, as shares of that of the scheme. Fewer codes leave room for weights in
# 16-bit sums: with normal values and 4 or 8 products the error is least near 12 or 10 (768 inputs
# of 127 codes a sign: 2.5 dB lost where all codes lose 3.0, and 4.0 where they lose 5.4).
SHARES = tuple(k / 16 for k in range(16, 7, -1))

# Noise that scales per row must save: a bit of the codes. The largest value of each row has to be
# found for it, and the layer's sums become float32.
ROWS_GAIN = 4.0

Users = Mapping[Node, Sequence[Node]]


def readers_of_rows(graph: Graph) -> Mapping[Node, list[Node]]:
    """The tensors with a dynamic scheme, and the layers that read each."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        scheme = node.inputs[0].note.scheme if isinstance(node.op, Linear) else None
        if scheme is not None and scheme.dynamic:
            found.setdefault(node.inputs[0], []).append(node)
    return found


def layers_of(members: Collection[Node], graph: Graph, users: Users) -> list[Node]:
    """The layers that read codes of tensors of one scale; none where anything else computes with
    them: what fewer codes cost there is not known. What is computed in float, float ops read as it
    is."""
    inside = set(members)
    reads = [
        (node, u) for node in members for u in users[node] if not (u in inside and passes_on(u))
    ]
    readers = dict.fromkeys(u for node, u in reads if _integer(node) or _integer(u))
    shown = any(_integer(node) for node in inside.intersection(graph.results))
    alone = all(_integer(u) and isinstance(u.op, Conv2d | Linear) for u in readers)
    return list(readers) if alone and not shown else []


def passes_on(node: Node) -> bool:
    """Whether a tensor that shares its operand's scale is made of the operand's codes."""
    return isinstance(node.op.quant, Same) or isinstance(node.op, Concat | Clamp)


def _integer(node: Node) -> bool:
    return node.note.precision is DType.INT8


def per_row(members: Sequence[Node], scheme: Scheme, readers: Sequence[Node], ctx: Context) -> bool:
    """Whether rows should have scales of their own, though the recipe's activations are static: one
    tensor that is computed in float, that linear layers alone read, and much less noise. Where sums
    are exact anyway, nothing is asked of the recipe's loss."""
    if not ctx.recipe.sums_loss or len(members) > 1 or not readers:
        return False
    (node,) = members
    linear = all(isinstance(reader.op, Linear) for reader in readers)
    if _integer(node) or not linear or scheme.dynamic:
        return False
    layers = [Layer.of(reader, scheme) for reader in readers]
    if not choices(scheme.qmin, scheme.qmax, layers, ctx)[0]:
        return False
    return Operand.of(node, scheme).noise > ROWS_GAIN * row_noise(node, ROWS.qmax)


def share_of_codes(layers: Sequence[Layer], scheme: Scheme, ctx: Context) -> float:
    """The share of its codes that costs least with the fastest sums the recipe allows for all
    layers, 1 where there are none.

    scheme: that of what the layers read, with its parameters where it is static.
    """
    for sums in choices(scheme.qmin, scheme.qmax, layers, ctx)[0]:
        # The scales that sums need are in proportion to the codes.
        least = [(layer, layer.least(sums)) for layer in layers]
        loss, share = min(
            (max(layer.loss(scales * share, share) for layer, scales in least), -share)
            for share in SHARES
        )
        if loss <= ctx.recipe.sums_loss:
            return -share
    return 1.0
