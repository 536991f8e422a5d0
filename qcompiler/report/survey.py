"""Describe: the report of an INTEGER graph, read off the graph itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

from qcompiler.graph import Graph, Node
from qcompiler.names import INTEGER, WEIGHTED, dtype_of, holds_codes, layer_name, value_name
from qcompiler.op import Movement
from qcompiler.ops import (
    Add,
    Attention,
    AvgPool2d,
    Const,
    Conv2d,
    Dequantize,
    DynamicQuantize,
    Get,
    GroupedIntLinear,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Linear,
    Lookup,
    Matmul,
    MaxPool2d,
    Quantize,
    Requantize,
    Rescale,
    Tuple,
    WeightOnlyLinear,
)  # fmt: skip
from qcompiler.report.facts import Layer, Report
from qcompiler.types import DType, Sym, TensorType

FLOAT32_BYTES = 4
HALF_BYTE = 7  # the largest code of 4 bits
FLOAT_OPERAND = "what it reads is computed in float"  # of a node for itself planned as integer
PRODUCTS = (Matmul, IntMatmul)
CONVERSIONS = (Quantize, Dequantize, DynamicQuantize, Requantize, Rescale)

# How a reader of the PyTorch model calls what an integer op computes.
FAMILIAR = {
    IntConv2d: "conv2d",
    IntLinear: "linear",
    GroupedIntLinear: "linear",
    WeightOnlyLinear: "linear",
    IntMatmul: "matmul",
    IntAdd: "add",
    IntMul: "mul",
    IntSumPool2d: "avg_pool2d",
    Lookup: "table",
}



def describe(graph: Graph, float_graph: Graph | None = None, target: str = "") -> Report:
    """The report of an INTEGER graph (of any level that has no fused regions).

    float_graph: what `graph` was made from; gives the true float32 size and the names of ops that
    became tables. Without it each layer's parameters count as four bytes an element.
    target: what it is built for, where the graph does not say.
    """
    origins = {node.name: node for node in float_graph.nodes()} if float_graph else {}
    nodes = graph.nodes()
    layers = tuple(_layer(node, origins) for node in nodes if computes(node))
    others = _other_constants(nodes)
    before = float32_size(float_graph) if float_graph else None
    return Report(
        target=target or graph.target,
        recipe=graph.recipe,
        layers=layers,
        quantizes=sum(isinstance(n.op, Quantize | DynamicQuantize) for n in nodes),
        dequantizes=sum(isinstance(n.op, Dequantize | Rescale) for n in nodes),
        bytes_float32=before or sum(layer.bytes_float32 for layer in layers) + others,
        bytes_now=size(n for n in nodes if isinstance(n.op, Const)),
    )


def computes(node: Node) -> bool:
    """Whether the node is a layer to a reader: neither data movement nor a conversion.

    The bias that follows a dynamically quantized layer belongs to that conversion.
    """
    if isinstance(node.op, Movement):
        return isinstance(node.op, MaxPool2d)
    if isinstance(node.op, Add) and node.note.precision is DType.INT8:
        return not any(isinstance(i.op, Rescale) for i in node.inputs)
    return bool(node.inputs) and not isinstance(node.op, (*CONVERSIONS, Get, Tuple))


def _layer(node: Node, origins: dict[str, Node]) -> Layer:
    integer = isinstance(node.op, INTEGER) or holds_codes(node)
    stored = parameters(node)
    return Layer(
        name=layer_name(node),
        op=_familiar(node, origins),
        detail=detail(node),
        origin=node.note.origin,
        macs=macs(node),
        precision=_precision(node) if integer else dtype_of(node).value,
        reason="" if integer else node.note.reason or FLOAT_OPERAND,
        bytes_float32=0 if isinstance(node.op, Lookup) else FLOAT32_BYTES * elements(stored),
        bytes_now=size(stored),
    )


def _familiar(node: Node, origins: dict[str, Node]) -> str:
    source = origins.get(value_name(node))
    if isinstance(node.op, Lookup) and source is not None:
        return source.op.kind
    return FAMILIAR.get(type(node.op), node.op.kind)


def _precision(node: Node) -> str:
    """`int8`: the width of the codes that are read, whether or not they have a sign."""
    codes = [i.tensor.dtype for i in node.inputs if i.tensor.dtype.is_code]
    return f"int{min((c.bits for c in codes), default=DType.INT8.bits)}"


def macs(node: Node) -> int:
    """Multiply-adds for the traced shape; a symbolic dimension counts as its least value."""
    if isinstance(node.op, Attention):
        q, k, v = (i.tensor for i in node.inputs[:3])
        return _count(q) * _dim(k.shape[-2]) + _count(node.tensor) * _dim(v.shape[-2])
    if isinstance(node.op, WEIGHTED):
        return _count(node.tensor) * math.prod(map(_dim, node.inputs[1].tensor.shape[1:]))
    if isinstance(node.op, PRODUCTS):
        return _count(node.tensor) * _dim(node.inputs[0].tensor.shape[-1])
    return 0


def _count(tensor: TensorType) -> int:
    return math.prod(map(_dim, tensor.shape))


def _dim(dim: int | Sym) -> int:
    return dim.min if isinstance(dim, Sym) else dim


def detail(node: Node) -> str:
    """Facts about shapes in the reader's words: `3x3 /2, 32 -> 64`."""
    op = node.op
    if isinstance(op, Conv2d):
        out, per_group, height, width = node.inputs[1].tensor.ints
        step = f" /{_pair(op.stride)}" if max(op.stride) > 1 else ""
        wide = f", dilated {_pair(op.dilation)}" if max(op.dilation) > 1 else ""
        if op.groups == out and per_group == 1:
            return f"depthwise {height}x{width}{step}{wide}, {out}"
        split = f", {op.groups} groups" if op.groups > 1 else ""
        return f"{height}x{width}{step}{wide}, {per_group * op.groups} -> {out}{split}"
    if isinstance(op, Linear | IntLinear | WeightOnlyLinear | GroupedIntLinear):
        out, width = node.inputs[1].tensor.ints
        return f"{width} -> {out}{_coding(node)}"
    if isinstance(op, MaxPool2d | AvgPool2d | IntSumPool2d):
        height, width = op.window.kernel
        return f"{height}x{width}"
    shape = node.type.shape if isinstance(node.type, TensorType) else ()
    return "x".join(map(repr, shape))


def _coding(node: Node) -> str:
    """How the weights of a layer are coded where that is not the rule."""
    if not isinstance(node.op, WeightOnlyLinear | GroupedIntLinear):
        return ""
    group = node.op.group
    bits = f", {_bits(node.inputs[1])}-bit weights"
    return bits if group is None else f"{bits} in groups of {group}"


def _pair(pair: tuple[int, int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def parameters(node: Node) -> list[Node]:
    """The constants a layer brings along: weight and bias, tables, affine parameters."""
    return [i for i in dict.fromkeys(node.inputs) if isinstance(i.op, Const)]


def elements(constants: Iterable[Node]) -> int:
    return sum(n.tensor.size for n in constants)


def size(constants: Iterable[Node]) -> int:
    """Bytes of constants; equal ones are stored once."""
    distinct = {n.op: n for n in constants}
    return sum(n.tensor.size * _bits(n) // 8 for n in distinct.values())


def _bits(node: Node) -> int:
    """Bits that an element takes where it is stored: codes within -7..7 lie two to a byte."""
    quant = node.tensor.quant
    if quant is not None and -HALF_BYTE <= quant.qmin <= quant.qmax <= HALF_BYTE:
        return 4
    return node.tensor.dtype.bits


def float32_size(graph: Graph) -> int:
    """Bytes of all constants of a float graph."""
    return size(n for n in graph.nodes() if isinstance(n.op, Const))


def _other_constants(nodes: list[Node]) -> int:
    """Bytes of constants that are no layer's, and no scale, zero point or multiplier."""
    read: set[Node] = set()
    for node in nodes:
        if computes(node):
            read.update(node.inputs)
        elif isinstance(node.op, CONVERSIONS):
            read.update(node.inputs[1:])
    return size(n for n in nodes if isinstance(n.op, Const) and n not in read)
