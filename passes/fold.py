"""Fold: constants computed once; batch norm, scales and offsets into weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import Add, BatchNorm, Const, Conv2d, Input, Linear, Mul, Tuple, const
from qcompiler.pipeline import Pass, declare
from qcompiler.rewrite import Miss, Rule, Sweep, rewrite
from qcompiler.types import TensorType

if TYPE_CHECKING:
    import torch

GROWTH_LIMIT = 1 << 20  # elements; a folded result larger than this and its operands stays an op
KEEP: tuple[type, ...] = (Const, Input, Tuple)


def constants(node: Node, sweep: Sweep) -> Node | Miss | None:
    """op(constants) => constant, unless that would only make the program larger."""
    if isinstance(node.op, KEEP) or not isinstance(node.type, TensorType):
        return None
    if not all(isinstance(i.op, Const) for i in node.inputs) or not node.type.static:
        return None
    read = sum(i.tensor.size for i in node.inputs)
    if node.type.size > max(read, GROWTH_LIMIT):
        return Miss(f"{node.type.size} elements from {read}")
    value = node.op.eval(*(i.op.value for i in node.inputs))  # type: ignore[attr-defined]
    return Const(value.detach(), node.type.quant)()


def batch_norm_into_scale(node: Node, sweep: Sweep) -> Node | Miss | None:
    """batch_norm(x) => x * s + t, with s = w / sqrt(var + eps), t = b - mean * s."""
    match node:
        case Node(BatchNorm(eps), (x, Node(Const() as m), Node(Const() as v), Node(Const() as w),
                                   Node(Const() as b))):  # fmt: skip
            scale = w.value.double() / (v.value.double() + eps).sqrt()
            shift = b.value.double() - m.value.double() * scale
            shape = [-1, *[1] * (x.tensor.rank - 2)]
            return Add()(
                Mul()(x, const(scale.float().reshape(shape))), const(shift.float().reshape(shape))
            )
        case Node(BatchNorm(), _):
            return Miss("its statistics are not constant")
    return None


def scale_into_anchor(node: Node, sweep: Sweep) -> Node | Miss | None:
    """conv2d(x, w, b) * s => conv2d(x, w * s, b * s); linear likewise."""
    match node:
        case Node(Mul(), (Node(Conv2d() | Linear() as op, (x, Node(Const() as w), *b)) as anchor,
                          Node(Const() as s))):  # fmt: skip
            scale = per_channel(s.value, anchor)
            if scale is None:
                return Miss(f"the factor {tuple(s.value.shape)} is not one per channel")
            if not sweep.only_use(anchor):
                return Miss(f"%{anchor.name} has a second user")
            rows = scale.double().reshape(-1, *[1] * (w.value.ndim - 1))
            weight = _kept(anchor.inputs[1], (w.value.double() * rows).float())
            return op(x, weight, *(_kept(n, _value(n) * scale) for n in b))
    return None


def offset_into_anchor(node: Node, sweep: Sweep) -> Node | Miss | None:
    """conv2d(x, w, b) + t => conv2d(x, w, b + t); linear likewise."""
    match node:
        case Node(Add(), (Node(Conv2d() | Linear() as op, (x, w, *b)) as anchor,
                          Node(Const() as t))):  # fmt: skip
            offset = per_channel(t.value, anchor)
            if offset is None:
                return Miss(f"the addend {tuple(t.value.shape)} is not one per channel")
            if not sweep.only_use(anchor):
                return Miss(f"%{anchor.name} has a second user")
            if not all(isinstance(n.op, Const) for n in b):
                return Miss("its bias is not constant")
            bias = _kept(b[0], _value(b[0]) + offset) if b else const(offset)
            return op(x, w, bias)
    return None


def per_channel(value: torch.Tensor, anchor: Node) -> torch.Tensor | None:
    """A constant as one value per output channel of the anchor, float32 [C]; None if it varies."""
    channels = anchor.inputs[1].tensor.shape[0]
    assert isinstance(channels, int)
    after = 0 if isinstance(anchor.op, Linear) else 2  # axes behind the channel
    if value.ndim > anchor.tensor.rank:
        return None
    if value.numel() == 1:
        return value.reshape(1).expand(channels).contiguous()
    shape = (1,) * (anchor.tensor.rank - value.ndim) + tuple(value.shape)
    axis = anchor.tensor.rank - 1 - after
    if shape[axis] != channels or value.numel() != channels:
        return None
    return value.reshape(-1)


def _value(node: Node) -> torch.Tensor:
    assert isinstance(node.op, Const)
    return node.op.value


def _kept(source: Node, value: torch.Tensor) -> Node:
    """A changed constant under the name of the one it comes from."""
    return Const(value)(name=source.name, note=source.note)


RULES: tuple[Rule, ...] = (
    batch_norm_into_scale, scale_into_anchor, offset_into_anchor, constants,
)  # fmt: skip


@declare("fold", (Level.FLOAT, Level.QDQ, Level.INTEGER), exact=True, required=True)
@dataclass(frozen=True)
class Fold(Pass):
    """Apply the rules above until nothing changes."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        rules = RULES if graph.level is Level.FLOAT else (constants,)
        return rewrite(graph, rules, ctx)


fold = Fold()
