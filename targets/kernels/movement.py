"""Copies: slice, expand, flip, permute, concat, pad, dilate, arange, full.

Each is one or more passes that read with some step along every axis and write with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.ops import Arange, Concat, Dilate, Expand, Flip, Full, Pad, Permute, Slice

from .algebra import Primitives, Value, bind, dtype_bits, literal, number
from .build import Buffer, Expr, Params, function, loop, tasks, vector
from .geometry import Dim
from .grid import current
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import Axis, broadcast_steps, collapsed, contiguous, nest, offset, points, read, write

Steps = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Elements of a buffer: the first of them, and the step along each axis of the pass."""

    steps: Steps
    first: int = 0


@dataclass(frozen=True)
class Copy:
    """`target[to + ...] = source[at + ...]` over a shape; `source` counts the operands."""

    shape: tuple[Dim, ...]
    source: int
    read: View
    write: View


def lower(site: Site, machine: Machine) -> Answer:
    """One op of movement; others: not ours."""
    (node,) = site.body[-1:]
    if len(site.body) != 1 or not isinstance(node.op, KINDS):
        return None
    if any(isinstance(d, str) for t in (node, *node.inputs) for d in dims(t.tensor.shape)[1:]):
        return Miss("only the first dimension may be symbolic")
    passes = _passes(node)
    if isinstance(passes, Miss):
        return passes
    key = ("movement", site.key, machine.primitives)
    return Launch(key, lambda: _function(node, passes, machine.primitives), node.inputs)


KINDS = (Arange, Concat, Dilate, Expand, Flip, Full, Pad, Permute, Slice)


def _passes(node: Node) -> list[Copy] | Miss:
    """The copies that make the result (beside a fill before them)."""
    out = dims(node.tensor.shape)
    whole = View(contiguous(out))
    match node.op:
        case Full() | Arange():
            return []
        case Concat(axis=axis):
            return _concat(node, axis)
        case Slice(axis=axis, start=start, step=step):
            if not isinstance(start, int):
                return Miss("a slice must start at a known index")
            return [Copy(out, 0, _sliced(node.inputs[0], axis, start, step), whole)]
        case Expand():
            shape = dims(node.inputs[0].tensor.shape)
            return [Copy(out, 0, View(broadcast_steps(shape, out)), whole)]
        case Flip(axes=axes):
            return _flip(node, axes)
        case Permute(dims=order):
            steps = contiguous(dims(node.inputs[0].tensor.shape))
            return [Copy(out, 0, View(tuple(steps[d] for d in order)), whole)]
    return _spread(node)


def _concat(node: Node, axis: int) -> list[Copy] | Miss:
    steps = contiguous(dims(node.tensor.shape))
    copies, first = [], 0
    for k, i in enumerate(node.inputs):
        shape = dims(i.tensor.shape)
        copies.append(Copy(shape, k, View(contiguous(shape)), View(steps, first * steps[axis])))
        size = shape[axis]
        if isinstance(size, str):
            return Miss("a concatenation along a symbolic dimension")
        first += size
    return copies


def _sliced(x: Node, axis: int, start: int, step: int) -> View:
    steps = list(contiguous(dims(x.tensor.shape)))
    first = start * steps[axis]
    steps[axis] *= step
    return View(tuple(steps), first)


def _flip(node: Node, axes: Sequence[int]) -> list[Copy] | Miss:
    shape = dims(node.tensor.shape)
    steps, first = list(contiguous(shape)), 0
    for axis in {a % len(shape) for a in axes}:
        size = shape[axis]
        if isinstance(size, str):
            return Miss("a flip along a symbolic dimension")
        first += (size - 1) * steps[axis]
        steps[axis] = -steps[axis]
    return [Copy(shape, 0, View(tuple(steps), first), View(contiguous(shape)))]


def _spread(node: Node) -> list[Copy] | Miss:
    """Pad and dilate: the operand's elements, some steps apart, in a filled result."""
    shape, steps = dims(node.inputs[0].tensor.shape), contiguous(dims(node.tensor.shape))
    match node.op:
        case Pad(pads=pads):
            if any(p < 0 for pair in pads for p in pair):
                return Miss(f"a negative border, got {pads}")
            if isinstance(shape[0], str) and pads[0] != (0, 0):
                return Miss("a border along a symbolic dimension")
            first = sum(before * s for (before, _), s in zip(pads, steps, strict=True))
            return [Copy(shape, 0, View(contiguous(shape)), View(steps, first))]
        case Dilate(strides=strides):
            if isinstance(shape[0], str) and strides[0] != 1:
                return Miss("a dilation along a symbolic dimension")
            spread = tuple(s * d for s, d in zip(steps, strides, strict=True))
            return [Copy(shape, 0, View(contiguous(shape)), View(spread))]
    raise TypeError(f"{node.op.kind} is no movement")


def _fill(node: Node) -> float | None:
    """What is written everywhere first."""
    op = node.op
    if isinstance(op, Pad | Dilate):
        grown = node.tensor.shape != node.inputs[0].tensor.shape
        return op.value if grown else None
    return op.value if isinstance(op, Full) else None


def _function(node: Node, passes: Sequence[Copy], primitives: Primitives) -> Any:
    operands = [operand(f"x{k}", i.tensor) for k, i in enumerate(node.inputs)]
    result = operand("out", node.tensor)
    lanes = primitives.lanes(dtype_bits(result.dtype))
    made: list[Any] = []
    with function(node.op.kind, made, primitives.grid) as params:
        *sources, target = params.flat(*operands, result)
        if isinstance(node.op, Arange):
            _count(node.op, target, result.shape, params)
        value = _fill(node)
        if value is not None:
            constant = literal(number(value, result.dtype))
            _filled(target, result.shape, constant, lanes, params)
        for copy in passes:
            _copied(copy, sources[copy.source], target, lanes, params)
    return made[0]


def _count(op: Arange, target: Buffer, shape: Sequence[Dim], params: Params) -> None:
    size = params.symbols.dim(shape[0])
    with loop(size) if current() is None else tasks(size, False) as i:
        at = tirx.Cast("int64", i) if isinstance(size, int) else i
        value = at * tirx.const(op.step, "int64") + tirx.const(op.start, "int64")
        write(target, i, 1, tirx.Cast(op.dtype.value, value), 1)


def _filled(target: Buffer, shape: Sequence[Dim], value: Value, lanes: int, params: Params) -> None:
    steps = contiguous(shape)
    axes = collapsed(shape, [steps])
    loops = nest(axes, lanes, 1, current())
    with points(loops, params.symbols.dim) as (index, at):
        write(target, offset(axes, 0, index, at), 1, value, loops.lanes)


def _copied(copy: Copy, source: Buffer, target: Buffer, lanes: int, params: Params) -> None:
    axes = collapsed(copy.shape, [copy.read.steps, copy.write.steps])
    tiled = interleaving(axes, lanes) or transposition(axes, lanes)
    if tiled is not None and current() is None:
        tiled.emit(source, copy.read.first, target, copy.write.first, params)
        return
    loops = nest(axes, lanes, 1, current())
    with points(loops, params.symbols.dim) as (index, at):
        value = read(source, offset(axes, 0, index, at) + copy.read.first,
                     loops.inner.steps[0], loops.lanes)  # fmt: skip
        write(target, offset(axes, 1, index, at) + copy.write.first, loops.inner.steps[1],
              value, loops.lanes)  # fmt: skip


@dataclass(frozen=True)
class Transposition:
    """The axis that is contiguous in the source and the one in the target, exchanged in tiles.

    down: contiguous in the source; across: in the target; rest: the loops around them.
    """

    rest: tuple[Axis, ...]
    down: Axis
    across: Axis
    side: int

    def emit(self, source: Buffer, at: Expr, target: Buffer, to: Expr, params: Params) -> None:
        side = self.side
        tiles = [Axis(-(-int(a.extent) // side), (0, 0)) for a in (self.down, self.across)]
        work = int(self.across.extent) * int(self.down.extent)
        loops = nest([*self.rest, *tiles, Axis(1, (0, 0))], 1, work)
        with points(loops, params.symbols.dim) as (index, _):
            *around, i, j = index
            i, j = _first(i, side, self.down), _first(j, side, self.across)
            start = [at, to]
            for axis, k in zip(self.rest, around, strict=True):
                start = [s + k * d if d else s for s, d in zip(start, axis.steps, strict=True)]
            across, down = self.across.steps[0], self.down.steps[1]
            start = [start[0] + i + j * across, start[1] + j + i * down]
            rows = [bind(vector(source, start[0] + k * across, side)) for k in range(side)]
            for k, row in enumerate(transposed(rows)):
                write(target, start[1] + k * down, 1, row, side)


def _first(tile: Expr, side: int, axis: Axis) -> Expr:
    """Where a tile starts; the last one overlaps the one before it."""
    last = int(axis.extent) - side
    return tile * side if last % side == 0 else T.min(tile * side, last)


def transposition(axes: Sequence[Axis], lanes: int) -> Transposition | None:
    """The axes as a transposition, when the innermost is not contiguous in the source."""
    *others, across = axes
    if across.steps[0] == 1 or across.steps[1] != 1:
        return None
    down = next((a for a in others if a.steps[0] == 1), None)
    side = min(lanes, MAX_SIDE)
    if down is None or isinstance(down.extent, str):
        return None
    smaller = min(int(across.extent), down.extent)
    while side > smaller:
        side //= 2
    if side < MIN_SIDE:
        return None
    return Transposition(tuple(a for a in others if a is not down), down, across, side)


@dataclass(frozen=True)
class Interleaving:
    """Two to four planes to pixels, or back: `few` values of a pixel lie side by side on one end.

    together: 1 when they do in the target, 0 in the source; long: the axis along the planes.
    """

    rest: tuple[Axis, ...]
    few: Axis
    long: Axis
    lanes: int
    together: int

    def emit(self, source: Buffer, at: Expr, target: Buffer, to: Expr, params: Params) -> None:
        count, lanes = int(self.few.extent), self.lanes
        blocks = Axis(-(-int(self.long.extent) // lanes), (0, 0))
        loops = nest([*self.rest, blocks, Axis(1, (0, 0))], 1, count * lanes)
        with points(loops, params.symbols.dim) as (index, _):
            *around, block = index
            first = _first(block, lanes, self.long)
            start = [at, to]
            for axis, k in zip((*self.rest, self.long), (*around, first), strict=True):
                start = [s + k * d if d else s for s, d in zip(start, axis.steps, strict=True)]
            apart = self.few.steps[1 - self.together]
            planes = [start[1 - self.together] + k * apart for k in range(count)]
            if self.together:
                rows = [bind(vector(source, p, lanes)) for p in planes]
                order = [c * lanes + i for i in range(lanes) for c in range(count)]
                write(target, start[1], 1, T.Shuffle(rows, order), count * lanes)
                return
            pixels = bind(vector(source, start[0], count * lanes))
            for c, place in enumerate(planes):
                picked = T.Shuffle([pixels], [i * count + c for i in range(lanes)])
                write(target, place, 1, picked, lanes)


# More planes than these are exchanged in tiles.
MAX_PLANES = 4


def interleaving(axes: Sequence[Axis], lanes: int) -> Interleaving | None:
    """The axes as planes to pixels or pixels to planes."""
    for together in (0, 1):
        few = next((a for a in axes if a.steps[together] == 1), None)
        if few is None or isinstance(few.extent, str) or not 2 <= few.extent <= MAX_PLANES:
            continue
        along = [a for a in axes if a.steps == ((few.extent, 1), (1, few.extent))[together]]
        if not along or isinstance(along[0].extent, str):
            continue
        while lanes > along[0].extent:
            lanes //= 2
        rest = tuple(a for a in axes if a is not few and a is not along[0])
        return Interleaving(rest, few, along[0], lanes, together)
    return None


# A tile of 16 x 16 bytes, 8 x 8 floats: as many rows as there are registers.
MAX_SIDE = 16
# Smaller tiles are no faster than element by element.
MIN_SIDE = 4


def transposed(rows: Sequence[Value]) -> list[Value]:
    """n vectors of n lanes, n a power of two, exchanged: interleaved in pairs log2(n) times."""
    n, half = len(rows), len(rows) // 2
    low = [k // 2 + (k % 2) * n for k in range(n)]
    result = list(rows)
    for _ in range(n.bit_length() - 1):
        pairs = list(zip(result[:half], result[half:], strict=True))
        result = [
            bind(T.Shuffle([a, b], [i + part for i in low])) for a, b in pairs for part in (0, half)
        ]
    return result


