"""A formula's types before it is written: which laws hold in float64, which in float32 only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompiler.graph import Node
from qcompiler.types import TensorType

FLOAT32, FLOAT64 = "float32", "float64"


class MixedError(TypeError):
    """A formula mixes two types, or takes a number of 64 bits apart as one of 32."""


@dataclass(frozen=True)
class Kind:
    """The type of a value; constants of float32 become float64 beside one, as in torch."""

    dtype: str
    constant: bool = False


def alike(a: Kind, b: Kind) -> Kind:
    """The type of what two operands make. Raises MixedError."""
    if a.dtype == b.dtype:
        return Kind(a.dtype, a.constant and b.constant)
    if {a.dtype, b.dtype} == {FLOAT32, FLOAT64}:
        narrow, wide = (a, b) if a.dtype == FLOAT32 else (b, a)
        if narrow.constant:
            return wide
    raise MixedError(f"{a.dtype} and {b.dtype}")


@dataclass(frozen=True)
class Kinds:
    """`arith.RowAlgebra` over the types of values."""

    def const(self, value: float, dtype: str = FLOAT32, /) -> Kind:
        return Kind(dtype, constant=True)

    def binary(self, a: Kind, b: Kind, /) -> Kind:
        return alike(a, b)

    def compare(self, a: Kind, b: Kind, /) -> Kind:
        return Kind("bool", alike(a, b).constant)

    def same(self, a: Kind, *_: Any) -> Kind:
        return a

    add = sub = mul = div = trunc_div = min = max = binary
    lt = gt = le = ge = eq = logical_and = logical_or = compare
    sqrt = neg = abs = rint = logical_not = shift_right = keep = lookup = same
    row_max = row_top = row_sum = same

    def where(self, condition: Kind, a: Kind, b: Kind, /) -> Kind:
        return alike(a, b)

    def cast(self, a: Kind, dtype: str, /) -> Kind:
        return Kind(dtype, a.constant)

    def exp2i(self, i: Kind, /) -> Kind:
        return Kind(FLOAT32, i.constant)

    def float_bits(self, a: Kind, /) -> Kind:
        if a.dtype != FLOAT32:
            raise MixedError(f"the bits of a {a.dtype}")
        return Kind("int32", a.constant)

    def bits_float(self, a: Kind, /) -> Kind:
        return Kind(FLOAT32, a.constant)

    def row_size(self, x: Kind, /) -> Kind:
        return Kind(FLOAT32, constant=True)


def narrow(node: Node) -> str | None:
    """Why a node on float64 has no kernel; None for any other, or where its law holds there.

    exp, log and what is made of them are polynomials of float32.
    """
    operands = [i.type for i in node.inputs if isinstance(i.type, TensorType)]
    results = (node.type,) if isinstance(node.type, TensorType) else node.type.items
    if not any(t.dtype.value == FLOAT64 for t in (*operands, *results)):
        return None
    cure = "convert its input with .float()"
    try:
        made = node.op.law(Kinds(), *(Kind(t.dtype.value) for t in operands))  # type: ignore[attr-defined]
    except MixedError:
        return f"{node.op.kind} is defined for float32, not float64; {cure}"
    kinds = made if isinstance(made, tuple) else (made,)
    if [k.dtype for k in kinds] != [t.dtype.value for t in results]:
        return f"{node.op.kind} is defined for float32, not float64; {cure}"
    return None
