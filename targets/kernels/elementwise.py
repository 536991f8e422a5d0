"""Elementwise regions: any chain or DAG of formulas in one pass over the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.types import Dim as GraphDim

from .algebra import TIR, Primitives, Value, bind, dtype_bits, widened
from .build import Buffer, Expr, function, loop, tasks, unravel, vector
from .formula import Use, evaluate, supported, uses
from .geometry import Dim
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .strides import Axis, broadcast_steps, collapsed

# Vectors handled together where a formula is short: hides latency, and packs bytes well.
UNROLL = 4
# Formulas of more steps than this are done one vector at a time: more would not fit the registers.
LIGHT_STEPS = 4
# Element-steps below which waking another thread (some microseconds) costs more than it saves.
SERIAL_WORK = 1 << 16
# Enough pieces for the threads of a small machine to share evenly.
TASKS = 16


@dataclass(frozen=True)
class Nest:
    """The loops of one elementwise pass: `outer` axes, then vectors of `lanes` along `inner`.

    Where inner is no multiple of lanes the last vector overlaps the one before it.
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


def nest(axes: Sequence[Axis], lanes: int, steps: int) -> Nest:
    """shared: how many outer axes the tasks span; chunks: pieces of the inner axis."""
    *outer, inner = axes
    assert isinstance(inner.extent, int)
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


def vector_lanes(nodes: Sequence[Node], primitives: Primitives, steps: int) -> int:
    """How many elements are handled together: full registers of the widest type."""
    widest = max((dtype_bits(n.tensor.dtype.value) for n in nodes), default=8)
    # Codes become int32 or float32 on their way through a formula.
    widest = max(widest, 32) if steps else widest
    return primitives.lanes(widest) * (UNROLL if steps <= LIGHT_STEPS else 1)


def lower(site: Site, machine: Machine) -> Answer:
    """Any graph of elementwise ops; operands broadcast as in numpy."""
    if not all(isinstance(b.op, Elementwise) for b in site.body):
        return None
    found = uses(site.body)
    leaves = list(dict.fromkeys(leaf for leaf, _ in found))
    problem = supported([*site.body, *leaves])
    if problem:
        return Miss(problem)
    key = ("elementwise", site.key, machine.primitives)
    return Launch(key, lambda: _function(site.body, found, leaves, machine.primitives), leaves)


def _function(body: Sequence[Node], found: Sequence[Use], leaves: Sequence[Node],
              primitives: Primitives):  # fmt: skip
    out = body[-1].tensor
    views = [(leaf, shape) for leaf, shape in found if shape is not None]
    result = operand("out", out)
    operands = [operand(f"x{k}", leaf.tensor) for k, leaf in enumerate(leaves)]
    steps = [broadcast_steps(dims(shape), result.shape) for _, shape in views]
    axes = collapsed(result.shape, [*steps, broadcast_steps(result.shape, result.shape)])
    lanes = vector_lanes([*body, *(leaf for leaf, _ in views)], primitives, len(body))
    loops = nest(axes, lanes, len(body))
    made: list[Any] = []
    with function("elementwise", made) as params:
        *buffers, target = params.flat(*operands, result)
        of = dict(zip(leaves, buffers, strict=True))
        with points(loops, params.symbols.dim) as (index, at):

            def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Value:
                k = views.index((leaf, shape))
                start = offset(axes, k, index, at)
                return read(of[leaf], start, loops.inner.steps[k], loops.lanes)

            values = evaluate(body, TIR(primitives), load, of.__getitem__)
            write(target, offset(axes, len(views), index, at), 1, values[body[-1]], loops.lanes)
    return made[0]
