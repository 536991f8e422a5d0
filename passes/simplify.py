"""Simplify: algebra and movement that does nothing, canonical operand order, equal nodes merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import (
    Add,
    Cast,
    Clamp,
    Concat,
    Const,
    Conv2d,
    Div,
    Expand,
    Linear,
    Matmul,
    Mul,
    Pad,
    Permute,
    Reshape,
    Slice,
    Sub,
    const,
)  # fmt: skip
from qcompiler.pipeline import Pass, declare
from qcompiler.rewrite import Miss, Rule, Sweep, rewrite
from qcompiler.types import DType

Result = Node | Miss | None


def constants_right(node: Node, sweep: Sweep) -> Result:
    """a + x => x + a, a * x => x * a, for a constant a."""
    match node:
        case Node(Add() | Mul(), (Node(Const()), Node() as x)) if not isinstance(x.op, Const):
            return node.op(x, node.inputs[0])
    return None


def subtract_into_add(node: Node, sweep: Sweep) -> Result:
    """x - a => x + (-a), for a float constant a."""
    match node:
        case Node(Sub(), (x, Node(Const() as a))) if a.value.is_floating_point():
            return Add()(x, const(-a.value))
    return None


def divide_into_multiply(node: Node, sweep: Sweep) -> Result:
    """x / a => x * (1 / a), for a float constant a without zeros; one rounding more."""
    match node:
        case Node(Div(), (x, Node(Const() as a))) if a.value.is_floating_point():
            if bool((a.value == 0).any()):
                return Miss("the divisor holds a zero")
            inverse = 1 / a.value
            if not bool((inverse.isfinite() & (inverse != 0)).all()):
                return Miss("an inverse of the divisor overflows")
            return Mul()(x, const(inverse))
    return None


def neutral_element(node: Node, sweep: Sweep) -> Result:
    """x + 0 => x, x * 1 => x."""
    match node:
        case Node(Add(), (x, Node(Const() as a))) if _all(a, 0) and x.type == node.type:
            return x
        case Node(Mul(), (x, Node(Const() as a))) if _all(a, 1) and x.type == node.type:
            return x
    return None


def _all(a: Const, value: float) -> bool:
    return bool((a.value == value).all())


def movement_without_effect(node: Node, sweep: Sweep) -> Result:
    """reshape, permute, slice, pad, expand, cast or concat that changes nothing => x."""
    if len(node.inputs) != 1:
        return None
    (x,) = node.inputs
    match node.op:
        case Permute(dims) if dims != tuple(range(len(dims))):
            return None
        case Slice(step=step) if step != 1:
            return None
        case Pad(pads) if any(p != (0, 0) for p in pads):
            return None
        case Reshape() | Permute() | Slice() | Pad() | Expand() | Cast() | Concat():
            return x if x.type == node.type else None
    return None


def reshape_of_reshape(node: Node, sweep: Sweep) -> Result:
    """reshape(reshape(x)) => reshape(x)."""
    match node:
        case Node(Reshape() as outer, (Node(Reshape(), (x,)),)):
            return outer(x)
    return None


def permute_of_permute(node: Node, sweep: Sweep) -> Result:
    """permute(permute(x, p), q) => permute(x, p[q])."""
    match node:
        case Node(Permute(outer), (Node(Permute(inner), (x,)),)):
            return Permute(tuple(inner[d] for d in outer))(x)
    return None


def permute_into_reshape(node: Node, sweep: Sweep) -> Result:
    """permute(x) => reshape(x) where only dimensions of size 1 change places."""
    match node:
        case Node(Permute(dims), (x,)):
            wide = [d for d in dims if x.tensor.shape[d] != 1]
            if wide == sorted(wide):
                return Reshape(node.tensor.shape)(x)
    return None


def clamp_of_clamp(node: Node, sweep: Sweep) -> Result:
    """clamp(clamp(x, a, b), c, d) => clamp(x, max(a, c), min(b, d)), for bounds that meet."""
    match node:
        case Node(Clamp(c, d), (Node(Clamp(a, b), (x,)),)):
            if max(a, c) > min(b, d):
                return Miss("the two ranges do not meet")
            return Clamp(max(a, c), min(b, d))(x)
    return None


def pad_into_conv(node: Node, sweep: Sweep) -> Result:
    """conv2d(pad(x, 0), w) => conv2d(x, w) with that padding, for spatial zero pads."""
    match node:
        case Node(Conv2d() as conv, (Node(Pad(pads, value), (x,)), *rest)):
            order = (0, 3, 1, 2) if conv.channels_last else range(4)
            batch, channel, height, width = (pads[d] for d in order)
            if value != 0 or batch != (0, 0) or channel != (0, 0):
                return Miss("the pad is not spatial, or not zero")
            if min(*height, *width) < 0:
                return Miss("the pad crops")
            (t, b), (left, r) = conv.padding
            padding = ((t + height[0], b + height[1]), (left + width[0], r + width[1]))
            return replace(conv, padding=padding)(x, *rest)
    return None


def matmul_into_linear(node: Node, sweep: Sweep) -> Result:
    """matmul(x, W) => linear(x, W^T), for a constant matrix W."""
    match node:
        case Node(Matmul(), (x, Node(Const() as w))) if w.value.ndim == 2:
            if x.tensor.dtype is DType.FLOAT32:
                return Linear()(x, const(w.value.T.contiguous()))
    return None


def add_into_bias(node: Node, sweep: Sweep) -> Result:
    """linear(x, w) + b => linear(x, w, b); conv2d(x, w) + b[C,1,1] => conv2d(x, w, b)."""
    match node:
        case Node(Add(), (Node(Linear() | Conv2d() as anchor) as inner, Node(Const() as b))):
            channels = inner.inputs[1].tensor.shape[0]
            inside = isinstance(anchor, Linear) or anchor.channels_last
            shape = (channels,) if inside else (channels, 1, 1)
            if len(inner.inputs) != 2:
                return Miss("the anchor has a bias already")
            fits = b.value.ndim <= inner.tensor.rank and b.value.numel() == channels
            if tuple(b.value.shape)[-len(shape) :] != shape or not fits:
                return Miss(f"the addend is {tuple(b.value.shape)}, expected {shape}")
            if not sweep.only_use(inner):
                return Miss(f"%{inner.name} has a second user")
            return anchor(*inner.inputs, const(b.value.reshape(-1)))
    return None


RULES: tuple[Rule, ...] = (
    constants_right, subtract_into_add, divide_into_multiply, neutral_element,
    movement_without_effect, reshape_of_reshape, permute_of_permute, permute_into_reshape,
    clamp_of_clamp, pad_into_conv, matmul_into_linear, add_into_bias,
)  # fmt: skip


def merge_equal(graph: Graph) -> Graph:
    """Nodes with equal op and operands become one (common subexpressions)."""
    new: dict[Node, Node] = {}
    seen: dict[tuple[Any, ...], Node] = {}
    for node in graph.nodes():
        current = node.with_inputs([new[i] for i in node.inputs])
        if node in graph.parameters:
            new[node] = current
            continue
        key = (type(node.op), node.op, tuple(map(id, current.inputs)), node.note.scheme)
        new[node] = seen.setdefault(key, current)
    return graph.rebuilt(new)


def until_stable(graph: Graph, step: Callable[[Graph], Graph]) -> Graph:
    """Apply a step until the number of nodes no longer falls."""
    count = len(graph.nodes())
    while True:
        graph = step(graph)
        now = len(graph.nodes())
        if now >= count:
            return graph
        count = now


@declare("simplify", (Level.FLOAT, Level.QDQ, Level.INTEGER), exact=True)
@dataclass(frozen=True)
class Simplify(Pass):
    """Apply the rules above and merge equal nodes, until nothing changes."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        return until_stable(graph, lambda g: merge_equal(rewrite(g, RULES, ctx)))


simplify = Simplify()
