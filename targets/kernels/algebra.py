"""The law's algebra over TIR expressions: every formula of arith becomes straight-line code.

TVM's simplifier reasons about floats as if they were real numbers: it turns `not a < b` into
`b <= a`, `x - x` and `x * 0` into 0, `x + 0` into x and `x / c` into `x * (1 / c)`. So nothing
here is written in a form it rewrites: nodes are made by their constructors, results are kept in
local arrays, constants are bit patterns, and constants among themselves are folded here, by numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .grid import Grid, array, current

# TIR expressions and numpy scalars; TVM gives the former no useful static type.
Value = Any
Node = Callable[[Value, Value], Value]
EXPONENT_BIAS = 127
MANTISSA_BITS = 23


@dataclass(frozen=True)
class Primitives:
    """What has no portable spelling: how a machine is told to round a product by itself.

    product: the rounded product of two floats, never contracted with a neighbouring add.
    bits: the width of a vector register. requantize: (acc, multiplier, zero point, lanes, dtype)
    to codes, where `requantize.saturates` holds; None: by the law. grid: how a GPU's threads share
    the work; None on a CPU, whose threads take turns of the outermost loop.
    """

    product: Callable[[Value, Value], Value]
    bits: int
    requantize: Callable[[Value, Value, int, int, str], Value] | None = None
    grid: Grid | None = None

    def lanes(self, dtype_bits: int) -> int:
        return max(self.bits // dtype_bits, 1)


def fenced_product(a: Value, b: Value) -> Value:
    """a * b behind llvm.arithmetic.fence, for every target that LLVM compiles."""
    product = tirx.Mul(a, b)
    fence = T.llvm_lookup_intrinsic_id("llvm.arithmetic.fence")
    return T.call_llvm_pure_intrin(fence, product, dtype=product.ty.dtype)


def rounded_product(a: Value, b: Value) -> Value:
    """a * b by CUDA's own function, which nvcc never contracts into an FMA."""
    dtype = dtype_of(a)
    name = {"float32": "__fmul_rn", "float64": "__dmul_rn"}[dtype]
    return T.call_pure_extern(dtype, name, a, b)


def known(v: Value) -> bool:
    """Whether a value is a constant."""
    return isinstance(v, np.generic)


def dtype_of(v: Value) -> str:
    """The element type of a value: `float32` for a vector of them, too."""
    name = v.dtype.name if known(v) else str(v.ty.dtype)
    return name.split("x")[0]


def lanes_of(v: Value) -> int:
    if known(v):
        return 1
    return int(v.ty.dtype.lanes)


def number(value: float, dtype: str) -> np.generic:
    """A constant of the law: the double `value` rounded once to `dtype`."""
    with np.errstate(over="ignore"):
        return np.dtype(dtype).type(value)


def literal(v: Value) -> Value:
    """A constant as TIR; floats as bit patterns, which no simplifier looks into."""
    dtype = v.dtype.name
    if v.dtype.kind != "f":
        return tirx.const(v.item(), dtype)
    if v == 0 and not np.signbit(v):
        # reinterpret(0) means a null pointer to TVM.
        return tirx.abs(literal(-v))
    bits = v.view(f"int{8 * v.dtype.itemsize}")
    return _as(tirx.const(int(bits), bits.dtype.name), dtype)


def _hidden(v: Value) -> Value:
    """The same bits in an expression that compares equal to no other."""
    dtype = dtype_of(v)
    return _as(_as(v, f"int{dtype_bits(dtype)}"), dtype)


def _quotient(a: np.generic, b: np.generic) -> np.generic:
    """Toward zero, of two constants."""
    size = abs(int(a)) // abs(int(b))
    return a.dtype.type(size if (int(a) < 0) == (int(b) < 0) else -size)


_FOLDS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "lt": np.less,
    "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal, "eq": np.equal,
    "and": np.logical_and, "or": np.logical_or, "trunc_div": _quotient,
}  # fmt: skip

_COMPARISONS = frozenset({"lt", "gt", "le", "ge", "eq"})


@dataclass(frozen=True)
class TIR:
    """`arith.Algebra` over TIR scalars and vectors; must be used inside an open IRBuilder frame.

    A value is a TIR expression or, when it is a constant, a numpy scalar.
    """

    primitives: Primitives

    def const(self, value: float, dtype: str = "float32", /) -> Value:
        return number(value, dtype)

    def add(self, a: Value, b: Value, /) -> Value:
        return self._binary("add", tirx.Add, a, b)

    def sub(self, a: Value, b: Value, /) -> Value:
        return self._binary("sub", tirx.Sub, a, b)

    def mul(self, a: Value, b: Value, /) -> Value:
        rule = self.primitives.product if dtype_of(a).startswith("float") else tirx.Mul
        return self._binary("mul", rule, a, b)

    def div(self, a: Value, b: Value, /) -> Value:
        return self._binary("div", tirx.Div, a, b)

    def trunc_div(self, a: Value, b: Value, /) -> Value:
        return self._binary("trunc_div", tirx.Div, a, b)

    def sqrt(self, a: Value, /) -> Value:
        return np.sqrt(a) if known(a) else bind(T.sqrt(a))

    def neg(self, a: Value, /) -> Value:
        if known(a):
            with np.errstate(over="ignore"):
                return -a
        zero = number(-0.0 if dtype_of(a).startswith("float") else 0, dtype_of(a))
        return self.sub(zero, a)

    def abs(self, a: Value, /) -> Value:
        return np.abs(a) if known(a) else bind(tirx.abs(a))

    def rint(self, a: Value, /) -> Value:
        return np.rint(a) if known(a) else bind(T.nearbyint(a))

    def lt(self, a: Value, b: Value, /) -> Value:
        return self._binary("lt", tirx.LT, a, b)

    def gt(self, a: Value, b: Value, /) -> Value:
        return self._binary("gt", tirx.GT, a, b)

    def le(self, a: Value, b: Value, /) -> Value:
        return self._binary("le", tirx.LE, a, b)

    def ge(self, a: Value, b: Value, /) -> Value:
        return self._binary("ge", tirx.GE, a, b)

    def eq(self, a: Value, b: Value, /) -> Value:
        return self._binary("eq", tirx.EQ, a, b)

    def where(self, condition: Value, a: Value, b: Value, /) -> Value:
        if known(condition):
            return a if condition else b
        a, b = _alike(a, b)
        lanes = max(lanes_of(v) for v in (condition, a, b))
        return bind(tirx.Select(*(widened(v, lanes) for v in (condition, a, b))))

    def logical_and(self, a: Value, b: Value, /) -> Value:
        return self._binary("and", tirx.bitwise_and, a, b)

    def logical_or(self, a: Value, b: Value, /) -> Value:
        return self._binary("or", tirx.bitwise_or, a, b)

    def logical_not(self, a: Value, /) -> Value:
        if known(a):
            return np.logical_not(a)
        return bind(tirx.bitwise_xor(a, widened(np.True_, lanes_of(a))))

    def min(self, a: Value, b: Value, /) -> Value:
        return self.where(self.lt(a, b), a, b)

    def max(self, a: Value, b: Value, /) -> Value:
        return self.where(self.gt(a, b), a, b)

    def cast(self, a: Value, dtype: str, /) -> Value:
        if dtype_of(a) == dtype:
            return a
        if known(a):
            return a.astype(dtype)
        if dtype == "bool":
            return self.logical_not(self.eq(a, number(0, dtype_of(a))))
        return bind(tirx.Cast(wide(dtype, lanes_of(a)), a))

    def exp2i(self, i: Value, /) -> Value:
        biased = self.add(i, number(EXPONENT_BIAS, "int32"))
        if known(biased):
            return (biased << MANTISSA_BITS).view(np.float32)
        shift = widened(number(MANTISSA_BITS, "int32"), lanes_of(biased))
        return self.bits_float(bind(tirx.shift_left(biased, shift)))

    def float_bits(self, a: Value, /) -> Value:
        return _viewed(a, "int32")

    def bits_float(self, a: Value, /) -> Value:
        return _viewed(a, "float32")

    def shift_right(self, a: Value, count: int, /) -> Value:
        if known(a):
            return a >> a.dtype.type(count)
        return bind(tirx.shift_right(a, widened(number(count, dtype_of(a)), lanes_of(a))))

    def vector(self, a: Value, lanes: int) -> Value:
        """The value as TIR with the given number of lanes."""
        return widened(a, lanes)

    def lookup(self, table: Any, index: Value, /) -> Value:
        """`table` is a one-dimensional buffer."""
        return bind(table[index if not known(index) else int(index)])

    def _binary(self, name: str, node: Node, a: Value, b: Value) -> Value:
        if known(a) and known(b):
            with np.errstate(all="ignore"):
                return _FOLDS[name](a, b)
        a, b = _alike(a, b)
        if name in _COMPARISONS and dtype_of(a) == "bool":
            # LLVM compares truth values as floats.
            a, b = self.cast(a, "uint8"), self.cast(b, "uint8")
        lanes = max(lanes_of(a), lanes_of(b))
        # An operation of a value with itself would be simplified.
        other = _hidden(b) if a is b and dtype_of(b).startswith("float") else b
        made = node(widened(a, lanes), widened(other, lanes))
        # LLVM finds equal comparisons by itself.
        return made if name in _COMPARISONS else bind(made)


def _alike(a: Value, b: Value) -> tuple[Value, Value]:
    """A constant of float32 becomes float64 beside one, as in torch."""
    if known(a) and a.dtype == np.float32 and dtype_of(b) == "float64":
        return a.astype(np.float64), b
    if known(b) and b.dtype == np.float32 and dtype_of(a) == "float64":
        return a, b.astype(np.float64)
    return a, b


def widened(v: Value, lanes: int) -> Value:
    """A value as TIR with the given number of lanes."""
    v = literal(v) if known(v) else v
    return T.broadcast(v, lanes) if lanes > lanes_of(v) else v


def bind(v: Value) -> Value:
    """Names a value, so that its many users do not repeat its expression: a local array of one.

    TVM's own names cannot be used: its analysis of a chain of them takes time exponential in the
    chain's length, and crashes on vectors of integers. LLVM keeps such an array in a register.
    Truth values are kept as bytes: TVM mixes up arrays of them with those of bytes.
    """
    lanes, dtype = lanes_of(v), dtype_of(v)
    if dtype == "bool":
        byte = bind(tirx.Cast(wide("uint8", lanes), v))
        return tirx.NE(byte, widened(np.uint8(0), lanes))
    name = array(lanes, dtype)
    at = 0 if lanes == 1 else T.ramp(0, 1, lanes)
    T.buffer_store(name, v, [at])
    return name[at]


def dtype_bits(dtype: str) -> int:
    return 8 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))


def wide(dtype: str, lanes: int) -> str:
    """The dtype of `lanes` elements: `float32x8`."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


# What the bits of an expression are called in CUDA C, where TVM would take its address.
_CUDA_VIEWS = {
    ("int32", "float32"): "__int_as_float", ("float32", "int32"): "__float_as_int",
    ("int64", "float64"): "__longlong_as_double", ("float64", "int64"): "__double_as_longlong",
}  # fmt: skip


def _as(v: Value, dtype: str) -> Value:
    """The same bits under another type of the same width."""
    if current() is not None:
        return T.call_pure_extern(dtype, _CUDA_VIEWS[dtype_of(v), dtype], v)
    return T.reinterpret(v, dtype=wide(dtype, lanes_of(v)))


def _viewed(v: Value, dtype: str) -> Value:
    if known(v):
        return v.view(dtype)
    return bind(_as(v, dtype))
