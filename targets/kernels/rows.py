"""Row regions: one reduction along the last axis, with the elementwise steps before and after it.

A value that differs along the row is a recipe for any piece of it (`Row`); a reduction is a loop
over the pieces. Rows are cut into pieces of 16 elements, the lanes of the summation law; where
their number is no multiple of 16 the last piece overlaps the one before it, and a sum takes only
what is new in it. On a GPU 16 threads share a row, and a piece is an element of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Elementwise, RowOp
from qcompiler.types import Dim as GraphDim
from qcompiler.types import TensorType

from .algebra import (
    TIR,
    Primitives,
    Value,
    bind,
    dtype_bits,
    dtype_of,
    literal,
    number,
    widened,
)
from .build import Buffer, Expr, Symbols, function, local, scratch, tasks, unravel, vector
from .formula import evaluate, scalar, supported, uses
from .grid import exchanged, guarded, teams
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import SERIAL_WORK, Axis, broadcast_steps, collapsed, read, write

# Passes over a row, roughly: to compare the work with that of an elementwise kernel.
PASSES = 8
# Pieces of a row whose kept values stay in a thread's registers, of which it has 255.
UNROLLED_PIECES = 16
# Bytes of a row that a thread keeps in its local memory; what a row has beyond is computed again. A
# driver reserves them for every thread that can be resident: 16 KiB for each of the 270,336 of an
# H100 (132 multiprocessors of 2048) are 4.1 GiB, and CUDA's own limit of 512 KiB would be 132.
KEPT_BYTES = 16 << 10


@dataclass(frozen=True, eq=False)
class Piece:
    """`lanes` neighbouring elements of the row, from `start` on; what is known of them.

    slot: where their kept values are in what is stored of a row.
    """

    start: Expr
    lanes: int
    slot: Expr
    values: dict[Row, Value] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Row:
    """A value that differs along the row: how any piece of it is computed."""

    compute: Callable[[Piece], Value]

    def at(self, piece: Piece) -> Value:
        if self not in piece.values:
            piece.values[self] = self.compute(piece)
        return piece.values[self]


def _on(x: Any, piece: Piece) -> Value:
    return x.at(piece) if isinstance(x, Row) else x


def _lifted(name: str) -> Callable[..., Any]:
    """An operation of the algebra, postponed when an operand differs along the row."""

    def method(self: RowTIR, *args: Any) -> Any:
        rule = getattr(self.n, name)
        if not any(isinstance(a, Row) for a in args):
            return rule(*args)

        def compute(piece: Piece) -> Value:
            return rule(*(_on(a, piece) for a in args))

        return Row(compute)

    return method


@dataclass(frozen=True, eq=False)
class RowTIR:
    """`arith.RowAlgebra` over TIR, for one row of `size` elements of `dtype`.

    A value is a Row, or one of TIR's values for the whole row.
    """

    n: TIR
    size: int
    dtype: str = "float32"  # of the operand that is reduced
    unstored: dict[Row, Buffer] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Elements of a whole piece."""
        return arith.LANES

    const = _lifted("const")
    add = _lifted("add")
    sub = _lifted("sub")
    mul = _lifted("mul")
    div = _lifted("div")
    trunc_div = _lifted("trunc_div")
    sqrt = _lifted("sqrt")
    neg = _lifted("neg")
    abs = _lifted("abs")
    rint = _lifted("rint")
    lt = _lifted("lt")
    gt = _lifted("gt")
    le = _lifted("le")
    ge = _lifted("ge")
    eq = _lifted("eq")
    where = _lifted("where")
    logical_and = _lifted("logical_and")
    logical_or = _lifted("logical_or")
    logical_not = _lifted("logical_not")
    min = _lifted("min")
    max = _lifted("max")
    cast = _lifted("cast")
    exp2i = _lifted("exp2i")
    float_bits = _lifted("float_bits")
    bits_float = _lifted("bits_float")
    shift_right = _lifted("shift_right")
    lookup = _lifted("lookup")

    def row_size(self, x: Any, /) -> Value:
        return number(self.size, self.dtype)

    def row_max(self, x: Any, /) -> Value:
        return self._largest(x, "float32", self.n.max)

    def row_top(self, x: Any, /) -> Value:
        exact = not self.dtype.startswith("float")
        return self._largest(x, self.dtype, self.n.max if exact else self._nan_or_max)

    def _nan_or_max(self, a: Value, b: Value) -> Value:
        wins = self.n.logical_or(self.n.gt(a, b), self.n.logical_not(self.n.eq(a, a)))
        return self.n.where(wins, a, b)

    def _largest(self, x: Any, dtype: str, larger: Callable[[Value, Value], Value]) -> Value:
        best = Accumulator(number(_least(dtype), dtype), min(self.width, self.size))

        def seen(piece: Piece, fresh: int) -> None:
            best.set(larger(_on(x, piece), best.get()))

        self.sweep(seen)
        value = self.folded_max(best.get(), best.lanes, larger)
        if not dtype.startswith("float"):
            return value
        zero = number(0.0, dtype)
        return self.n.where(self.n.eq(value, zero), zero, value)

    def folded_max(
        self, value: Value, lanes: int, larger: Callable[[Value, Value], Value]
    ) -> Value:
        """The largest lane. Any order will do: halves overlap where their number is odd."""
        while lanes > 1:
            half = -(-lanes // 2)
            value = larger(_part(value, 0, half), _part(value, lanes - half, half))
            lanes = half
        return value

    def row_sum(self, x: Any, /) -> Value:
        total = Accumulator(number(0.0, self.dtype), self.width)

        def added(piece: Piece, fresh: int) -> None:
            total.set(self.n.add(total.get(), self.fresh(_on(x, piece), piece.lanes, fresh)))

        self.sweep(added)
        return self.folded_sum(total.get())

    def folded_sum(self, value: Value) -> Value:
        """The tree of the law over the 16 lanes."""
        lanes = arith.LANES
        while lanes > 1:
            lanes //= 2
            value = self.n.add(_part(value, 0, lanes), _part(value, lanes, lanes))
        return value

    def keep(self, x: Any, /) -> Any:
        """Stored by the first loop that computes it, read by all later ones."""
        if not isinstance(x, Row):
            return x
        room = self.room()

        def compute(piece: Piece) -> Value:
            if kept not in self.unstored:
                return bind(vector(room, piece.slot, piece.lanes))
            value = widened(x.at(piece), piece.lanes)
            write(room, piece.slot, 1, value, piece.lanes)
            return value

        kept = Row(compute)
        self.unstored[kept] = room
        return kept

    def room(self) -> Buffer:
        """Memory for the values of a row."""
        return scratch(self.size, self.dtype)

    def fresh(self, value: Value, lanes: int, count: int) -> Value:
        """The last `count` lanes of a piece as the first of 16, the others 0."""
        return _last(value, lanes, count)

    def once(self) -> AbstractContextManager[Any]:
        """For code of the row as a whole."""
        return nullcontext()

    def sweep(self, body: Callable[[Piece, int], None]) -> None:
        """body(piece, how many of its elements, the last ones, no earlier piece had)."""
        seen: set[Row] = set()

        def run(start: Expr, lanes: int, fresh: int) -> None:
            piece = Piece(start, lanes, start)
            body(piece, fresh)
            seen.update(piece.values)

        lanes = min(self.size, arith.LANES)
        whole, rest = divmod(self.size, lanes)
        if whole == 1:
            run(0, lanes, lanes)
        else:
            with T.serial(0, whole) as k:
                run(k * lanes, lanes, lanes)
        if rest:
            run(self.size - lanes, lanes, rest)
        for row in seen:
            self.unstored.pop(row, None)


@dataclass(frozen=True, eq=False)
class TeamTIR(RowTIR):
    """`arith.RowAlgebra` for a row that 16 threads of a warp share: each is a lane of the law.

    lane: which of them this thread is.
    """

    lane: Expr = None
    kept: list[int] = field(default_factory=list)  # bytes of each value that is

    @property
    def width(self) -> int:
        return 1

    def folded_max(
        self, value: Value, lanes: int, larger: Callable[[Value, Value], Value]
    ) -> Value:
        return self._folded(larger, value)

    def folded_sum(self, value: Value) -> Value:
        """Every thread has the sum: an addition is the same in either order."""
        return self._folded(self.n.add, value)

    def _folded(self, rule: Callable[[Value, Value], Value], value: Value) -> Value:
        dtype, distance = dtype_of(value), arith.LANES
        # Exchanges are of 32 or 64 bits.
        passed = dtype if dtype_bits(dtype) >= 32 else "int32"
        while distance > 1:
            distance //= 2
            other = exchanged(self.n.cast(value, passed), passed, distance, arith.LANES)
            value = rule(value, self.n.cast(other, dtype))
        return value

    def keep(self, x: Any, /) -> Any:
        size = -(-self.size // arith.LANES) * (dtype_bits(self.dtype) // 8)
        if not isinstance(x, Row) or sum(self.kept) + size > KEPT_BYTES:
            return x
        self.kept.append(size)
        return super().keep(x)

    def room(self) -> Buffer:
        return local(-(-self.size // arith.LANES), self.dtype)

    def fresh(self, value: Value, lanes: int, count: int) -> Value:
        return value

    def once(self) -> AbstractContextManager[Any]:
        return guarded(self.lane == 0)

    def sweep(self, body: Callable[[Piece, int], None]) -> None:
        seen: set[Row] = set()

        def run(k: Expr) -> None:
            piece = Piece(k * arith.LANES + self.lane, 1, k)
            body(piece, 1)
            seen.update(piece.values)

        whole, rest = divmod(self.size, arith.LANES)
        if whole == 1:
            run(0)
        elif whole:
            # Unrolled, or what is kept of the row could not stay in registers.
            with T.unroll(0, whole) if whole <= UNROLLED_PIECES else T.serial(0, whole) as k:
                run(k)
        if rest:
            with guarded(self.lane < rest):
                run(whole)
        for row in seen:
            self.unstored.pop(row, None)


@dataclass(frozen=True)
class Accumulator:
    """A vector that a loop updates."""

    start: Value
    lanes: int
    room: Buffer = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", local(self.lanes, dtype_of(self.start)))
        self.set(self.start)

    def get(self) -> Value:
        return vector(self.room, 0, self.lanes)

    def set(self, value: Value) -> None:
        write(self.room, 0, 1, value, self.lanes)


def _least(dtype: str) -> float | int:
    """What no element is below."""
    return -math.inf if dtype.startswith("float") else int(np.iinfo(dtype).min)


def _part(value: Value, first: int, count: int) -> Value:
    return bind(T.Shuffle([value], list(range(first, first + count))))


def _last(value: Value, lanes: int, fresh: int) -> Value:
    """The last `fresh` lanes of a piece as the first of 16, the others 0."""
    value = widened(value, lanes)
    if fresh == arith.LANES:
        return value
    dtype = dtype_of(value)
    if lanes == arith.LANES:
        zero = literal(number(0.0, dtype))
        order = [lanes - fresh + j if j < fresh else lanes for j in range(arith.LANES)]
        return bind(T.Shuffle([value, T.broadcast(zero, lanes)], order))
    room = local(arith.LANES, dtype)
    write(room, 0, 1, number(0.0, dtype), arith.LANES)
    write(room, 0, 1, value, lanes)
    return bind(vector(room, 0, arith.LANES))


def lower(site: Site, machine: Machine) -> Answer:
    """elementwise* row_op elementwise*, all of one shape but for what a reduction leaves."""
    rows = [b for b in site.body if isinstance(b.op, RowOp)]
    if len(rows) != 1:
        return None
    rest = [b for b in site.body if b is not rows[0]]
    if not all(isinstance(b.op, Elementwise) for b in rest):
        return None
    problem = supported(site.body)
    x = rows[0].inputs[0].tensor
    if not isinstance(x.shape[-1], int):
        return Miss(f"the length of a row must be known (trace with a fixed size), got {x!r}")
    if problem:
        return Miss(problem)
    region = _Region(site, rows[0], machine.primitives)
    key = ("rows", site.key, machine.primitives)
    return Launch(key, region.function, region.leaves)


@dataclass(frozen=True, eq=False)
class _Region:
    """One row region: `before` the reduction, the reduction, and `after` it."""

    site: Site
    reduction: Node
    primitives: Primitives

    @property
    def before(self) -> list[Node]:
        """The steps that the reduction needs, in order."""
        needed = set(self.reduction.inputs)
        for node in reversed(self.site.body):
            if node in needed:
                needed.update(node.inputs)
        return [b for b in self.site.body if b in needed]

    @property
    def after(self) -> list[Node]:
        done = {*self.before, self.reduction}
        return [b for b in self.site.body if b not in done]

    @property
    def views(self) -> list[tuple[Node, tuple[GraphDim, ...]]]:
        """What is read along a row, and the shape under which it broadcasts."""
        steps = [*self.before, *self.after]
        found = dict.fromkeys((n, s) for n, s in uses(steps) if s is not None)
        inside = {*steps, self.reduction}
        found.update(
            dict.fromkeys(
                (i, i.tensor.shape)
                for i in self.reduction.inputs
                if i not in inside and scalar(i) is None
            )
        )
        return [(n, s) for n, s in found if n is not self.reduction]

    @property
    def leaves(self) -> list[Node]:
        tables = [n for n, s in uses([*self.before, *self.after]) if s is None]
        return list(dict.fromkeys([*(n for n, _ in self.views), *tables]))

    @property
    def results(self) -> tuple[TensorType, ...]:
        t = self.site.node.type
        return (t,) if isinstance(t, TensorType) else t.items

    def function(self) -> Any:
        shape = dims(self.reduction.inputs[0].tensor.shape)
        size = shape[-1]
        assert isinstance(size, int)
        operands = [operand(f"x{k}", leaf.tensor) for k, leaf in enumerate(self.leaves)]
        results = [operand(f"out{k}", t) for k, t in enumerate(self.results)]
        steps = [broadcast_steps(dims(s), shape) for _, s in self.views]
        whole = broadcast_steps(shape, shape)
        outer = collapsed(shape[:-1], [s[:-1] for s in (*steps, whole)])
        made: list[Any] = []
        with function("rows", made, self.primitives.grid) as params:
            buffers = params.flat(*operands, *results)
            count = self._count(outer, params.symbols)
            work = size * PASSES * math.prod(a.extent for a in outer if isinstance(a.extent, int))
            with self._each(size, count, work >= SERIAL_WORK) as (row, algebra):
                extents = [params.symbols.dim(a.extent) for a in outer]
                index = unravel(row, extents)
                starts = [
                    sum((i * a.steps[k] for i, a in zip(index, outer, strict=True)), start=0)
                    for k in range(len(steps))
                ]
                inner = [s[-1] for s in steps]
                self._row(algebra, row, buffers, starts, inner)
        return made[0]

    @contextmanager
    def _each(self, size: int, count: Expr, parallel: bool) -> Iterator[tuple[Expr, RowTIR]]:
        """The code for one row is written inside."""
        grid, n = self.primitives.grid, TIR(self.primitives)
        dtype = self.reduction.inputs[0].tensor.dtype.value
        if grid is not None:
            with teams(count, arith.LANES, grid) as (row, lane):
                yield row, TeamTIR(n, size, dtype, lane=lane)
            return
        with tasks(count, parallel) as row:
            yield row, RowTIR(n, size, dtype)

    def _count(self, outer: Sequence[Axis], symbols: Symbols) -> Expr:
        count: Expr = 1
        for axis in outer:
            count = count * symbols.dim(axis.extent)
        return count

    def _row(self, algebra: RowTIR, row: Expr, buffers: Sequence[Buffer], starts: Sequence[Expr],
             inner: Sequence[int]) -> None:  # fmt: skip
        """The code for one row."""
        views, of = self.views, dict(zip(self.leaves, buffers, strict=False))

        def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Any:
            k = views.index((leaf, shape))
            if inner[k] == 0:
                return read(of[leaf], starts[k], 0, 1)
            return Row(
                lambda piece: read(of[leaf], starts[k] + piece.start, inner[k], piece.lanes)
            )

        values = evaluate(self.before, algebra, load, of.__getitem__)
        args = []
        for k, i in enumerate(self.reduction.inputs):
            if i in values:
                args.append(algebra.keep(values[i]) if k == 0 else values[i])
            else:
                known = scalar(i)
                args.append(load(i, i.tensor.shape) if known is None else known)
        result = self.reduction.op.law(algebra, *args)  # type: ignore[attr-defined]
        targets = buffers[len(self.leaves) :]
        if isinstance(result, tuple):
            _stored(algebra, list(zip(targets, result, strict=True)), row)
            return
        given = {**values, self.reduction: result}
        values = evaluate(self.after, algebra, load, of.__getitem__, given)
        _stored(algebra, [(targets[0], values[self.site.body[-1]])], row)


def _stored(algebra: RowTIR, results: Sequence[tuple[Buffer, Any]], row: Expr) -> None:
    """Rows are stored piece by piece, values for the whole row once."""
    for target, value in results:
        if not isinstance(value, Row):
            with algebra.once():
                write(target, row, 1, value, 1)
    rows = [(target, value) for target, value in results if isinstance(value, Row)]
    if not rows:
        return

    def store(piece: Piece, fresh: int) -> None:
        for target, value in rows:
            write(target, row * algebra.size + piece.start, 1, value.at(piece), piece.lanes)

    algebra.sweep(store)


