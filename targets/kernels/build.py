"""What the kernel templates share: parameters, operand views, copies and loops, in TIR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .geometry import Dim
from .grid import Grid, array, current, on, threads

# Expressions and buffers of TIR; TVM gives them no useful static type.
Expr = Any
Buffer = Any

# Elements moved at once by copies and fills: one 256-bit vector of bytes.
COPY_LANES = 32


@dataclass(frozen=True)
class Operand:
    """A tensor parameter of a kernel."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Point:
    """Where an epilogue is: `lanes` channels from `channel` on, of one output pixel.

    pixel: flat index over all leading dimensions; lead: the same, one index per dimension.
    """

    pixel: Expr
    lead: tuple[Expr, ...]
    channel: Expr


@dataclass(frozen=True)
class View:
    """An operand as an epilogue reads it: broadcast against the output, as in numpy."""

    operand: Operand
    flat: Buffer
    out_shape: tuple[Dim, ...]

    def load(self, at: Point, lanes: int) -> Expr:
        """The operand's `lanes` elements at `at`; a scalar when lanes is 1."""
        rank = len(self.out_shape)
        shape = (1,) * (rank - len(self.operand.shape)) + self.operand.shape
        row = self._row(shape, at)
        if shape[-1] == 1:
            value = self.flat[row]
            return value if lanes == 1 else T.broadcast(value, lanes)
        return vector(self.flat, row * shape[-1] + at.channel, lanes)

    def _row(self, shape: tuple[Dim, ...], at: Point) -> Expr:
        if shape[:-1] == self.out_shape[:-1]:
            return at.pixel
        row: Expr = 0
        for size, index in zip(shape[:-1], at.lead, strict=True):
            inner = 0 if size == 1 else index
            # Only the first dimension can be symbolic, and nothing is multiplied by it.
            row = inner if isinstance(row, int) and row == 0 else row * size + inner
        return row


# epilogue(accumulators, where, lanes, operands) -> what is stored; lanes is 16, 8, 4, 2 or 1.
Epilogue = Callable[[Expr, Point, int, Sequence[View]], Expr]


def keep(acc: Expr, _at: Point, _lanes: int, _views: Sequence[View]) -> Expr:
    """The epilogue that stores the accumulators as they are."""
    return acc


class Symbols:
    """The TIR variable of each symbolic dimension of one function."""

    def __init__(self) -> None:
        self.vars: dict[str, Expr] = {}

    def dim(self, dim: Dim) -> Expr:
        if isinstance(dim, int):
            return dim
        if dim not in self.vars:
            self.vars[dim] = T.int64()
        return self.vars[dim]

    def product(self, dims: Sequence[Dim]) -> Expr:
        static = math.prod(d for d in dims if isinstance(d, int))
        for d in dims:
            if isinstance(d, str):
                static = static * self.dim(d)
        return static


@dataclass(frozen=True)
class Params:
    """Declares the parameters of the function being built."""

    symbols: Symbols

    def flat(self, *operands: Operand) -> list[Buffer]:
        """All parameters in order, each as a buffer of rank 1. Called once, first."""
        whole = [
            T.arg(o.name, T.buffer([self.symbols.dim(d) for d in o.shape], o.dtype))
            for o in operands
        ]
        return [
            T.decl_buffer((self.symbols.product(o.shape),), o.dtype, data=buffer.data)
            for o, buffer in zip(operands, whole, strict=True)
        ]


@contextmanager
def function(name: str, result: list[Any], grid: Grid | None = None) -> Iterator[Params]:
    """Builds one PrimFunc and appends it to `result`; grid: for a GPU."""
    with on(grid), IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            yield Params(Symbols())
        result.append(builder.get())


def declare(
    params: Params, io: tuple[Operand, Operand], packed: Operand, acc_dtype: str, init: bool,
    operands: Sequence[Operand],
) -> tuple[Buffer, Buffer, Buffer | None, list[View], Buffer]:  # fmt: skip
    """(x, weights, init or None, operands, out): the parameters, in this order."""
    source, target = io
    start = [Operand("init", target.shape[-1:], acc_dtype)] if init else []
    x, weights, *rest, out = params.flat(source, packed, *start, *operands, target)
    views = [View(o, b, target.shape) for o, b in zip(operands, rest[len(start) :], strict=True)]
    return x, weights, rest[0] if init else None, views, out


def loop(extent: Expr, parallel: bool = False) -> Any:
    """A loop over range(extent)."""
    return T.parallel(0, extent) if parallel else T.serial(0, extent)


@contextmanager
def tasks(extent: Expr, parallel: bool) -> Iterator[Expr]:
    """The outermost loop, shared among threads; no loop at all around a single task.

    On a GPU every task is a thread.
    """
    grid = current()
    if grid is not None:
        with threads(extent, grid) as index:
            yield index
        return
    if isinstance(extent, int) and extent == 1:
        yield 0
        return
    with loop(extent, parallel) as index:
        yield index


def local(size: int, dtype: str) -> Buffer:
    """A small array that LLVM keeps in registers: of less than 1 KiB."""
    return array(size, dtype)


def scratch(size: Expr, dtype: str) -> Buffer:
    """An array from the workspace pool of the calling thread."""
    return T.alloc_buffer((size,), dtype)


def vector(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """`lanes` elements from `offset` on."""
    return buffer[offset] if lanes == 1 else buffer[T.ramp(offset, 1, lanes)]


def store(buffer: Buffer, offset: Expr, value: Expr, lanes: int) -> None:
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])


def prefetch(buffer: Buffer, offset: Expr) -> None:
    """Bring a cache line into the first-level cache; any address is allowed."""
    read, all_levels, data = T.int32(0), T.int32(3), T.int32(1)
    where = T.address_of(buffer[offset])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", where, read, all_levels, data))


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else T.broadcast(value, lanes)


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    return T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def pieces(count: int, widest: int) -> list[tuple[int, int]]:
    """(start, lanes) that cover range(count), lanes being powers of two and at most `widest`."""
    result, start, lanes = [], 0, widest
    while start < count:
        while lanes > count - start:
            lanes //= 2
        result.append((start, lanes))
        start += lanes
    return result


def runs(count: int, body: Callable[[Expr, int], None], lanes: int = COPY_LANES) -> None:
    """body(start, lanes) over range(count): a loop over whole vectors, then the rest."""
    whole = count // lanes
    if whole > 1:
        with T.serial(0, whole) as i:
            body(i * lanes, lanes)
    elif whole:
        body(0, lanes)
    for start, width in pieces(count - whole * lanes, lanes // 2):
        body(whole * lanes + start, width)


def copy(
    target: Buffer, to: Expr, source: Buffer, at: Expr, count: int, change: Callable[..., Expr]
) -> None:
    """target[to + i] = change(source[at + i], lanes) for i in range(count)."""
    runs(
        count,
        lambda i, n: store(target, to + i, change(vector(source, at + i, n), n), n),
    )


def fill(target: Buffer, to: Expr, value: Expr, count: int) -> None:
    """target[to + i] = value for i in range(count)."""
    runs(count, lambda i, n: store(target, to + i, splat(value, n), n))


def unravel(index: Expr, dims: Sequence[Expr]) -> tuple[Expr, ...]:
    """The index along each dimension of a flat index."""
    result: list[Expr] = []
    for size in reversed(dims[1:]):
        result.append(index % size)
        index = index // size
    return (index, *reversed(result)) if dims else ()
