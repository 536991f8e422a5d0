"""Where a kernel runs: on a CPU, or spread over the blocks and threads of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

# Expressions and buffers of TIR; TVM gives them no useful static type.
Expr = Any
Buffer = Any

WARP = 32
"""Threads that run in step and exchange registers (PTX ISA, section 3.1)."""


@dataclass(frozen=True)
class Grid:
    """The memory shape of a GPU.

    threads: of a block, where each has an element of its own. shared: bytes of shared memory that
    one block may use.
    """

    threads: int
    shared: int


# Whose function is being built; like its IRBuilder, known to whatever is called meanwhile.
_GRID: ContextVar[Grid | None] = ContextVar("grid", default=None)


@contextmanager
def on(grid: Grid | None) -> Iterator[None]:
    """What is built inside is for a GPU; None: for a CPU."""
    token = _GRID.set(grid)
    try:
        yield
    finally:
        _GRID.reset(token)


def current() -> Grid | None:
    """The grid of the function being built; None on a CPU."""
    return _GRID.get()


def array(size: Expr, dtype: str) -> Buffer:
    """A small array of the thread that reaches it, kept in registers.

    A CPU's has the default scope: "local" would become a workspace allocation.
    """
    return T.alloc_buffer((size,), dtype, scope="global" if current() is None else "local")


@contextmanager
def threads(extent: Expr, grid: Grid) -> Iterator[Expr]:
    """One thread for each index in range(extent)."""
    size = grid.threads
    if isinstance(extent, int):
        size = min(size, whole(extent, WARP))
    extent = counted(extent)
    blocks = (extent + (size - 1)) // size
    block, thread = T.launch_thread("blockIdx.x", blocks), T.launch_thread("threadIdx.x", size)
    with block as b, thread as t:
        index = b * size + t
        if isinstance(extent, int) and extent % size == 0:
            yield index
            return
        with guarded(index < extent):
            yield index


@contextmanager
def teams(count: Expr, size: int, grid: Grid) -> Iterator[tuple[Expr, Expr]]:
    """`size` neighbouring threads for each index in range(count): (index, number in the team).

    Teams beyond the last do its work again: all threads of a warp must reach its exchanges.
    """
    block = grid.threads
    if isinstance(count, int):
        block = min(block, whole(count * size, WARP))
    count = counted(count)
    each = block // size
    blocks = (count + (each - 1)) // each
    with T.launch_thread("blockIdx.x", blocks) as b, T.launch_thread("threadIdx.x", block) as t:
        index = b * each + t // size
        exact = isinstance(count, int) and count % each == 0
        yield index if exact else T.min(index, count - 1), t % size


def exchanged(value: Expr, dtype: str, distance: int, size: int) -> Expr:
    """The number that the thread `distance` away (by xor) in its team of `size` passes here."""
    got = array(1, dtype)
    everyone = T.uint32(0xFFFFFFFF)
    call = T.call_extern(dtype, "__shfl_xor_sync", everyone, value, distance, size)
    T.buffer_store(got, call, [0])
    return got[0]


@contextmanager
def guarded(*conditions: Expr) -> Iterator[None]:
    """What is written inside is for the threads where all conditions hold; none: for all."""
    if not conditions:
        yield
        return
    with T.If(tirx.all(*conditions)), T.Then():
        yield


def counted(extent: Expr) -> Expr:
    """A size known at run time as int32, which a GPU divides several times faster than int64.

    Static sizes have that type by themselves. Neither may reach 2^31 elements: the bounds of a
    program's symbols see to it (runtime/assemble.py).
    """
    return extent if isinstance(extent, int) else T.Cast("int32", extent)


def whole(count: int, unit: int) -> int:
    """The least multiple of `unit` that is no less than count."""
    return -(-count // unit) * unit
