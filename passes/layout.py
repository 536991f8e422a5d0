"""Layout: channels last inside, so that kernels read them as vectors; permutes at the borders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qcompiler.graph import Level, Node
from qcompiler.op import Elementwise, Movement
from qcompiler.ops import (
    AvgPool2d,
    Concat,
    Conv2d,
    Dilate,
    Expand,
    Flip,
    IntConv2d,
    IntSumPool2d,
    MaxPool2d,
    Pad,
    Permute,
    Reshape,
    Resize,
    Slice,
)  # fmt: skip
from qcompiler.pipeline import rewrites
from qcompiler.rewrite import Miss, Rule, Sweep

from .fold import constants
from .simplify import movement_without_effect, permute_of_permute, reshape_of_reshape
from .simplify import permute_into_reshape as size_one_moves

LAST = (0, 2, 3, 1)  # NCHW to NHWC
FIRST = (0, 3, 1, 2)  # NHWC to NCHW
IMAGE_OPS = (Conv2d, IntConv2d, MaxPool2d, AvgPool2d, IntSumPool2d, Resize)

Result = Node | Miss | None


def image_op_last(node: Node, sweep: Sweep) -> Result:
    """conv2d(x) => to_nchw(conv2d_nhwc(to_nhwc(x))); pools and resize likewise."""
    op: Any = node.op
    if not isinstance(op, IMAGE_OPS) or op.channels_last:
        return None
    x, *rest = node.inputs
    return first(node, replace(op, channels_last=True)(Permute(LAST)(x), *rest))


def first(node: Node, value: Node) -> Node:
    """The NHWC value of a node back in NCHW; the value keeps the name, the permute goes away."""
    return Permute(FIRST)(replace(value, name=node.name, note=node.note))


def is_first(node: Node) -> bool:
    return isinstance(node.op, Permute) and node.op.dims == FIRST


def elementwise_below(node: Node, sweep: Sweep) -> Result:
    """f(to_nchw(x), y) => to_nchw(f(x, to_nhwc(y))), for elementwise f of rank-4 results."""
    if not isinstance(node.op, Elementwise) or node.tensor.rank != 4:
        return None
    if not any(is_first(i) for i in node.inputs):
        return None
    op = node.op
    inputs = (last(x) if op.aligned(k) else x for k, x in enumerate(node.inputs))
    return first(node, op(*inputs))


def last(x: Node) -> Node:
    """A tensor that broadcasts to NCHW, as one that broadcasts to NHWC."""
    if is_first(x):
        return x.inputs[0]
    shape = x.tensor.shape
    if len(shape) <= 1 and all(d == 1 for d in shape):
        return x
    full = (*[1] * (4 - len(shape)), *shape)
    return Permute(LAST)(x if len(shape) == 4 else Reshape(full)(x))


def movement_below(node: Node, sweep: Sweep) -> Result:
    """slice(to_nchw(x)) => to_nchw(slice(x)) on the moved axis; concat, pad, flip likewise."""
    if not isinstance(node.op, Movement) or not node.inputs:
        return None
    if not any(is_first(i) for i in node.inputs):
        return None
    if not all(i.tensor.rank == 4 for i in node.inputs):
        return None
    moved = on_last(node.op)
    return first(node, moved(*map(last, node.inputs))) if moved else None


def on_last(op: Movement) -> Movement | None:
    """The movement with its axes counted in NHWC; None where it has no such form."""
    if isinstance(op, Slice | Concat):
        return replace(op, axis=LAST.index(op.axis))
    if isinstance(op, Pad):
        return replace(op, pads=tuple(op.pads[d] for d in LAST))
    if isinstance(op, Dilate):
        return replace(op, strides=tuple(op.strides[d] for d in LAST))
    if isinstance(op, Flip):
        return replace(op, axes=tuple(LAST.index(a) for a in op.axes))
    if isinstance(op, Expand) and len(op.shape) == 4:
        return replace(op, shape=tuple(op.shape[d] for d in LAST))
    return None


def permute_above_const(node: Node, sweep: Sweep) -> Result:
    """permute(constant) => constant."""
    return constants(node, sweep) if isinstance(node.op, Permute | Reshape) else None


RULES: tuple[Rule, ...] = (
    image_op_last, elementwise_below, movement_below, permute_of_permute, size_one_moves,
    reshape_of_reshape, movement_without_effect, permute_above_const,
)  # fmt: skip

layout = rewrites("layout", RULES, needs=Level.INTEGER, required=True)
