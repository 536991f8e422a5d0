"""The operations a formula of the law may use: written once, instantiated for torch and for TVM.

A formula is a function of an `Algebra` and values. The interpreter runs it over `TORCH`
(torch_algebra.py); a kernel generator runs the same function over TIR expressions. Both then do the
same IEEE operations in the same order, so their results are the same bits.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

V = TypeVar("V")

LANES = 16
"""Width of the fixed summation order of `RowAlgebra.row_sum` (design, section 5)."""


class Algebra(Protocol[V]):
    """Elementwise IEEE 754 arithmetic; every method rounds once, half to even; values broadcast.

    NaN may carry any payload and sign. The sign of a zero is part of the result.
    """

    def const(self, value: float, dtype: str = "float32", /) -> V:
        """A scalar; float32 is the double `value` rounded once; inf and NaN may occur."""

    def add(self, a: V, b: V, /) -> V:
        """a + b; integers wrap, but every formula proves that they do not."""

    def sub(self, a: V, b: V, /) -> V:
        """a - b."""

    def mul(self, a: V, b: V, /) -> V:
        """The rounded product, never contracted with a neighbouring add (TIR: arithmetic fence)."""

    def div(self, a: V, b: V, /) -> V:
        """IEEE division of floats, never a product with an approximate reciprocal."""

    def trunc_div(self, a: V, b: V, /) -> V:
        """The integer quotient toward zero; b is neither 0 nor -1."""

    def sqrt(self, a: V, /) -> V:
        """IEEE square root."""

    def neg(self, a: V, /) -> V:
        """The sign bit flipped: a * -1, not 0 - a."""

    def abs(self, a: V, /) -> V:
        """The sign bit cleared: abs(-0.0) is +0.0."""

    def rint(self, a: V, /) -> V:
        """Nearest integral float, ties to even."""

    def lt(self, a: V, b: V, /) -> V:
        """a < b, false for NaN."""

    def gt(self, a: V, b: V, /) -> V:
        """a > b, false for NaN."""

    def le(self, a: V, b: V, /) -> V:
        """a <= b, false for NaN."""

    def ge(self, a: V, b: V, /) -> V:
        """a >= b, false for NaN."""

    def eq(self, a: V, b: V, /) -> V:
        """a == b, false for NaN; +0.0 equals -0.0."""

    def where(self, condition: V, a: V, b: V, /) -> V:
        """a where the condition holds, else b; the value not chosen never shows, even as NaN."""

    def logical_and(self, a: V, b: V, /) -> V:
        """Both; operands are bools."""

    def logical_or(self, a: V, b: V, /) -> V:
        """Either; operands are bools."""

    def logical_not(self, a: V, /) -> V:
        """The opposite; the operand is a bool."""

    def min(self, a: V, b: V, /) -> V:
        """where(a < b, a, b): b if either is NaN, b if they are equal."""

    def max(self, a: V, b: V, /) -> V:
        """where(a > b, a, b): b if either is NaN, b if they are equal."""

    def cast(self, a: V, dtype: str, /) -> V:
        """Conversion of values: int to float rounds half to even, float to int truncates.

        A float that is cast is finite and within the integer type: every formula sees to it.
        """

    def exp2i(self, i: V, /) -> V:
        """float32 2**i of an int32 i in [-126, 127], by bits: (i + 127) << 23."""

    def float_bits(self, a: V, /) -> V:
        """The bit pattern of a float32 as int32."""

    def bits_float(self, a: V, /) -> V:
        """The float32 whose bit pattern an int32 holds."""

    def shift_right(self, a: V, count: int, /) -> V:
        """Arithmetic shift of an int32: floor(a / 2**count)."""

    def lookup(self, table: V, index: V, /) -> V:
        """table[index]; the table is a 1-D constant, the index an int in its range."""


class RowAlgebra(Algebra[V], Protocol[V]):
    """An `Algebra` that also reduces along the last axis; results keep that axis with size 1."""

    def row_size(self, x: V, /) -> V:
        """The number K of elements in a row, as a float32 scalar."""

    def row_max(self, x: V, /) -> V:
        """The largest element that is not NaN; -inf if there is none; a zero is +0.0.

        Stated so that the order of comparison does not matter: any vector instruction may be used.
        """

    def row_top(self, x: V, /) -> V:
        """The largest element, of x's own dtype: exact for integers; NaN if there is one in a row.

        A float zero is +0.0. x is the operand of the reduction.
        """

    def row_sum(self, x: V, /) -> V:
        """The sum in the fixed order of 16 lanes; all additions are float32.

        lane[j] starts at +0.0 and adds x[j], x[16+j], x[32+j]... in this order; elements past the
        end of the row count as +0.0 (which changes nothing, so a kernel may skip them). Then the
        tree lane[j] += lane[j+8] for j < 8, lane[j] += lane[j+4] for j < 4, lane[j] += lane[j+2]
        for j < 2, and the result is lane[0] + lane[1].
        """

    def keep(self, x: V, /) -> V:
        """x itself; says that a kernel had better store it than compute it again."""
