"""Matrix products and attention; a product with a constant matrix is a Linear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value, static
from qcompiler.frontend.elementwise import times
from qcompiler.frontend.errors import Absent, Refusal
from qcompiler.graph import Node
from qcompiler.ops import Add, Attention, Expand, Linear, Matmul, Mul
from qcompiler.types import DType

aten = torch.ops.aten


def linear(b: Builder, x: Node, w: Node, bias: Node | None = None) -> Value:
    """A weight of rank 1 is one row, and its result loses the last axis."""
    if w.tensor.rank == 1:
        w = b.reshape(w, (1, *w.tensor.shape))
        bias = None if bias is None else b.reshape(bias, (1,))
    y = b(Linear(), x, w, *([] if bias is None else [bias]))
    return b.reshape(y, b.out.shape)


def matmul(b: Builder, x: Node, y: Node, *_: Any) -> Value:
    """PyTorch's ranks: a vector on the left is a row, on the right a column."""
    if not x.tensor.dtype.is_float:
        raise Refusal("a matrix product of integers")
    row = b.reshape(x, (1, *x.tensor.shape)) if x.tensor.rank == 1 else x
    column = b.reshape(y, (*y.tensor.shape, 1)) if y.tensor.rank == 1 else y
    return b.reshape(product(b, row, column), b.out.shape)


def product(b: Builder, x: Node, y: Node) -> Node:
    if y in b.known and y.tensor.rank == 2:
        return b(Linear(), x, b.permute(y, (1, 0)))
    return b(Matmul(), x, y)


def add_product(
    b: Builder, bias: Node, x: Node, y: Node, beta: Number = 1, alpha: Number = 1
) -> Value:
    """beta * bias + alpha * (x @ y)."""
    plain = y in b.known and y.tensor.rank == 2 and beta == alpha == 1
    if plain and bias.tensor.shape == y.tensor.shape[1:]:
        return b(Linear(), x, b.permute(y, (1, 0)), bias)
    column = b.reshape(y, (*y.tensor.shape, 1)) if y.tensor.rank == 1 else y
    total = times(b, product(b, x, column), alpha)
    if y.tensor.rank == 1:
        total = b.reshape(total, total.tensor.shape[:-1])
    return b(Add(), total, times(b, bias, beta)) if beta else total


def outer(b: Builder, x: Node, y: Node) -> Value:
    return b(Mul(), b.reshape(x, (*x.tensor.shape, 1)), y)


def attention(
    b: Builder, q: Node, k: Node, v: Node, mask: Node | None = None, dropout: float = 0.0,
    causal: bool = False, scale: float | None = None, grouped: bool = False,
) -> Value:  # fmt: skip
    """Grouped queries: each key and value head serves several query heads, repeated in place."""
    if dropout:
        raise Refusal("attention with dropout; export the model in eval mode")
    if scale is None:
        (width,) = static(q.tensor.shape[-1:], "attention over heads")
        scale = 1.0 / math.sqrt(width)
    if grouped:
        k, v = (repeat_heads(b, x, q) for x in (k, v))
    masks = [] if mask is None or _passes_all(b, mask) else [_unexpanded(mask)]
    return b(Attention(float(scale), bool(causal)), q, k, v, *masks)


def flash_attention(
    b: Builder, q: Node, k: Node, v: Node, dropout: float, causal: bool, mask: Node | None,
    scale: float | None,
) -> Value:  # fmt: skip
    """Some exports name the kernel; its second result serves training only."""
    result = attention(b, q, k, v, mask, dropout, causal, scale)
    return result, Absent("the log-sum-exp of attention, which serves training only")


def repeat_heads(b: Builder, x: Node, q: Node) -> Node:
    heads, wanted = static((x.tensor.shape[-3], q.tensor.shape[-3]), "grouped attention")
    *batch, _, length, width = x.tensor.shape
    apart = b.reshape(x, (*batch, heads, 1, length, width))
    wide = b.expand(apart, (*batch, heads, wanted // heads, length, width))
    return b.reshape(wide, (*batch, wanted, length, width))


def _passes_all(b: Builder, mask: Node) -> bool:
    """A constant mask that hides nothing."""
    value = b.known.get(mask)
    if value is None:
        return False
    return bool(value.all()) if mask.tensor.dtype is DType.BOOL else not bool(value.any())


def _unexpanded(mask: Node) -> Node:
    """The mask broadcasts by itself; its repetition need not be stored."""
    while isinstance(mask.op, Expand) and mask.inputs[0].tensor.rank == mask.tensor.rank:
        (mask,) = mask.inputs
    return mask


ROWS: Mapping[Any, Handler] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.bmm.default: matmul,
    aten.mv.default: matmul,
    aten.dot.default: matmul,
    aten.addmm.default: add_product,
    aten.baddbmm.default: add_product,
    aten.addmv.default: add_product,
    aten.outer.default: outer,
    aten.scaled_dot_product_attention.default: attention,
    aten._scaled_dot_product_flash_attention_for_cpu.default: flash_attention,
}
