"""Functions of one code as 256-entry tables, and concatenation of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.ops import Concat, Const, Dequantize, Lookup, Quantize, const
from qcompiler.rewrite import Miss, Sweep
from qcompiler.types import DType, QParams

if TYPE_CHECKING:
    import torch

LIMITS = DType.INT32.limits


def function_into_table(node: Node, sweep: Sweep) -> Node | Miss | None:
    """quantize(f(dq(q))) => table[q], for elementwise f of one tensor."""
    if not isinstance(node.op, Quantize) or node.tensor.quant is None:
        return None
    chain: list[Node] = []
    source = node.inputs[0]
    while not isinstance(source.op, Dequantize):
        step = _step(source)
        if step is None or source.note.precision is not DType.INT8:
            return None
        chain.append(source)
        source = step
    codes = source.inputs[0]
    quant = codes.tensor.quant
    if codes.tensor.dtype.bits != 8 or quant is None or not quant.per_tensor:
        return Miss("its operand is not 8-bit codes")
    if not chain:
        return lookup(codes, node.tensor.quant, node.tensor.dtype, rescaled(codes, node))
    table = arith.unary_table(function(chain), affine(codes), affine(node))
    return lookup(codes, node.tensor.quant, node.tensor.dtype, table)


def _step(node: Node) -> Node | None:
    """The one tensor operand of an elementwise op whose other operands are scalars."""
    if not isinstance(node.op, Elementwise):
        return None
    tensors = [i for i in node.inputs if not isinstance(i.op, Const)]
    scalars = [i for i in node.inputs if isinstance(i.op, Const)]
    if len(tensors) != 1 or any(i.tensor.shape != () for i in scalars):
        return None
    return tensors[0]


def function(chain: list[Node]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The composition of elementwise nodes, the last one first."""

    def run(x: torch.Tensor) -> torch.Tensor:
        for node in reversed(chain):
            x = node.op.eval(*(i.op.value if isinstance(i.op, Const) else x for i in node.inputs))
        return x

    return run


def affine(node: Node) -> arith.Affine:
    quant = node.tensor.quant
    assert quant is not None
    return arith.Affine(
        quant.scale[0], quant.zero_point, quant.qmin, quant.qmax, node.tensor.dtype.value
    )


def lookup(codes: Node, out: QParams, to: DType, table: torch.Tensor) -> Node:
    offset = arith.table_offset(codes.tensor.dtype.value)
    return Lookup(to, out, offset)(codes, const(table, to))


def rescaled(codes: Node, out: Node) -> torch.Tensor:
    """The requantize law from one 8-bit scale to another, for every code."""
    import torch

    (a, b) = (codes.tensor.quant, out.tensor.quant)
    assert a is not None and b is not None
    offset = arith.table_offset(codes.tensor.dtype.value)
    sums = torch.arange(256, dtype=torch.int32) - offset - a.zero_point
    m = arith.multiplier(a.scale[0], 1.0, b.scale[0])
    return arith.requantize(
        arith.TORCH, sums, m, b.zero_point, b.qmin, b.qmax, out.tensor.dtype.value
    )


def concat_of_codes(node: Node, sweep: Sweep) -> Node | Miss | None:
    """quantize(concat(dq(a), dq(b))) => concat(a, table[b]), each at the output's scale."""
    match node:
        case Node(Quantize() as quantize, (Node(Concat() as concat, parts) as joined, scale, zero)):
            if joined.note.precision is not DType.INT8:
                return None
            if not all(isinstance(p.op, Dequantize) for p in parts):
                return Miss("an operand is not codes")
            return concat(*(quantize(p, scale, zero) for p in parts))
    return None
