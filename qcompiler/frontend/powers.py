"""Powers: products for small whole exponents, else one op with the special values of C's pow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value
from qcompiler.frontend.elementwise import Operand, reciprocal
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import Exp, Log, Mul, Pow, Power, Rsqrt, Sqrt, Where
from qcompiler.types import DType

aten = torch.ops.aten

UNROLLED = 64
"""Largest whole exponent that becomes products: rounding 64 times costs less than `Pow` does."""


def power(b: Builder, x: Operand, exponent: Operand) -> Value:
    known = b.known.get(exponent) if isinstance(exponent, Node) else None
    if known is None:
        return _general(b, x, exponent) if isinstance(exponent, Node) else _scalar(b, x, exponent)
    if known.numel() and bool((known == known.flatten()[0]).all()):
        return _scalar(b, x, known.flatten()[0].item())
    if _unrolls(known):
        return _by_element(b, b.cast(x, b.out.dtype), known.to(torch.int64))
    return _general(b, x, exponent)


def _unrolls(exponents: torch.Tensor) -> bool:
    whole = not exponents.is_floating_point() or bool((exponents.round() == exponents).all())
    return whole and bool((exponents.abs() <= UNROLLED).all())


def _scalar(b: Builder, x: Operand, exponent: Number) -> Node:
    """The same exponent for all elements."""
    x = b.expand(b.cast(x, b.out.dtype), b.out.shape)
    if exponent == 0:
        return b.full(x.tensor.shape, 1, x.tensor.dtype)
    whole = math.isfinite(exponent) and exponent == int(exponent)
    if whole and (abs(exponent) <= UNROLLED or not x.tensor.dtype.is_float):
        return _integer_power(b, x, int(exponent))
    if whole or not math.isfinite(exponent):
        return _general(b, x, exponent)
    if exponent in (0.5, -0.5):
        return b(Sqrt() if exponent > 0 else Rsqrt(), x)
    logarithm = b(Log(), b.cast(x, DType.FLOAT32))
    return b.cast(b(Exp(), b(Mul(), logarithm, b.const(exponent, DType.FLOAT32))), b.out.dtype)


def _integer_power(b: Builder, x: Node, exponent: int) -> Node:
    if exponent < 0 and not x.tensor.dtype.is_float:
        raise Refusal("a negative power of integers; cast them to float first")
    y = x if abs(exponent) == 1 else b(Power(abs(exponent)), x)
    return y if exponent > 0 else reciprocal(b, y)


def _by_element(b: Builder, x: Node, exponents: torch.Tensor) -> Node:
    """`prod over bits k of where(bit k of exponent, x^(2^k), 1)`; 1 / that below 0."""
    if bool((exponents < 0).any()) and not x.tensor.dtype.is_float:
        raise Refusal("a negative power of integers; cast them to float first")
    size = exponents.abs()
    one, square, factors = b.const(1, x.tensor.dtype), x, []
    for k in range(int(size.max()).bit_length() if size.numel() else 0):
        square = b(Mul(), square, square) if k else square
        factors.append(b(Where(), b.value((size >> k) % 2 == 1), square, one))
    y = reduce(lambda a, c: b(Mul(), a, c), factors) if factors else one
    if bool((exponents < 0).any()):
        y = b(Where(), b.value(exponents < 0), reciprocal(b, y), y)
    return b.expand(y, b.out.shape)


def _general(b: Builder, x: Operand, exponent: Operand) -> Node:
    """An exponent that only the data says, or a constant one without a shorter form."""
    if not b.out.dtype.is_float:
        raise Refusal("a power of integers with an exponent that depends on the data or differs "
                      "from element to element; cast them to float first")  # fmt: skip
    base = _number(b, x)
    y = b.cast(exponent, DType.FLOAT32)
    if base is not None and math.isfinite(base) and base > 0 and base != 1:
        result = b(Exp(), b(Mul(), y, b.const(math.log(base), DType.FLOAT32)))
    else:
        result = b(Pow(), b.cast(x, DType.FLOAT32), y)
    return b.cast(result, b.out.dtype)


def _number(b: Builder, x: Operand) -> Number | None:
    """The value of an operand that is a number."""
    if not isinstance(x, Node):
        return x
    known = b.known.get(x)
    return known.item() if known is not None and known.dim() == 0 else None


ROWS: Mapping[Any, Handler] = {
    aten.pow.Tensor_Scalar: power,
    aten.pow.Tensor_Tensor: power,
    aten.pow.Scalar: power,
    aten.square.default: lambda b, x: b(Power(2), x),
}
