"""Pack: constant weights in the layout that the target's kernel reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import (
    Const,
    Conv2d,
    GroupedIntLinear,
    IntConv2d,
    IntLinear,
    Linear,
    Packing,
    Region,
    Step,
    Unpack,
    WeightOnlyLinear,
    steps_of,
)  # fmt: skip
from qcompiler.pipeline import Pass, PipelineError, declare

CODED = (WeightOnlyLinear, GroupedIntLinear)  # their third operand are the scales of the second
WEIGHTED = (Conv2d, IntConv2d, Linear, IntLinear, *CODED)


def packed(node: Node, ctx: Context) -> Node:
    """region(x, W, ...) => region(x, P, unpack(P), ...), for constant W, and scales of W alike."""
    steps = steps_of(node)
    anchor = steps[0]
    if not isinstance(anchor.op, WEIGHTED) or anchor.args[1] >= len(node.inputs):
        return node
    assert ctx.target is not None
    packing = ctx.target.packing(node)
    if packing is None:
        return node
    layouts = {1: packing, 2: packing.of_scales} if isinstance(anchor.op, CODED) else {1: packing}
    slots = {anchor.args[k]: layout for k, layout in layouts.items()}
    if not all(isinstance(node.inputs[slot].op, Const) for slot in slots):
        return node
    inputs = [laid(i, slots[k]) if k in slots else i for k, i in enumerate(node.inputs)]
    count, more = len(node.inputs), len(slots)
    unpacks = [unpack(node.inputs[slot], slot, layout) for slot, layout in slots.items()]
    first = dict(zip(layouts, range(count, count + more), strict=True))
    args = tuple(first.get(k, a) for k, a in enumerate(anchor.args))
    rest = [Step(s.op, tuple(a + more * (a >= count) for a in s.args)) for s in steps[1:]]
    body = (*unpacks, replace(anchor, args=args), *rest)
    return Region(body)(*inputs, name=node.name, note=node.note)


def laid(weight: Node, packing: Packing) -> Node:
    assert isinstance(weight.op, Const)
    return Const(packing.pack(weight.op.value))(name=f"{weight.name}.packed")


def unpack(weight: Node, slot: int, packing: Packing) -> Step:
    return Step(Unpack(packing, weight.tensor.ints, weight.tensor.quant), (slot,))


@declare("pack", Level.FUSED, exact=True)
@dataclass(frozen=True)
class Pack(Pass):
    """Weights of matmul, linear and convolution regions, packed at compile time."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        if ctx.target is None:
            raise PipelineError("pack needs a target: its kernels say how they read weights")
        return graph.map(lambda node: packed(node, ctx), target=ctx.target.name)


pack = Pack()
