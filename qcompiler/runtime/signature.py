"""Values given to a call, held to the entry's declaration; numpy only."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from qcompiler.arrays import device_problem, layout_problem
from qcompiler.errors import InputError
from qcompiler.runtime.manifest import Entry, Size, Spec

Kind = tuple[Any, ...]


def kinds(values: Sequence[Any]) -> tuple[Kind, ...] | None:
    """All that `check` looks at: values of the same kinds fit as well. None: not arrays.

    10 microseconds where weights have just swept the caches, in which `check` takes 34.
    """
    try:
        return tuple(map(_kind, values))
    except AttributeError:
        return None


def _kind(value: Any) -> Kind:
    where, layout = getattr(value, "device", None), getattr(value, "layout", None)
    return type(value), value.dtype, value.shape, where, layout


def check(entry: Entry, values: Sequence[Any]) -> None:
    """values: numpy arrays or torch tensors. Raises InputError: input, expected, got."""
    if len(values) != len(entry.inputs):
        takes = ", ".join(f"%{s.name}: {s!r}" for s in entry.inputs) or "none"
        count = f"{len(entry.inputs)} input{'s' * (len(entry.inputs) != 1)}"
        raise InputError(f"expected {count} ({takes}), got {len(values)}")
    symbols: dict[str, int] = {}
    for spec, value in zip(entry.inputs, values, strict=True):
        _is_array(spec, value)
        _fixed(spec, value)
        for dim, size in zip(spec.shape, value.shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier():
                _bound(entry, spec, dim, size, symbols)
    for spec, value in zip(entry.inputs, values, strict=True):
        for axis, (dim, size) in enumerate(zip(spec.shape, value.shape, strict=True)):
            wanted = evaluate(dim, symbols)
            if wanted not in (None, size):
                where = f"axis {axis} to have {dim} = {wanted}"
                raise InputError(f"input %{spec.name}: expected {where}, got {size}")


def _is_array(spec: Spec, value: Any) -> None:
    if not hasattr(value, "__dlpack__") or not hasattr(value, "shape"):
        got = type(value).__name__
        cure = "; give each tensor as an argument of its own" * isinstance(value, list | tuple)
        raise InputError(
            f"input %{spec.name}: expected {spec!r} as a torch tensor or numpy array, got {got}"
            f"{cure}"
        )
    problem = device_problem(value) or layout_problem(value)
    if problem:
        raise InputError(f"input %{spec.name}: {problem}")


def _fixed(spec: Spec, value: Any) -> None:
    shape = tuple(value.shape)
    dtype = dtype_name(value.dtype)
    fits = len(shape) == len(spec.shape) and all(
        isinstance(d, str) or d == s for d, s in zip(spec.shape, shape, strict=True)
    )
    if not fits or dtype != spec.dtype:
        got = f"{dtype}[{','.join(map(str, shape))}]"
        cure = _cure(spec, shape, dtype)
        raise InputError(f"input %{spec.name}: expected {spec!r}, got {got}; {cure}")


def _cure(spec: Spec, shape: tuple[int, ...], dtype: str) -> str:
    if dtype != spec.dtype:
        return f"convert it, x.to(torch.{spec.dtype}) or x.astype('{spec.dtype}')"
    if len(shape) == len(spec.shape) - 1:
        return "the first axis is the batch: x[None]"
    if len(shape) == len(spec.shape) and shape[1:] == spec.shape[1:]:
        return "for batches of any size compile with a symbolic batch (dynamic_shapes)"
    return "a program takes the shapes it was compiled for"


@lru_cache(maxsize=64)
def dtype_name(dtype: Any) -> str:
    """The name numpy and torch share; numpy takes microseconds to spell its own."""
    return str(dtype).removeprefix("torch.")


def _bound(entry: Entry, spec: Spec, name: str, size: int, symbols: dict[str, int]) -> None:
    known = symbols.setdefault(name, size)
    if known != size:
        raise InputError(f"input %{spec.name}: {name} is {known} and {size} at once")
    low, high = entry.symbols.get(name, (0, None))
    if size < low or (high is not None and size > high):
        limits = f"{low}..{'' if high is None else high}"
        raise InputError(f"input %{spec.name}: expected {name} in {limits}, got {size}")


def evaluate(dim: Size, symbols: Mapping[str, int]) -> int | None:
    """A dimension's value; None where it depends on a symbol that is not known, or is no sum,
    product, power or quotient of moderate numbers (the program then checks it itself)."""
    if isinstance(dim, int):
        return dim
    try:
        value = _value(_parsed(dim), symbols)
    except (KeyError, ZeroDivisionError):
        return None
    return int(value) if value.denominator == 1 else None


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
    if len(text) > TEXT_MAX:
        raise KeyError(text)
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise KeyError(text) from None


TEXT_MAX = 1000
"""Characters of a dimension; none that torch.export gives comes near."""
BITS_MAX = 256
"""Of a number on the way to a size, which has 63: what is larger takes ever longer to compute."""


def _moderate(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS_MAX:
        raise KeyError("a number too large for a size")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > BITS_MAX:
        raise KeyError("a power that no size has")
    return base ** int(exponent)


OPERATIONS: Mapping[type[ast.operator], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,  # sympy writes a // b as floor(a/b)
    ast.Pow: _power,
}


def _value(node: ast.expr, symbols: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return _moderate(Fraction(node.value))
    if isinstance(node, ast.Name):
        return Fraction(symbols[node.id])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, symbols)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _value(node.left, symbols), _value(node.right, symbols)
        return _moderate(Fraction(OPERATIONS[type(node.op)](left, right)))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "floor" and len(node.args) == 1:
        return Fraction(math.floor(_value(node.args[0], symbols)))
    raise KeyError(ast.dump(node))
