"""Names: what a reader of the PyTorch model calls the layers and values of a graph."""

from __future__ import annotations

from qcompiler.graph import Node
from qcompiler.op import Movement
from qcompiler.ops import (
    Const,
    Conv2d,
    GroupedIntLinear,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Linear,
    Lookup,
    WeightOnlyLinear,
)  # fmt: skip
from qcompiler.types import DType, TensorType

WEIGHTED = (Conv2d, Linear, IntLinear, WeightOnlyLinear, GroupedIntLinear)
"""Layers; IntConv2d is a Conv2d."""
INTEGER = (IntConv2d, IntLinear, GroupedIntLinear, IntMatmul, IntAdd, IntMul, IntSumPool2d, Lookup)
MADE_BY_PASSES = (".quantize", ".q", ".dq")  # what passes append to the name of a value
PARAMETERS = (".weight", ".bias", ".w", ".b")


def layer_name(node: Node) -> str:
    """The module path its weight has, or the name of the value, without what passes append."""
    if isinstance(node.op, WEIGHTED) and isinstance(node.inputs[1].op, Const):
        weight = _bare(node.inputs[1].name)
        if weight.endswith(PARAMETERS):
            return weight.rpartition(".")[0]
    return value_name(node)


def value_name(node: Node) -> str:
    """The name of the float value that the node computes: `y.q.int_add` => `y`."""
    made = isinstance(node.op, INTEGER) or holds_codes(node)
    return _bare(node.name.removesuffix(f".{node.op.kind}" if made else ""))


def _bare(name: str) -> str:
    for suffix in MADE_BY_PASSES:
        name = name.removesuffix(suffix)
    return name


def holds_codes(node: Node) -> bool:
    """Whether codes are moved as they are (max pool)."""
    return isinstance(node.op, Movement) and dtype_of(node).is_code


def dtype_of(node: Node) -> DType:
    return node.type.dtype if isinstance(node.type, TensorType) else node.type.items[0].dtype
