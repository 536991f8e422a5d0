"""Gathers: rows or elements chosen by indices, which are checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.ops import Gather, GatherElements

from .algebra import Primitives, dtype_bits
from .build import Buffer, Expr, Params, function
from .geometry import Dim
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import collapsed, contiguous, nest, offset, points, read, write


def lower(site: Site, machine: Machine) -> Answer:
    """gather and gather_elements along an axis."""
    node = site.body[-1]
    if len(site.body) != 1 or not isinstance(node.op, Gather | GatherElements):
        return None
    x, index = (dims(i.tensor.shape) for i in node.inputs)
    if any(isinstance(d, str) for d in (*x[1:], *index[1:], *dims(node.tensor.shape)[1:])):
        return Miss("only the first dimension may be symbolic")
    # The name is in the message of the check, so that every gather is a function of its own.
    key = ("gather", node.name, site.key, machine.primitives)
    return Launch(key, lambda: _function(node, machine.primitives), node.inputs)


def _axes(node: Node) -> tuple[tuple[Dim, ...], list[tuple[int, ...]], int]:
    """(shape of the loops, steps of table, index and result, step of the table along the axis)."""
    x, index = (dims(i.tensor.shape) for i in node.inputs)
    out = dims(node.tensor.shape)
    steps = contiguous(x)
    assert isinstance(node.op, Gather | GatherElements)
    axis = node.op.axis
    if isinstance(node.op, Gather):
        before, after = axis, len(x) - axis - 1
        table = (*steps[:axis], *[0] * len(index), *steps[axis + 1 :])
        chosen = (*[0] * before, *contiguous(index), *[0] * after)
    else:
        table = tuple(0 if k == axis else s for k, s in enumerate(steps))
        chosen = contiguous(index)
    return out, [table, chosen, contiguous(out)], steps[axis]


def _function(node: Node, primitives: Primitives) -> Any:
    operands = [operand(f"x{k}", i.tensor) for k, i in enumerate(node.inputs)]
    result = operand("out", node.tensor)
    shape, steps, along = _axes(node)
    axes = collapsed(shape, steps)
    lanes = primitives.lanes(dtype_bits(result.dtype)) if axes[-1].steps[1] == 0 else 1
    loops = nest(axes, lanes, 1)
    made: list[Any] = []
    with function(node.op.kind, made) as params:
        table, index, target = params.flat(*operands, result)
        size = params.symbols.dim(operands[0].shape[node.op.axis])  # type: ignore[attr-defined]
        _checked(node, index, operands[1].shape, size, params)
        with points(loops, params.symbols.dim) as (place, at):
            chosen = index[offset(axes, 1, place, at)]
            start = offset(axes, 0, place, at) + chosen * along
            value = read(table, start, loops.inner.steps[0], loops.lanes)
            write(target, offset(axes, 2, place, at), 1, value, loops.lanes)
    return made[0]


def _checked(node: Node, index: Buffer, shape: Sequence[Dim], size: Expr, params: Params) -> None:
    """An error that names the node unless every index is in 0..size-1."""
    wrong = T.alloc_buffer((1,), "int32")
    T.buffer_store(wrong, 0, [0])
    with T.serial(0, params.symbols.product(shape)) as i:
        at = index[i]
        outside = tirx.Or(at < 0, at >= size)
        T.buffer_store(wrong, wrong[0] + tirx.Cast("int32", outside), [0])
    expected = f"indices in 0..{size - 1}" if isinstance(size, int) else "indices in range"
    message = f"%{node.name} = {node.op.kind}: expected {expected}, got one outside"
    with T.Assert(tirx.EQ(wrong[0], 0), message, error_kind="IndexError"):
        pass
