"""Pack: constant weights in the layout that the target's kernel reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import (
    Const,
    Conv2d,
    IntConv2d,
    IntLinear,
    Linear,
    Region,
    Step,
    Unpack,
    steps_of,
)  # fmt: skip
from qcompiler.pipeline import Pass, PipelineError, declare

WEIGHTED = (Conv2d, IntConv2d, Linear, IntLinear)


def packed(node: Node, ctx: Context) -> Node:
    """region(x, W, ...) => region(x, P, unpack(P), ...), for constant W."""
    steps = steps_of(node)
    anchor = steps[0]
    if not isinstance(anchor.op, WEIGHTED) or anchor.args[1] >= len(node.inputs):
        return node
    slot = anchor.args[1]
    weight = node.inputs[slot]
    assert ctx.target is not None
    packing = ctx.target.packing(node)
    if packing is None or not isinstance(weight.op, Const):
        return node
    value = packing.pack(weight.op.value)
    constant = Const(value)(name=f"{weight.name}.packed")
    inputs = [constant if k == slot else i for k, i in enumerate(node.inputs)]
    count = len(node.inputs)
    unpack = Step(Unpack(packing, weight.tensor.ints, weight.tensor.quant), (slot,))
    first = tuple(count if k == 1 else a for k, a in enumerate(anchor.args))
    rest = [Step(s.op, tuple(a + (a >= count) for a in s.args)) for s in steps[1:]]
    body = (unpack, replace(anchor, args=first), *rest)
    return Region(body)(*inputs, name=node.name, note=node.note)


@declare("pack", Level.FUSED, exact=True)
@dataclass(frozen=True)
class Pack(Pass):
    """Weights of matmul, linear and convolution regions, packed at compile time."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        if ctx.target is None:
            raise PipelineError("pack needs a target: its kernels say how they read weights")
        return graph.map(lambda node: packed(node, ctx), target=ctx.target.name)


pack = Pack()
