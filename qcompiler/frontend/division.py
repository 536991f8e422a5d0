"""Division: plain, rounded down or toward zero, and its remainders, as PyTorch defines them.

Rounded quotients of floats follow c10/util/generic_math.h, remainders of an exact fmod; those of
integers are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value
from qcompiler.frontend.elementwise import Operand, arithmetic, floor, truncate
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import Add, And, Compare, Div, Fmod, Mul, Relation, Sub, TruncDiv, Where
from qcompiler.types import DType

aten = torch.ops.aten


def divide(b: Builder, x: Operand, y: Operand, rounding: str | None = None) -> Value:
    if rounding is None:
        return arithmetic(b, Div(), x, y)
    if not b.out.dtype.is_float:
        return b.cast(_whole_quotient(b, *_integers(b, x, y), rounding == "floor"), b.out.dtype)
    if rounding == "floor":
        return _floor_quotient(b, *_floats(b, x, y))
    return truncate(b, arithmetic(b, Div(), x, y))


def remainder(b: Builder, x: Operand, y: Operand) -> Value:
    """What is left of x by y, with y's sign."""
    if not b.out.dtype.is_float:
        x, y = _integers(b, x, y)
        left = b(Sub(), x, b(Mul(), _whole_quotient(b, x, y, True), y))
        return b.cast(left, b.out.dtype)
    x, y = _floats(b, x, y)
    left = b(Fmod(), x, y)
    return b(Where(), _off(b, left, y), b(Add(), left, y), left)


def fmod(b: Builder, x: Operand, y: Operand) -> Value:
    """What is left of x by y, with x's sign."""
    if b.out.dtype.is_float:
        return b(Fmod(), *_floats(b, x, y))
    x, y = _integers(b, x, y)
    return b.cast(_left(b, x, b(TruncDiv(), x, y), y), b.out.dtype)


def _floats(b: Builder, x: Operand, y: Operand) -> tuple[Node, Node]:
    if b.out.dtype is not DType.FLOAT32:
        raise Refusal(
            f"a rounded division or remainder in {b.out.dtype.value}; cast to float32 or int64"
        )
    return b.cast(x, DType.FLOAT32), b.cast(y, DType.FLOAT32)


def _integers(b: Builder, x: Operand, y: Operand) -> tuple[Node, Node]:
    x, y = b.cast(x, DType.INT64), b.cast(y, DType.INT64)
    if y in b.known and bool((b.known[y] == 0).any()):
        raise Refusal("an integer division by zero")
    return x, y


def _off(b: Builder, left: Node, y: Node) -> Node:
    """Whether a remainder toward zero has not the divisor's sign: rounding down leaves y more."""
    zero = b.const(0, y.tensor.dtype)
    signs = (b(Compare(Relation.LT), v, zero) for v in (left, y))
    return b(And(), b(Compare(Relation.NE), left, zero), b(Compare(Relation.NE), *signs))


def _left(b: Builder, x: Node, quotient: Node, y: Node) -> Node:
    return b(Sub(), x, b(Mul(), quotient, y))


def _whole_quotient(b: Builder, x: Node, y: Node, down: bool) -> Node:
    quotient = b(TruncDiv(), x, y)
    if not down:
        return quotient
    off = _off(b, _left(b, x, quotient, y), y)
    return b(Sub(), quotient, b.cast(off, DType.INT64))


def _floor_quotient(b: Builder, x: Node, y: Node) -> Node:
    """The nearest float to `(x - fmod(x, y)) / y`, 1 less where the remainder is off."""
    left = b(Fmod(), x, y)
    quotient = b(Div(), b(Sub(), x, left), y)
    quotient = b(Sub(), quotient, b.cast(_off(b, left, y), DType.FLOAT32))
    whole = floor(b, quotient)
    above = b(Compare(Relation.GT), b(Sub(), quotient, whole), b.const(0.5, DType.FLOAT32))
    whole = b(Add(), whole, b.cast(above, DType.FLOAT32))
    by_zero = b(Compare(Relation.EQ), y, b.const(0.0, DType.FLOAT32))
    return b(Where(), by_zero, b(Div(), x, y), whole)


ROWS: Mapping[Any, Handler] = {
    aten.div.Tensor: divide,
    aten.div.Scalar: divide,
    aten.div.Tensor_mode: divide,
    aten.div.Scalar_mode: divide,
    aten.floor_divide.default: lambda b, x, y: divide(b, x, y, "floor"),
    aten.floor_divide.Scalar: lambda b, x, y: divide(b, x, y, "floor"),
    aten.remainder.Tensor: remainder,
    aten.remainder.Scalar: remainder,
    aten.remainder.Scalar_Tensor: remainder,
    aten.fmod.Tensor: fmod,
    aten.fmod.Scalar: fmod,
}
