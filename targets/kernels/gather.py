"""Gathers: rows or elements chosen by indices, which are checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.ops import Gather, GatherElements

from .algebra import Primitives, dtype_bits
from .build import Buffer, Expr, Operand, Params, function, local, tasks
from .geometry import Dim
from .launch import Answer, Launch, Machine, Site, dims, operand
from .loops import collapsed, contiguous, nest, offset, points, read, write


def lower(site: Site, machine: Machine) -> Answer:
    """gather and gather_elements along an axis."""
    node = site.body[-1]
    if len(site.body) != 1 or not isinstance(node.op, Gather | GatherElements):
        return None
    key = ("gather", site.key, machine.primitives)
    message = _message(node)
    if machine.primitives.grid is not None:
        return Launch(key, lambda: _flagging(node, machine.primitives), node.inputs, message)
    # The name is in the message of the check, so that every gather is a function of its own.
    return Launch((*key, node.name), lambda: _function(node, machine.primitives), node.inputs)


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
    loops = nest(axes, lanes, 1, primitives.grid)
    made: list[Any] = []
    with function(node.op.kind, made, primitives.grid) as params:
        table, index, target = params.flat(*operands, result)
        size = params.symbols.dim(operands[0].shape[node.op.axis])  # type: ignore[attr-defined]
        _checked(_message(node), index, operands[1].shape, size, params)
        with points(loops, params.symbols.dim) as (place, at):
            chosen = index[offset(axes, 1, place, at)]
            start = offset(axes, 0, place, at) + chosen * along
            value = read(table, start, loops.inner.steps[0], loops.lanes)
            write(target, offset(axes, 2, place, at), 1, value, loops.lanes)
    return made[0]


def _flagging(node: Node, primitives: Primitives) -> Any:
    """PrimFunc (table, index, flag, out) of a GPU, which can raise no error: flag [1] becomes 1.

    A wrong index reads the first element in place of foreign memory.
    """
    operands = [operand(f"x{k}", i.tensor) for k, i in enumerate(node.inputs)]
    result = operand("out", node.tensor)
    shape, steps, along = _axes(node)
    axes = collapsed(shape, steps)
    loops = nest(axes, 1, 1, primitives.grid)
    made: list[Any] = []
    with function(node.op.kind, made, primitives.grid) as params:
        table, index, flag, target = params.flat(*operands, Operand("flag", (1,), "int32"), result)
        size = params.symbols.dim(operands[0].shape[node.op.axis])  # type: ignore[attr-defined]
        with tasks(1, False):
            T.buffer_store(flag, 0, [0])
        with points(loops, params.symbols.dim) as (place, at):
            chosen = local(1, operands[1].dtype)
            T.buffer_store(chosen, index[offset(axes, 1, place, at)], [0])
            with T.If(tirx.Or(chosen[0] < 0, chosen[0] >= size)), T.Then():
                T.buffer_store(flag, 1, [0])
                T.buffer_store(chosen, tirx.const(0, operands[1].dtype), [0])
            start = offset(axes, 0, place, at) + chosen[0] * along
            value = read(table, start, loops.inner.steps[0], 1)
            write(target, offset(axes, 2, place, at), 1, value, 1)
    return made[0]


def _message(node: Node) -> str:
    """What is wrong when an index is not in 0..size-1."""
    assert isinstance(node.op, Gather | GatherElements)
    size = node.inputs[0].tensor.shape[node.op.axis]
    expected = f"indices in 0..{size - 1}" if isinstance(size, int) else "indices in range"
    return f"%{node.name} = {node.op.kind}: expected {expected}, got one outside"


def _checked(message: str, index: Buffer, shape: Sequence[Dim], size: Expr, params: Params) -> None:
    """An error unless every index is in 0..size-1."""
    wrong = T.alloc_buffer((1,), "int32")
    T.buffer_store(wrong, 0, [0])
    with T.serial(0, params.symbols.product(shape)) as i:
        at = index[i]
        outside = tirx.Or(at < 0, at >= size)
        T.buffer_store(wrong, wrong[0] + tirx.Cast("int32", outside), [0])
    with T.Assert(tirx.EQ(wrong[0], 0), message, error_kind="IndexError"):
        pass
