"""Elementwise arithmetic: promotion as in PyTorch, then one op; the rest is composed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.op import Op
from qcompiler.ops import (
    Abs,
    Add,
    And,
    Clamp,
    Compare,
    Cos,
    Div,
    Erf,
    Exp,
    Log,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Not,
    Or,
    Relation,
    Round,
    Rsqrt,
    Sin,
    Sqrt,
    Sub,
    Where,
)  # fmt: skip
from qcompiler.types import DType, Sym

aten = torch.ops.aten
Operand = Node | Number

INTEGRAL_FROM = {DType.FLOAT32: 2.0**23, DType.FLOAT64: 2.0**52}
"""Values from here on are integral."""


def common(*operands: Operand) -> DType:
    """The dtype PyTorch computes in: 0-d tensors and Python numbers weigh less than tensors."""
    shown = [_stand_in(o) for o in operands]
    result = shown[0]
    for other in shown[1:]:
        result = torch.empty(_rank_of(result, other), dtype=torch.result_type(result, other))
    return DType.of(
        result.dtype if isinstance(result, torch.Tensor) else torch.tensor(result).dtype
    )


def _stand_in(x: Operand) -> Any:
    """An empty tensor (or 0-d one) of the operand's dtype, for `torch.result_type`."""
    if isinstance(x, Sym):
        raise Refusal(f"arithmetic with the symbolic size {x!r}")
    if not isinstance(x, Node):
        return x
    return torch.empty((0,) if x.tensor.rank else (), dtype=x.tensor.dtype.torch)


def _rank_of(*shown: Any) -> tuple[int, ...]:
    return (0,) if any(isinstance(s, torch.Tensor) and s.dim() for s in shown) else ()


def promoted(b: Builder, *operands: Operand) -> list[Node]:
    dtype = common(*operands)
    return [b.cast(o, dtype) for o in operands]


def unary(op: Op) -> Handler:
    """A row of a float function; integers are cast to the result's dtype first."""
    return lambda b, x, *_: b(op, b.cast(x, b.out.dtype))


def same_dtype(op: Op) -> Handler:
    return lambda b, x, *_: b(op, x)


def binary(op: Op) -> Handler:
    """A row of arithmetic in the result's dtype."""
    return lambda b, x, y, *_: arithmetic(b, op, x, y)


def arithmetic(b: Builder, op: Op, x: Operand, y: Operand) -> Node:
    neutrals: dict[type[Op], Number] = {Add: 0, Sub: 0, Mul: 1, Div: 1}
    neutral = neutrals.get(type(op))
    if isinstance(x, Node) and neutral is not None and _is_number(b, y, neutral):
        exact = not x.tensor.dtype.is_float or neutral == 1
        if exact and x.tensor.dtype is b.out.dtype and x.tensor.shape == b.out.shape:
            return x
    return b(op, b.cast(x, b.out.dtype), b.cast(y, b.out.dtype))


def _is_number(b: Builder, x: Operand, value: Number) -> bool:
    if isinstance(x, Node):
        tensor = b.known.get(x)
        return tensor is not None and tensor.dim() == 0 and bool(tensor == value)
    return x == value


def scaled(b: Builder, x: Operand, alpha: Number) -> Operand:
    if alpha == 1:
        return x
    return x * alpha if not isinstance(x, Node) else b(Mul(), *promoted(b, x, alpha))


def add(b: Builder, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    return _bool_or(b, Add(), x, scaled(b, y, alpha))


def multiply(b: Builder, x: Operand, y: Operand) -> Value:
    return _bool_or(b, Mul(), x, y)


def _bool_or(b: Builder, op: Op, x: Operand, y: Operand) -> Value:
    """PyTorch's + and * of two bools are `or` and `and`."""
    if b.out.dtype is not DType.BOOL:
        return arithmetic(b, op, x, y)
    logic = Or() if isinstance(op, Add) else And()
    return b(logic, b.cast(x, DType.BOOL), b.cast(y, DType.BOOL))


def compare(relation: Relation) -> Handler:
    return lambda b, x, y: b(Compare(relation), *promoted(b, x, y))


def logical(op: Op) -> Handler:
    return lambda b, *xs: b(op, *(b.cast(x, DType.BOOL) for x in xs))


def bitwise(op: Op) -> Handler:
    """And, or, not of bools; bit patterns of integers have no op."""

    def row(b: Builder, *xs: Operand) -> Value:
        if b.out.dtype is not DType.BOOL:
            raise Refusal("bitwise arithmetic on integers; only bools are supported")
        return b(op, *(b.cast(x, DType.BOOL) for x in xs))

    return row


def clamp(b: Builder, x: Node, lo: Operand | None = None, hi: Operand | None = None) -> Value:
    numbers = all(v is None or not isinstance(v, Node) for v in (lo, hi))
    x = b.cast(x, b.out.dtype)
    if numbers and b.out.dtype is DType.FLOAT32:
        low = -math.inf if lo is None else float(lo)  # type: ignore[arg-type]
        return b(Clamp(low, math.inf if hi is None else float(hi)), x)  # type: ignore[arg-type]
    for op, limit in ((Maximum(), lo), (Minimum(), hi)):
        x = x if limit is None else b(op, x, b.cast(limit, b.out.dtype))
    return x


def truncate(b: Builder, x: Node) -> Node:
    """Toward zero; what is integral already (large, inf) stays, and so does NaN."""
    whole = b.cast(b.cast(x, DType.INT64), x.tensor.dtype)
    limit = b.const(INTEGRAL_FROM[x.tensor.dtype], x.tensor.dtype)
    small = b(Compare(Relation.LT), b(Abs(), x), limit)
    return b(Where(), small, whole, x)


def floor(b: Builder, x: Node) -> Node:
    whole = truncate(b, x)
    above = b(Compare(Relation.GT), whole, x)
    return b(Sub(), whole, b.cast(above, x.tensor.dtype))


def rounding(function: Any) -> Handler:
    """A row of floor, ceil or trunc; integers stay."""
    return lambda b, x, *_: function(b, x) if x.tensor.dtype.is_float else x


def reciprocal(b: Builder, x: Node) -> Node:
    x = b.cast(x, b.out.dtype)
    return b(Div(), b.const(1.0, x.tensor.dtype), x)


def times(b: Builder, x: Node, factor: float) -> Node:
    return x if factor == 1 else b(Mul(), x, b.const(factor, x.tensor.dtype))


def plus(b: Builder, x: Node, term: float) -> Node:
    return b(Add(), x, b.const(term, x.tensor.dtype))


def sign(b: Builder, x: Node) -> Node:
    zero = b.const(0, x.tensor.dtype)
    up, down = (b(Compare(r), x, zero) for r in (Relation.GT, Relation.LT))
    return b(Sub(), b.cast(up, b.out.dtype), b.cast(down, b.out.dtype))


def where(b: Builder, condition: Node, x: Operand, y: Operand) -> Value:
    condition = b.cast(condition, DType.BOOL)
    return b(Where(), condition, b.cast(x, b.out.dtype), b.cast(y, b.out.dtype))


def lerp(b: Builder, x: Node, y: Node, weight: Operand) -> Value:
    return b(Add(), x, b(Mul(), b(Sub(), y, x), b.cast(weight, x.tensor.dtype)))


def addcmul(op: Op) -> Handler:
    def row(b: Builder, x: Node, y: Node, z: Node, value: Number = 1) -> Value:
        term = b(op, *(b.cast(o, b.out.dtype) for o in (y, z)))
        return b(Add(), b.cast(x, b.out.dtype), times(b, term, value))

    return row


def is_infinite(b: Builder, x: Node) -> Value:
    return b(Compare(Relation.EQ), b(Abs(), x), b.const(math.inf, x.tensor.dtype))


def isclose_to_itself(relation: Relation) -> Handler:
    """NaN is the only value that differs from itself."""
    return lambda b, x: b(Compare(relation), x, x)


def _tan(b: Builder, x: Node) -> Value:
    return b(Div(), b(Sin(), x), b(Cos(), x))


def _hyperbolic(op: Op) -> Handler:
    """(e^x + e^-x) / 2, or with the difference."""

    def row(b: Builder, x: Node) -> Value:
        x = b.cast(x, b.out.dtype)
        return times(b, b(op, b(Exp(), x), b(Exp(), b(Neg(), x))), 0.5)

    return row


def _logged(scale: float) -> Handler:
    return lambda b, x: times(b, b(Log(), b.cast(x, b.out.dtype)), scale)


COMPARISONS = {
    "lt": Relation.LT, "le": Relation.LE, "gt": Relation.GT, "ge": Relation.GE,
    "eq": Relation.EQ, "ne": Relation.NE,
}  # fmt: skip

ROWS: Mapping[Any, Handler] = {
    aten.add.Tensor: add,
    aten.add.Scalar: add,
    aten.sub.Tensor: lambda b, x, y, alpha: arithmetic(b, Sub(), x, scaled(b, y, alpha)),
    aten.sub.Scalar: lambda b, x, y, alpha: arithmetic(b, Sub(), x, scaled(b, y, alpha)),
    aten.rsub.Tensor: lambda b, x, y, alpha: arithmetic(b, Sub(), y, scaled(b, x, alpha)),
    aten.rsub.Scalar: lambda b, x, y, alpha: arithmetic(b, Sub(), y, scaled(b, x, alpha)),
    aten.mul.Tensor: multiply,
    aten.mul.Scalar: multiply,
    aten.maximum.default: binary(Maximum()),
    aten.minimum.default: binary(Minimum()),
    aten.max.other: binary(Maximum()),
    aten.min.other: binary(Minimum()),
    aten.reciprocal.default: reciprocal,
    aten.neg.default: same_dtype(Neg()),
    aten.abs.default: same_dtype(Abs()),
    aten.sign.default: sign,
    aten.sgn.default: sign,
    aten.round.default: rounding(lambda b, x: b(Round(), x)),
    aten.floor.default: rounding(floor),
    aten.ceil.default: rounding(lambda b, x: b(Neg(), floor(b, b(Neg(), x)))),
    aten.trunc.default: rounding(truncate),
    aten.sqrt.default: unary(Sqrt()),
    aten.rsqrt.default: unary(Rsqrt()),
    aten.exp.default: unary(Exp()),
    aten.exp2.default: lambda b, x: b(Exp(), times(b, b.cast(x, b.out.dtype), math.log(2))),
    aten.expm1.default: lambda b, x: plus(b, b(Exp(), b.cast(x, b.out.dtype)), -1.0),
    aten.log.default: unary(Log()),
    aten.log2.default: _logged(1 / math.log(2)),
    aten.log10.default: _logged(1 / math.log(10)),
    aten.log1p.default: lambda b, x: b(Log(), plus(b, b.cast(x, b.out.dtype), 1.0)),
    aten.sin.default: unary(Sin()),
    aten.cos.default: unary(Cos()),
    aten.tan.default: _tan,
    aten.sinh.default: _hyperbolic(Sub()),
    aten.cosh.default: _hyperbolic(Add()),
    aten.erf.default: unary(Erf()),
    aten.clamp.default: clamp,
    aten.clamp.Tensor: clamp,
    aten.clamp_min.default: clamp,
    aten.clamp_min.Tensor: clamp,
    aten.clamp_max.default: lambda b, x, hi: clamp(b, x, None, hi),
    aten.clamp_max.Tensor: lambda b, x, hi: clamp(b, x, None, hi),
    aten.where.self: where,
    aten.where.ScalarOther: where,
    aten.where.ScalarSelf: where,
    aten.where.Scalar: where,
    aten.masked_fill.Scalar: lambda b, x, mask, value: where(b, mask, value, x),
    aten.masked_fill.Tensor: lambda b, x, mask, value: where(b, mask, value, x),
    aten.lerp.Scalar: lerp,
    aten.lerp.Tensor: lerp,
    aten.addcmul.default: addcmul(Mul()),
    aten.addcdiv.default: addcmul(Div()),
    aten.isnan.default: isclose_to_itself(Relation.NE),
    aten.isinf.default: is_infinite,
    aten.logical_and.default: logical(And()),
    aten.logical_or.default: logical(Or()),
    aten.logical_not.default: logical(Not()),
    aten.logical_xor.default: logical(Compare(Relation.NE)),
    aten.bitwise_xor.Tensor: bitwise(Compare(Relation.NE)),
    aten.bitwise_not.default: bitwise(Not()),
    **{
        overload: bitwise(op)
        for op, names in ((And(), ("bitwise_and", "__and__")), (Or(), ("bitwise_or", "__or__")))
        for name in names
        for overload in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    },
    **{
        overload: compare(relation)
        for name, relation in COMPARISONS.items()
        for overload in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    },
}
