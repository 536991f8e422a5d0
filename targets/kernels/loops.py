"""Loops over a result: as few as possible, in vectors, shared among threads; how operands step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from .algebra import Value, bind, widened
from .build import Buffer, Expr, loop, tasks, unravel, vector
from .geometry import Dim
from .grid import Grid, current

# Vectors handled together where a formula is short: hides latency, and packs bytes well.
UNROLL = 4
# Element-steps below which waking another thread (some microseconds) costs more than it saves.
SERIAL_WORK = 1 << 16
# Enough pieces for the threads of a small machine to share evenly.
TASKS = 16


@dataclass(frozen=True)
class Axis:
    """One loop: its extent, and the step in elements that each operand takes along it."""

    extent: Dim
    steps: tuple[int, ...]


def contiguous(shape: Sequence[Dim]) -> tuple[int, ...]:
    """Row-major steps. Only the first dimension may be symbolic: no step depends on it."""
    steps, step = [], 1
    for k in range(len(shape) - 1, -1, -1):
        steps.append(step)
        if k:
            size = shape[k]
            assert isinstance(size, int)
            step *= size
    return tuple(reversed(steps))


def broadcast_steps(shape: Sequence[Dim], out: Sequence[Dim]) -> tuple[int, ...]:
    """Steps of an operand of `shape` along the axes of `out`, as in numpy: 0 where repeated."""
    full = (1,) * (len(out) - len(shape)) + tuple(shape)
    return tuple(0 if d == 1 else s for d, s in zip(full, contiguous(full), strict=True))


def collapsed(shape: Sequence[Dim], steps: Sequence[tuple[int, ...]]) -> list[Axis]:
    """The loops over `shape`: neighbours that every operand walks as one are joined.

    A symbolic dimension stays a loop of its own, so that all others have known extents.
    """
    axes: list[Axis] = []
    for k, extent in enumerate(shape):
        if extent == 1:
            continue
        axis = Axis(extent, tuple(s[k] for s in steps))
        if axes and _joins(axes[-1], axis):
            outer = axes.pop()
            axis = Axis(outer.extent * axis.extent, axis.steps)  # type: ignore[operator]
        axes.append(axis)
    if not axes or isinstance(axes[-1].extent, str):
        axes.append(Axis(1, tuple(0 for _ in steps)))
    return axes


def _joins(outer: Axis, inner: Axis) -> bool:
    if isinstance(outer.extent, str) or isinstance(inner.extent, str):
        return False
    return all(a == b * inner.extent for a, b in zip(outer.steps, inner.steps, strict=True))


@dataclass(frozen=True)
class Nest:
    """The loops of one elementwise pass: `outer` axes, then vectors of `lanes` along `inner`.

    Where inner is no multiple of lanes the last vector overlaps the one before it. On a GPU every
    element is a task of its own.
    """

    outer: tuple[Axis, ...]
    inner: Axis
    lanes: int
    shared: int
    chunks: int
    parallel: bool

    @property
    def vectors(self) -> int:
        assert isinstance(self.inner.extent, int)
        return -(-self.inner.extent // self.lanes)


def nest(axes: Sequence[Axis], lanes: int, steps: int, grid: Grid | None = None) -> Nest:
    """shared: how many outer axes the tasks span; chunks: pieces of the inner axis."""
    *outer, inner = axes
    assert isinstance(inner.extent, int)
    if grid is not None:
        return Nest(tuple(outer), inner, 1, len(outer), inner.extent, True)
    lanes = min(lanes, 1 << (inner.extent.bit_length() - 1))
    known = [a.extent if isinstance(a.extent, int) else 1 for a in outer]
    parallel = math.prod(known) * inner.extent * steps >= SERIAL_WORK
    shared = next((k for k in range(len(outer)) if math.prod(known[:k]) >= TASKS), len(outer))
    shared = max(shared, 1) if outer else 0
    count = math.prod(known[:shared])
    chunks = 1
    if parallel and shared == len(outer) and count < TASKS:
        chunks = min(-(-TASKS // count), max(inner.extent * steps // (SERIAL_WORK // TASKS), 1))
    vectors = -(-inner.extent // lanes)
    chunks = -(-vectors // -(-vectors // chunks))
    return Nest(tuple(outer), inner, lanes, shared, chunks, parallel)


@contextmanager
def points(n: Nest, size: Callable[[Dim], Expr]) -> Iterator[tuple[list[Expr], Expr]]:
    """The body of the loops: (index along each outer axis, first element along inner)."""
    per_chunk = -(-n.vectors // n.chunks)
    extents = [size(a.extent) for a in n.outer]
    total: Expr = n.chunks
    for extent in extents[: n.shared]:
        total = total * extent
    with ExitStack() as stack:
        task = stack.enter_context(tasks(total, n.parallel))
        row, chunk = (task, 0) if n.chunks == 1 else (task // n.chunks, task % n.chunks)
        index = list(unravel(row, extents[: n.shared]))
        index += [stack.enter_context(loop(e)) for e in extents[n.shared :]]
        if n.vectors == 1:
            yield index, 0
            return
        if current() is not None:
            yield index, chunk
            return
        count: Expr = per_chunk
        if n.vectors % per_chunk:
            count = T.min(per_chunk, n.vectors - chunk * per_chunk)
        at = (chunk * per_chunk + stack.enter_context(loop(count))) * n.lanes
        last = int(n.inner.extent) - n.lanes
        yield index, at if last % n.lanes == 0 else T.min(at, last)


def offset(axes: Sequence[Axis], operand_index: int, index: Sequence[Expr], at: Expr) -> Expr:
    """Where an operand's element lies."""
    result: Expr = 0
    for axis, i in zip(axes, (*index, at), strict=True):
        step = axis.steps[operand_index]
        result = result + i * step if step else result
    return result


def read(buffer: Buffer, start: Expr, step: int, lanes: int) -> Value:
    """`lanes` elements `step` apart; one scalar when they are all the same."""
    if step == 0 or lanes == 1:
        return bind(buffer[start])
    if step == 1:
        return bind(vector(buffer, start, lanes))
    return bind(buffer[T.ramp(start, step, lanes)])


def write(buffer: Buffer, start: Expr, step: int, value: Value, lanes: int) -> None:
    value = widened(value, lanes)
    T.buffer_store(buffer, value, [start if lanes == 1 else T.ramp(start, step, lanes)])
