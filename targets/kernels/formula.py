"""Steps of a region as values at one point: each op's own law, over operands loaded there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Elementwise, RowOp
from qcompiler.ops import Const, Dequantize, Quantize
from qcompiler.types import Dim, TensorType

from .algebra import Value, number
from .dtypes import FLOAT32, narrow

# load(leaf, shape) -> the leaf's value at the current point, seen as a tensor of `shape`.
Load = Callable[[Node, tuple[Dim, ...]], Value]
# table(leaf) -> the buffer of a lookup table.
Table = Callable[[Node], Any]
# A leaf and the shape under which it broadcasts; None for a table, which does not.
Use = tuple[Node, "tuple[Dim, ...] | None"]


def supported(nodes: Sequence[Node]) -> str | None:
    """Why some value of these nodes has no form in the algebra; None when all have one."""
    for node in nodes:
        dtype = node.tensor.dtype.value if isinstance(node.type, TensorType) else FLOAT32
        if dtype not in arith.DTYPES:
            return f"no kernel computes in {dtype}"
        problem = narrow(node) if isinstance(node.op, Elementwise | RowOp) else None
        if problem:
            return problem
    return None


def scalar(node: Node) -> np.generic | None:
    """The value of a 0-d constant, which code holds as a number."""
    if isinstance(node.op, Const) and node.tensor.rank == 0:
        return number(node.op.value.item(), node.tensor.dtype.value)
    return None


def operand_shapes(node: Node) -> list[tuple[Dim, ...] | None]:
    """Under which shape each operand of an elementwise node broadcasts."""
    assert isinstance(node.op, Elementwise)
    shapes: list[tuple[Dim, ...] | None] = [
        i.tensor.shape if node.op.aligned(k) else None for k, i in enumerate(node.inputs)
    ]
    match node.op:
        case Quantize(axis=int(axis)) | Dequantize(axis=int(axis)):
            after = (1,) * (node.inputs[0].tensor.rank - axis - 1)
            shapes[1:] = [(*s, *after) if s else s for s in shapes[1:] if s is not None]
    return shapes


def uses(body: Sequence[Node]) -> list[Use]:
    """Every way in which the body reads a leaf that is not a number, in order, without repeats."""
    inside = set(body)
    found: dict[Use, None] = {}
    for node in body:
        for operand, shape in zip(node.inputs, operand_shapes(node), strict=True):
            if operand not in inside and scalar(operand) is None:
                found[operand, shape] = None
    return list(found)


def evaluate(
    body: Sequence[Node],
    n: Any,
    load: Load,
    table: Table,
    given: Mapping[Node, Value] | None = None,
    special: Callable[[Node, Sequence[Value]], Value | None] = lambda node, args: None,
) -> dict[Node, Value]:
    """The value of every node of the body at the current point, over the algebra n.

    given: values that are known already, of nodes outside the body. special: the value of a step
    that the machine computes in its own way, to the same bits.
    """
    values: dict[Node, Value] = dict(given or {})
    for node in body:
        assert isinstance(node.op, Elementwise)
        args = [
            _operand(operand, shape, values, load, table)
            for operand, shape in zip(node.inputs, operand_shapes(node), strict=True)
        ]
        value = special(node, args)
        values[node] = node.op.law(n, *args) if value is None else value
    return values


def _operand(
    node: Node, shape: tuple[Dim, ...] | None, values: dict[Node, Value], load: Load, table: Table
) -> Value:
    if node in values:
        return values[node]
    known = scalar(node)
    if known is not None:
        return known
    return table(node) if shape is None else load(node, shape)
