"""Binary functions beyond plain arithmetic: powers, and the two halves of a whole division."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from qcompiler import arith
from qcompiler.op import Elementwise, Float, QuantRule
from qcompiler.types import DType, TensorType


@dataclass(frozen=True)
class Pow(Elementwise):
    """x ** y for float32, with the special values of C's pow (IEEE 754-2019, 9.2.1)."""

    quant: ClassVar[QuantRule] = Float("a power of two tensors is kept in float")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.power(n, *xs)

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(all(i.dtype is DType.FLOAT32 for i in inputs), "float32 operands", *inputs)
        return DType.FLOAT32


@dataclass(frozen=True)
class Fmod(Elementwise):
    """The remainder of float32 numbers that has x's sign and is smaller than |y|; exact."""

    quant: ClassVar[QuantRule] = Float("a remainder is kept in float")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.fmod(n, *xs)

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(all(i.dtype is DType.FLOAT32 for i in inputs), "float32 operands", *inputs)
        return DType.FLOAT32


@dataclass(frozen=True)
class TruncDiv(Elementwise):
    """The quotient of int64 numbers, toward zero; exact. A division by zero gives x."""

    quant: ClassVar[QuantRule] = Float("a division of whole numbers is not quantized")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.trunc_div(n, *xs)

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(all(i.dtype is DType.INT64 for i in inputs), "int64 operands", *inputs)
        return DType.INT64
