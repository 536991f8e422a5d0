"""Tensors made from nothing: constants where every size is known, ops where one is symbolic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import Arange

aten = torch.ops.aten


def filled(value: Number) -> Handler:
    """A row of zeros, ones and their like; `empty` is zeros, so that results repeat."""
    return lambda b, *_: b.full(b.out.shape, value, b.out.dtype)


def full(b: Builder, _: Any, value: Number, *__: Any) -> Value:
    return b.full(b.out.shape, _number(value), b.out.dtype)


def new_full(b: Builder, _: Any, __: Any, value: Number, *___: Any) -> Value:
    return b.full(b.out.shape, _number(value), b.out.dtype)


def fill(b: Builder, x: Node, value: Node | Number) -> Value:
    if isinstance(value, Node):
        return b.expand(b.cast(value, b.out.dtype), b.out.shape)
    return b.full(b.out.shape, value, b.out.dtype)


def _number(value: Any) -> Number:
    if not isinstance(value, Number):
        raise Refusal("a tensor filled with a symbolic size")
    return value


def arange(b: Builder, start: Any, step: Any = 1) -> Value:
    if not isinstance(start, int) or not isinstance(step, int):
        raise Refusal("arange with a symbolic start or a fractional step")
    (size,) = b.out.shape
    return b(Arange(start, step, size, b.out.dtype))


ZEROS = (
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.empty.memory_format,
    aten.empty_like.default, aten.new_empty.default, aten.zero.default,
)  # fmt: skip

ROWS: Mapping[Any, Handler] = {
    **dict.fromkeys(ZEROS, filled(0)),
    aten.ones.default: filled(1),
    aten.ones_like.default: filled(1),
    aten.new_ones.default: filled(1),
    aten.full.default: full,
    aten.full_like.default: full,
    aten.new_full.default: new_full,
    aten.scalar_tensor.default: lambda b, v, *_: b.full((), _number(v), b.out.dtype),
    aten.fill.Scalar: fill,
    aten.fill.Tensor: fill,
    aten.arange.default: lambda b, *_: arange(b, 0),
    aten.arange.start: lambda b, start, *_: arange(b, start),
    aten.arange.start_step: lambda b, start, _, step, *__: arange(b, start, step),
}
