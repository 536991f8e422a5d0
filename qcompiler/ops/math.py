"""Elementwise float arithmetic: each formula once, over an Algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from qcompiler import arith
from qcompiler.op import Elementwise, Fixed, Float, QuantRule, Unary
from qcompiler.types import DType, TensorType

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Add(Elementwise):
    """a + b."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.add(*xs)

    def bounds(self, *ranges: Bounds) -> Bounds:
        (a, b) = ranges
        return a[0] + b[0], a[1] + b[1]


@dataclass(frozen=True)
class Sub(Elementwise):
    """a - b."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.sub(*xs)

    def bounds(self, *ranges: Bounds) -> Bounds:
        (a, b) = ranges
        return a[0] - b[1], a[1] - b[0]


@dataclass(frozen=True)
class Mul(Elementwise):
    """a * b, rounded once."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.mul(*xs)


@dataclass(frozen=True)
class Div(Elementwise):
    """a / b, IEEE."""

    quant: ClassVar[QuantRule] = Float("a quotient of codes is no integer form")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.div(*xs)


@dataclass(frozen=True)
class Maximum(Elementwise):
    """The larger of two; NaN if either is."""

    quant: ClassVar[QuantRule] = Float("a maximum of two tensors is kept in float")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        a, b = xs
        return n.where(n.logical_or(n.gt(a, b), n.logical_not(n.eq(a, a))), a, b)


@dataclass(frozen=True)
class Minimum(Elementwise):
    """The smaller of two; NaN if either is."""

    quant: ClassVar[QuantRule] = Float("a minimum of two tensors is kept in float")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        a, b = xs
        return n.where(n.logical_or(n.lt(a, b), n.logical_not(n.eq(a, a))), a, b)


@dataclass(frozen=True)
class Where(Elementwise):
    """`a where condition else b`."""

    arity: ClassVar[tuple[int, int]] = (3, 3)

    quant: ClassVar[QuantRule] = Float("a selection by a mask is kept in float")

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.where(*xs)

    def dtype(self, *inputs: TensorType) -> DType:
        condition, a, b = inputs
        self.expects(condition.dtype is DType.BOOL, "a bool condition", condition)
        self.expects(a.dtype == b.dtype, "operands of one dtype", a, b)
        return a.dtype


class Relation(Enum):
    """The comparisons."""

    LT = "lt"
    LE = "le"
    GT = "gt"
    GE = "ge"
    EQ = "eq"
    NE = "ne"


@dataclass(frozen=True)
class Compare(Elementwise):
    """A bool tensor: `a relation b`."""

    quant: ClassVar[QuantRule] = Float("a comparison gives truth values")
    relation: Relation

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        if self.relation is Relation.NE:
            return n.logical_not(n.eq(*xs))
        return getattr(n, self.relation.value)(*xs)

    def dtype(self, *inputs: TensorType) -> DType:
        super().dtype(*inputs)
        return DType.BOOL


@dataclass(frozen=True)
class _Logical(Elementwise):
    quant: ClassVar[QuantRule] = Float("truth values are not quantized")

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(all(i.dtype is DType.BOOL for i in inputs), "bool operands", *inputs)
        return DType.BOOL


@dataclass(frozen=True)
class And(_Logical):
    """a and b."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.logical_and(*xs)


@dataclass(frozen=True)
class Or(_Logical):
    """a or b."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.logical_or(*xs)


@dataclass(frozen=True)
class Not(_Logical):
    """not a."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.logical_not(*xs)


@dataclass(frozen=True)
class Cast(Elementwise):
    """The values in another dtype; float to integer truncates toward zero."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    quant: ClassVar[QuantRule] = Float("a cast is no arithmetic")
    to: DType

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.cast(xs[0], self.to.value)

    def dtype(self, *inputs: TensorType) -> DType:
        return self.to


@dataclass(frozen=True)
class Clamp(Elementwise):
    """`x` limited to [lo, hi]; NaN becomes lo. relu is [0, inf], relu6 [0, 6]."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    lo: float = -math.inf
    hi: float = math.inf

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.clamp(n, xs[0], n.const(self.lo), n.const(self.hi))

    def bounds(self, *ranges: Bounds) -> Bounds:
        ((lo, hi),) = ranges
        return min(max(lo, self.lo), self.hi), max(min(hi, self.hi), self.lo)


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """x where x >= 0, else slope * x."""

    arity: ClassVar[tuple[int, int]] = (1, 1)

    slope: float

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        (x,) = xs
        return n.where(n.ge(x, n.const(0.0)), x, n.mul(x, n.const(self.slope)))


@dataclass(frozen=True)
class Prelu(Elementwise):
    """x where x >= 0, else slope * x, with a slope tensor that broadcasts."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        x, slope = xs
        return n.where(n.ge(x, n.const(0.0)), x, n.mul(x, slope))


@dataclass(frozen=True)
class Neg(Unary):
    """-x."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.neg(xs[0])


@dataclass(frozen=True)
class Abs(Unary):
    """|x|."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.abs(xs[0])


@dataclass(frozen=True)
class Sqrt(Unary):
    """IEEE square root."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.sqrt(xs[0])


@dataclass(frozen=True)
class Rsqrt(Unary):
    """1 / sqrt(x), two IEEE operations."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.div(n.const(1.0), n.sqrt(xs[0]))


@dataclass(frozen=True)
class Round(Unary):
    """Half to even."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return n.rint(xs[0])


@dataclass(frozen=True)
class Exp(Unary):
    """e ** x, by the polynomial of arith.py."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.exp(n, xs[0])


@dataclass(frozen=True)
class Log(Unary):
    """Natural logarithm, by the polynomial of arith.py."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.log(n, xs[0])


@dataclass(frozen=True)
class Sin(Unary):
    """Sine, radians."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.sin(n, xs[0])

    def bounds(self, *ranges: Bounds) -> Bounds:
        return -1.0, 1.0


@dataclass(frozen=True)
class Cos(Unary):
    """Cosine, radians."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.cos(n, xs[0])

    def bounds(self, *ranges: Bounds) -> Bounds:
        return -1.0, 1.0


@dataclass(frozen=True)
class Erf(Unary):
    """The error function."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.erf(n, xs[0])

    def bounds(self, *ranges: Bounds) -> Bounds:
        return -1.0, 1.0


@dataclass(frozen=True)
class Tanh(Unary):
    """Hyperbolic tangent."""

    quant: ClassVar[QuantRule] = Fixed(-1.0, 1.0)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.tanh(n, xs[0])


@dataclass(frozen=True)
class Sigmoid(Unary):
    """1 / (1 + exp(-x))."""

    quant: ClassVar[QuantRule] = Fixed(0.0, 1.0)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.sigmoid(n, xs[0])


@dataclass(frozen=True)
class Silu(Unary):
    """x * sigmoid(x)."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.silu(n, xs[0])


@dataclass(frozen=True)
class Gelu(Unary):
    """x * Phi(x) (Hendrycks and Gimpel 2016), by erf or by its tanh approximation."""

    tanh: bool = False

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return (arith.gelu_tanh if self.tanh else arith.gelu)(n, xs[0])


@dataclass(frozen=True)
class Hardswish(Unary):
    """x * clamp(x + 3, 0, 6) / 6 (Howard et al. 2019)."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.hardswish(n, xs[0])


@dataclass(frozen=True)
class Hardsigmoid(Unary):
    """clamp(x + 3, 0, 6) / 6."""

    quant: ClassVar[QuantRule] = Fixed(0.0, 1.0)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.hardsigmoid(n, xs[0])


@dataclass(frozen=True)
class Softplus(Unary):
    """log(1 + exp(x)), x itself above PyTorch's threshold of 20."""

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.softplus(n, xs[0])


@dataclass(frozen=True)
class Elu(Unary):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    alpha: float = 1.0

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.elu(n, xs[0], self.alpha)


@dataclass(frozen=True)
class Power(Unary):
    """x ** exponent for an integer exponent >= 1, by repeated squaring."""

    exponent: int

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        (square, left, result) = (xs[0], self.exponent, None)
        while left:
            if left & 1:
                result = square if result is None else n.mul(result, square)
            left >>= 1
            square = n.mul(square, square) if left else square
        return result
