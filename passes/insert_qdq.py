"""Insert quantize and dequantize: every tensor with a scheme is read through its codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node, Note
from qcompiler.ops import Const, Dequantize, DynamicQuantize, Get, Quantize, const
from qcompiler.pipeline import Pass, declare
from qcompiler.types import DType, QParams, Scheme


def integer(node: Node) -> bool:
    return node.note.precision is DType.INT8


def is_weight(node: Node) -> bool:
    """Constants have a scheme of their own for each layer that is to read their codes."""
    return isinstance(node.op, Const)


def through_codes(node: Node, scheme: Scheme) -> Node:
    """x => dequantize(quantize(x)) by the scheme; per row where it is dynamic."""
    if scheme.dynamic:
        made = DynamicQuantize(scheme.qmax)(node, name=f"{node.name}.rows")
        codes = Get(0)(made, name=f"{node.name}.q")
        scale = Get(1)(made, name=f"{node.name}.scale")
        zero = const(0, name=f"{node.name}.zero")
        return Dequantize()(codes, scale, zero, name=f"{node.name}.dq")
    assert scheme.params is not None
    channels = node.tensor.ints[0] if scheme.group is not None else 1
    scale, zero = operands(scheme.params, node.name, channels)
    known = Note(stats=node.note.stats, origin=node.note.origin)
    codes = Quantize(scheme.dtype, scheme.qmin, scheme.qmax, scheme.axis, scheme.group)(
        node, scale, zero, name=f"{node.name}.q", note=known
    )
    return Dequantize(scheme.axis, scheme.group)(codes, scale, zero, name=f"{node.name}.dq")


def operands(params: QParams, name: str, channels: int = 1) -> tuple[Node, Node]:
    """Scale and zero point as Const nodes: scalars, one scale per channel, or per channel and group
    of the `channels`."""
    scale = const(params.scale[0] if params.per_tensor else list(params.scale), DType.FLOAT32)
    if params.group is not None:
        assert isinstance(scale.op, Const)
        scale = const(scale.op.value.reshape(channels, -1))
    named = replace(scale, name=f"{name}.scale")
    return named, const(params.zero_point, name=f"{name}.zero")


@declare("insert-qdq", Level.PLANNED, Level.QDQ)
@dataclass(frozen=True)
class InsertQdq(Pass):
    """x => dequantize(quantize(x)) on every edge into an integer op, and on every weight that has a
    scheme.

    A float op reads the codes of what an integer op made (there is nothing else to read), and the
    float value itself of what a float op made.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        new: dict[Node, Node] = {}
        coded: dict[Node, Node] = {}
        for node in graph.nodes():
            inputs = [
                coded[i] if i in coded and (integer(node) or integer(i) or is_weight(i)) else new[i]
                for i in node.inputs
            ]
            current = node.with_inputs(inputs)
            scheme = node.note.scheme
            new[node] = current if scheme is None else current.with_note(scheme=None)
            if scheme is not None and (scheme.dynamic or scheme.params is not None):
                coded[node] = through_codes(new[node], scheme)
        outputs = {n: coded[n] for n in graph.results if n in coded and integer(n)}
        return graph.rebuilt(new | outputs)


insert_qdq = InsertQdq()
