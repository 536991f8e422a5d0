"""Symbolic sizes: torch's SymInt becomes a Dim over named symbols with the export's bounds."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from qcompiler.frontend.errors import Refusal
from qcompiler.parse import is_reserved
from qcompiler.types import Dim, Sym, symbol


@dataclass(frozen=True)
class Axis:
    """What the user said of a symbolic axis: its name, and whether a lower bound."""

    name: str | None
    bounded: bool


Axes = Mapping[int, Axis]  # the symbolic axes of one input


def _modulo(a: Dim, b: Dim) -> Dim:
    return a - (a // b) * b


FOLDS: Mapping[type[sympy.Basic], Callable[[Any, Any], Dim]] = {
    sympy.Add: operator.add,
    sympy.Mul: operator.mul,
    FloorDiv: operator.floordiv,
    Mod: _modulo,
    PythonMod: _modulo,
}


class Dims:
    """Converts the sizes of one exported program."""

    def __init__(self, symbols: Mapping[sympy.Symbol, Sym]) -> None:
        self.symbols = symbols
        self._done: dict[sympy.Expr, Dim] = {}

    def shape(self, sizes: Iterable[int | torch.SymInt]) -> tuple[Dim, ...]:
        return tuple(self.dim(s) for s in sizes)

    def dim(self, size: int | torch.SymInt) -> Dim:
        return size if isinstance(size, int) else self.of(size.node.expr)

    def of(self, expr: sympy.Expr) -> Dim:
        """Raises Refusal for a size that only the data determines."""
        if expr not in self._done:
            self._done[expr] = self._convert(expr)
        return self._done[expr]

    def _convert(self, expr: sympy.Expr) -> Dim:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            if expr not in self.symbols:
                raise Refusal(
                    "a size that depends on the data, as of nonzero or x[mask]; keep the shape, "
                    "torch.where(mask, x, 0)"
                )
            return self.symbols[expr]
        if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
            return reduce(operator.mul, [self.of(expr.base)] * int(expr.exp))
        for kind, fold in FOLDS.items():
            if isinstance(expr, kind):
                return reduce(fold, [self.of(a) for a in expr.args])
        raise Refusal(f"a size of the form {expr}")


def product(dims: Iterable[Dim]) -> Dim:
    return reduce(operator.mul, dims, 1)


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal for every value of their symbols."""
    if a == b:
        return True
    if isinstance(a, int) and isinstance(b, int):
        return False
    return a - b == 0


def named_symbols(
    shapes: Sequence[Sequence[int | torch.SymInt]],
    axes: Sequence[Axes],
    ranges: Mapping[sympy.Symbol, Any],
) -> dict[sympy.Symbol, Sym]:
    """A Sym for each symbol in the inputs' shapes: the user's name for it, else s0, s1...

    A name that the text form reads as something else (`inf`, `int8`, `lambda`) gets a `_`.
    """
    chosen: dict[sympy.Symbol, str] = {}
    bounded: set[sympy.Symbol] = set()
    for expr, axis in _declared(shapes, axes):
        if axis.bounded:
            bounded.update(expr.free_symbols)
        if expr.is_Symbol and axis.name is not None:
            chosen.setdefault(expr, axis.name)
    taken = set(chosen.values())
    found: dict[sympy.Symbol, Sym] = {}
    free = (n for n in (f"s{k}" for k in range(10**6)) if n not in taken)
    for expr in _symbols_in_order(shapes):
        name = chosen.get(expr)
        name = next(free) if name is None else _legible(name, taken)
        low, high = _limits(ranges.get(expr))
        low = 1 if low == TORCH_MIN and expr not in bounded else low
        found[expr] = symbol(name, low, high)
    return found


def _legible(name: str, taken: Container[str]) -> str:
    """The name, or one that a text does not read as something else."""
    if not is_reserved(name):
        return name
    while is_reserved(name) or name in taken:
        name += "_"
    return name


def _declared(
    shapes: Sequence[Sequence[int | torch.SymInt]], axes: Sequence[Axes]
) -> Iterator[tuple[sympy.Expr, Axis]]:
    """The symbolic sizes that the user said something of."""
    for shape, said in zip(shapes, axes, strict=True):
        for k, size in enumerate(shape):
            if k in said and not isinstance(size, int):
                yield size.node.expr, said[k]


def _symbols_in_order(shapes: Sequence[Sequence[int | torch.SymInt]]) -> list[sympy.Symbol]:
    order: dict[sympy.Symbol, None] = {}
    for size in (s for shape in shapes for s in shape if not isinstance(s, int)):
        order.update(dict.fromkeys(sorted(size.node.expr.free_symbols, key=str)))
    return list(order)


def _limits(bounds: Any) -> tuple[int, int | None]:
    """Lower and upper bound of a range constraint; an upper bound of infinity is None."""
    if bounds is None:
        return 1, None
    upper = bounds.upper
    finite = upper.is_Integer and int(upper) < MAX_SIZE
    return max(int(bounds.lower), 1), int(upper) if finite else None


MAX_SIZE = 2**62  # torch writes "no upper bound" as a size near 2^63
TORCH_MIN = 2
"""What torch.export writes for "no lower bound" of Dim.AUTO and Dim.DYNAMIC: its own tracing takes
sizes 0 and 1 for special cases. The exported program runs with 1, and so does the graph."""


def symbolic_axes(dynamic: Any, leaves: Sequence[Any], tree: Any) -> list[dict[int, Axis]]:
    """What `dynamic_shapes` says of axes, for each tensor of the arguments.

    tree: the arguments as `dynamic` mirrors them: a mapping by parameter name, or a sequence.
    """
    found: dict[int, dict[int, Axis]] = {}
    _collect(dynamic, tree, found)
    return [found.get(id(leaf), {}) for leaf in leaves]


def _collect(dynamic: Any, value: Any, found: dict[int, dict[int, Axis]]) -> None:
    if dynamic is None:
        return
    if isinstance(value, torch.Tensor):
        axes = dynamic.items() if isinstance(dynamic, Mapping) else enumerate(dynamic)
        found[id(value)] = {k: _axis(d) for k, d in axes}
    elif isinstance(value, Mapping) and isinstance(dynamic, Mapping):
        for key, child in value.items():
            _collect(dynamic.get(key), child, found)
    elif isinstance(value, Sequence) and isinstance(dynamic, Sequence):
        for inner, child in zip(dynamic, value, strict=False):
            _collect(inner, child, found)


def _axis(dim: Any) -> Axis:
    """A `torch.export.Dim` has a name and bounds; hints such as Dim.AUTO and derived dims have no
    name, and hints a bound only if one is given."""
    name = getattr(dim, "__name__", None)
    named = isinstance(name, str) and name.isidentifier() and name.isascii()
    bounded = name is not None or getattr(dim, "min", None) is not None
    return Axis(name if named else None, bounded)


def numel(shape: Sequence[Dim]) -> int | None:
    """The number of elements, when every size is known."""
    sizes = [d for d in shape if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(shape) else None
