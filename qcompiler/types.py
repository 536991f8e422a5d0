"""Types of the IR: dtypes, symbolic dimensions, quantization parameters, tensor types."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import sympy
    from torch import dtype as TorchDtype


class DType(Enum):
    """Element type of a tensor. The value is the name that torch, numpy and TVM share."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"

    def __repr__(self) -> str:
        return self.value

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_code(self) -> bool:
        """Whether quantized values are held in this dtype."""
        return self in (DType.INT8, DType.UINT8, DType.INT16)

    @property
    def bits(self) -> int:
        return 8 if self is DType.BOOL else int("".join(c for c in self.value if c.isdigit()))

    @property
    def torch(self) -> TorchDtype:
        import torch

        dtype: TorchDtype = getattr(torch, self.value)
        return dtype

    @staticmethod
    def of(dtype: TorchDtype) -> DType:
        """The DType of a torch dtype. Raises TypeError for one the IR does not hold."""
        name = str(dtype).removeprefix("torch.")
        if name not in DType._value2member_map_:
            raise TypeError(f"dtype {dtype} is not supported; cast to one of {list(DType)}")
        return DType(name)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of an integer dtype."""
        if self.is_float or self is DType.BOOL:
            raise TypeError(f"{self.value} has no integer limits")
        if self is DType.UINT8:
            return 0, 255
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1


_FLOATS = (DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True)
class Sym:
    """A symbolic dimension: a sympy expression over named positive integers, with its bounds.

    Arithmetic folds to a plain int whenever the expression becomes a number, so code that
    computes shapes does not care which of the two it holds.
    """

    expr: sympy.Expr
    min: int = 1
    max: int | None = None

    def __repr__(self) -> str:
        return str(self.expr).replace(" ", "")

    def __hash__(self) -> int:
        return hash(str(self.expr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sym) and bool(self.expr == other.expr)

    def _with(self, expr: sympy.Expr) -> Dim:
        import sympy

        expr = sympy.simplify(expr)
        if expr.is_Integer:
            return int(expr)
        return Sym(expr, *_bounds(expr, self))

    def __add__(self, other: Dim) -> Dim:
        return self._with(self.expr + _expr(other))

    def __sub__(self, other: Dim) -> Dim:
        return self._with(self.expr - _expr(other))

    def __mul__(self, other: Dim) -> Dim:
        return self._with(self.expr * _expr(other))

    def __floordiv__(self, other: Dim) -> Dim:
        return self._with(self.expr // _expr(other))

    def __rsub__(self, other: Dim) -> Dim:
        return self._with(_expr(other) - self.expr)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return self._with(_expr(other) // self.expr)

    __radd__ = __add__
    __rmul__ = __mul__

    def at(self, values: dict[str, int]) -> int:
        """The dimension when each named symbol has the given value."""
        bound = self.expr.subs({s: values[str(s)] for s in self.expr.free_symbols})
        return int(bound)


Dim = Union[int, Sym]  # noqa: UP007  (a runtime alias; `int | Sym` is one only from 3.10 on types)


def symbol(name: str, min: int = 1, max: int | None = None) -> Sym:
    """A named symbolic dimension, as in `float32[batch,3,224,224]`."""
    import sympy

    return Sym(sympy.Symbol(name, integer=True, positive=True), min, max)


def _expr(dim: Dim) -> sympy.Expr:
    import sympy

    return dim.expr if isinstance(dim, Sym) else sympy.Integer(dim)


def _bounds(expr: sympy.Expr, source: Sym) -> tuple[int, int | None]:
    """Bounds of a monotone expression in one symbol, from the bounds of that symbol's source."""
    (low, high) = (source.min, source.max)
    if len(expr.free_symbols) != 1 or not source.expr.is_Symbol:
        return 1, None
    (name,) = expr.free_symbols
    ends = [expr.subs(name, low)] + ([expr.subs(name, high)] if high is not None else [])
    values = [int(e) for e in ends if e.is_Integer]
    return (min(values, default=1), max(values) if len(values) == 2 else None)


def bind(dim: Dim, values: dict[str, int]) -> int:
    return dim.at(values) if isinstance(dim, Sym) else dim


DIGEST_OVER = 4  # per-channel parameters longer than this print as a digest


@dataclass(frozen=True)
class QParams:
    """How codes stand for real values: `r = scale * (q - zero_point)`.

    scale: one value, or one per channel along `axis` (per group of `group` channels when set).
    Every scale is exactly representable in float32. qmin and qmax bound the codes.
    """

    scale: tuple[float, ...]
    zero_point: int
    qmin: int
    qmax: int
    axis: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.axis is None and len(self.scale) != 1:
            raise ValueError(f"{len(self.scale)} scales but no axis; expected one scale")
        if not self.qmin <= self.qmax:
            raise ValueError(f"qmin {self.qmin} is above qmax {self.qmax}")
        if not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError(f"scales must be finite and positive, got {min(self.scale)}")

    @property
    def per_tensor(self) -> bool:
        return self.axis is None

    @property
    def digest(self) -> str:
        text = ",".join(s.hex() for s in self.scale)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def moved(self, axis: int | None) -> QParams:
        return QParams(self.scale, self.zero_point, self.qmin, self.qmax, axis, self.group)


@dataclass(frozen=True)
class TensorType:
    """Shape, dtype and, for codes, the quantization parameters of a tensor."""

    shape: tuple[Dim, ...]
    dtype: DType
    quant: QParams | None = None

    def __repr__(self) -> str:
        return f"{self.dtype.value}[{','.join(map(repr, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def ints(self) -> tuple[int, ...]:
        """The shape when every dimension is known. Raises TypeError otherwise."""
        dims = tuple(d for d in self.shape if isinstance(d, int))
        if len(dims) != len(self.shape):
            raise TypeError(f"{self!r} has symbolic dimensions where known ones are needed")
        return dims

    @property
    def size(self) -> int:
        return math.prod(self.ints)


@dataclass(frozen=True)
class TupleType:
    """The type of an operation with several results; `Get` takes one of them."""

    items: tuple[TensorType, ...]

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self.items))})"


Type = Union[TensorType, TupleType]  # noqa: UP007


@dataclass(frozen=True)
class Scheme:
    """How one tensor is to be quantized; `params` is set once ranges are known.

    dynamic: the scale is computed at run time, one per row of the last axis. products: of a
    weight, how many products kernels may add in 16 bits, which its scale is to prove; 0: none are
    added there, None: as few as are faster than that.
    """

    dtype: DType
    qmin: int
    qmax: int
    symmetric: bool = False
    axis: int | None = None
    group: int | None = None
    dynamic: bool = False
    products: int | None = None
    params: QParams | None = field(default=None)
