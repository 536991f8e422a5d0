"""One row times weights that are codes, at the speed of memory: decoded in registers, by panels.

A panel's codes and scales are read once, in order; its output channels are accumulators. Sums of a
group are scaled and added to those of the channel: in float32, or exactly in int32.

Codes of 4 bits are multiplied as they lie, plus 8: the sums of a group start at -8 times those of
the row. For float32 the high code h of a byte B with the low code l is not cut out either:
`x l + y h = (x - y / 16) l + (y / 16) B`, so the row is held as x - y / 16 and y / 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Point,
    View,
    cast,
    copy,
    declare,
    fill,
    function,
    keep,
    local,
    pieces,
    scratch,
    splat,
    store,
    tasks,
    vector,
)  # fmt: skip
from .decode import BYTE_BITS, HALF, LOW_HALF, OFFSET, Coding, part
from .dot import Dot
from .geometry import Linear
from .plan import SERIAL_MACS, TASKS

# Vectors of channels in a panel: as many sums as hide the latency of an FMA behind the decoding of
# its operand, and whole cache lines of 4-bit codes.
VECTORS = 4
# Elements of the row handled together before the panels.
LANES = 8
# Steps of a group written out: the loop's counter costs little beside them.
UNROLL = 4


def panel_lanes(g: Linear, dot: Dot) -> int:
    """Channels of a panel."""
    return dot.lanes * min(VECTORS, -(-g.n // dot.lanes))


@dataclass(frozen=True)
class Staged:
    """The row as the dot takes it, zeros behind it up to the last step; where sums start."""

    x: Buffer
    starts: Buffer | None

    def start(self, group: Expr) -> Expr | None:
        return None if self.starts is None else self.starts[group]

    @staticmethod
    def of(g: Linear, dot: Dot, coding: Coding, x: Buffer, in_dtype: str, shift: int) -> Staged:
        size, halves = coding.steps(g.k, dot) * dot.depth, coding.bits == HALF
        x = _filled(g.k, size, dot, x, in_dtype, shift)
        if not halves:
            return Staged(x, None)
        assert coding.group is not None
        starts = scratch(coding.groups(g.k), dot.acc_dtype)
        with T.serial(0, coding.groups(g.k)) as group:
            _start(starts, group, x, coding.group, dot.acc_dtype)
        return Staged(_joined(x, size) if dot.acc_dtype == "float32" else x, starts)


def _filled(k: int, size: int, dot: Dot, x: Buffer, in_dtype: str, shift: int) -> Buffer:
    """The row with `shift` added, in the type of the dot, and zeros up to `size`."""
    if in_dtype == dot.a_dtype and shift == 0 and size == k:
        return x
    made = scratch(size, dot.a_dtype)

    def change(value: Expr, lanes: int) -> Expr:
        wide = cast(value, dot.a_dtype, lanes)
        return wide + splat(T.Cast(dot.a_dtype, shift), lanes) if shift else wide

    copy(made, 0, x, 0, k, change)
    fill(made, k, T.Cast(dot.a_dtype, 0), size - k)
    return made


def _start(starts: Buffer, group: Expr, x: Buffer, size: int, dtype: str) -> None:
    """-8 times the sum of a group of the row."""
    total = local(LANES, dtype)
    store(total, 0, splat(T.Cast(dtype, 0), LANES), LANES)
    for k in range(0, size, LANES):
        values = cast(vector(x, group * size + k, LANES), dtype, LANES)
        store(total, 0, vector(total, 0, LANES) + values, LANES)
    whole = total[0]
    for i in range(1, LANES):
        whole = whole + total[i]
    store(starts, group, whole * T.Cast(dtype, -OFFSET), 1)


def _joined(x: Buffer, size: int) -> Buffer:
    """x, y => x - y / 16, y / 16 for each pair."""
    made = scratch(size, "float32")
    lanes = list(range(LANES))

    def each(even: float, odd: float) -> Expr:
        return T.Shuffle([T.float32(odd if k % 2 else even) for k in lanes], lanes)

    part = 1 / (LOW_HALF + 1)
    with T.serial(0, size // LANES) as i:
        pair = vector(x, i * LANES, LANES)
        second = T.Shuffle([pair], [k | 1 for k in lanes])
        store(made, i * LANES, pair * each(1.0, part) - second * each(part, 0.0), LANES)
    return made


@dataclass(frozen=True)
class Row:
    """Everything the panels of one kernel share."""

    g: Linear
    dot: Dot
    coding: Coding
    codes: Buffer
    scales: Buffer
    init: Buffer | None
    out: Buffer
    epilogue: Epilogue
    views: Sequence[View]
    staged: Staged

    @property
    def lanes(self) -> int:
        return panel_lanes(self.g, self.dot)

    @property
    def vectors(self) -> range:
        return range(self.lanes // self.dot.lanes)

    @property
    def floats(self) -> bool:
        return self.dot.acc_dtype == "float32"

    def panel(self, p: Expr, width: int) -> None:
        """The `width` channels of panel p."""
        groups = self.coding.groups(self.g.k)
        sums = self._accumulators()
        for v in self.vectors:
            self._clear(sums[v])
        with T.serial(0, groups) as group:
            parts = self._accumulators()
            for v in self.vectors:
                self._clear(parts[v], self.staged.start(group))
            self._group(parts, p, group)
            for v in self.vectors:
                scale = vector(self.scales, (p * groups + group) * self.lanes + v * self.dot.lanes,
                               self.dot.lanes)  # fmt: skip
                self._scaled(sums[v], parts[v], scale)
        self._finish(sums, p * self.lanes, width)

    def _accumulators(self) -> list[Buffer]:
        return [local(self.dot.lanes, self.dot.acc_dtype) for _ in self.vectors]

    def _clear(self, acc: Buffer, start: Expr | None = None) -> None:
        value = T.Cast(self.dot.acc_dtype, 0) if start is None else start
        store(acc, 0, splat(value, self.dot.lanes), self.dot.lanes)

    def _scaled(self, total: Buffer, part: Buffer, scale: Expr) -> None:
        lanes, dtype = self.dot.lanes, self.dot.acc_dtype
        value, before = vector(part, 0, lanes), vector(total, 0, lanes)
        if self.floats:
            store(total, 0, self.dot.emit(before, [(value, scale)]), lanes)
        else:
            store(total, 0, before + value * cast(scale, dtype, lanes), lanes)

    def _group(self, parts: Sequence[Buffer], p: Expr, group: Expr) -> None:
        """The sums of one group."""
        dot, coding = self.dot, self.coding
        count = self.g.k if coding.group is None else -(-coding.group // dot.depth)
        together = _together(dot, coding, count)
        first = 0 if coding.group is None else group * count
        whole, rest = divmod(count, together)
        if whole:
            with T.serial(0, whole) as k:
                self._steps(parts, p, first + k * together, together)
        if rest:
            self._steps(parts, p, first + whole * together, rest)

    def _steps(self, parts: Sequence[Buffer], p: Expr, first: Expr, count: int) -> None:
        """`count` steps from `first` on, a group of instructions after the other."""
        dot, size = self.dot, self.dot.lanes * self.dot.depth
        steps = self.coding.steps(self.g.k, dot)
        block = self.lanes * dot.depth
        for start in range(0, count, dot.group):
            here = range(start, min(start + dot.group, count))
            a = dot.operands(self.staged.x, [(first + start) * dot.depth], len(here))
            for v in self.vectors:
                b = [
                    self._operand((p * steps + first + start) // self.coding.per_byte * block
                                  + (start % self.coding.per_byte + s - start)
                                  // self.coding.per_byte * block + v * size,
                                  s % self.coding.per_byte)
                    for s in here
                ]  # fmt: skip
                total = dot.emit(vector(parts[v], 0, dot.lanes), list(zip(a, b, strict=True)))
                store(parts[v], 0, total, dot.lanes)

    def _operand(self, at: Expr, half: int) -> Expr:
        dot, size = self.dot, self.dot.lanes * self.dot.depth
        codes = vector(self.codes, at, size)
        if self.coding.bits == BYTE_BITS:
            return cast(codes, dot.b_dtype, size) if self.floats else codes
        if not self.floats:
            return cast(part(codes, half, "uint8", size), dot.b_dtype, size)
        whole = cast(codes, "int32", size)
        return cast(part(whole, 0, "int32", size) if half == 0 else whole, "float32", size)

    def _finish(self, sums: Sequence[Buffer], first: Expr, width: int) -> None:
        lanes = self.dot.lanes
        for v in range(-(-width // lanes)):
            inside = min(width - v * lanes, lanes)
            for start, n in pieces(inside, lanes):
                channel = first + v * lanes + start
                value = vector(sums[v], start, n)
                if self.init is not None:
                    value = value + vector(self.init, channel, n)
                at = Point(0, tuple(0 for _ in self.g.lead), channel)
                store(self.out, channel, self.epilogue(value, at, n, self.views), n)


def _together(dot: Dot, coding: Coding, count: int) -> int:
    """Steps written out in the loop over a group: whole bytes, whole groups of instructions."""
    least = max(dot.group, coding.per_byte)
    return min(-(-max(UNROLL, least) // least) * least, -(-count // coding.per_byte)
               * coding.per_byte)  # fmt: skip


def gemv(g: Linear, dot: Dot, coding: Coding, *, in_dtype: str, out_dtype: str,
         epilogue: Epilogue = keep, operands: Sequence[Operand] = (), init: bool = True,
         shift: int = 0, name: str = "gemv") -> Any:  # fmt: skip
    """PrimFunc (x, codes, [init], scales, *operands, out): one row times coded weights.

    x `in_dtype` [*lead, K], of one row; codes and scales as `coding.packing` lays them; init
    `dot.acc_dtype` [N]; out `out_dtype` [*lead, N]. `sum_g s_g sum (x + shift) w + init` is stored.
    """
    lanes = panel_lanes(g, dot)
    codes, scales = coding.operands(g, lanes, dot)
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        x, weights, start, views, out = declare(
            params, io, codes, dot.acc_dtype, init, [scales, *operands]
        )
        full, rest = divmod(g.n, lanes)
        panels = full + (rest > 0)
        parallel = g.k * g.n >= SERIAL_MACS
        chunk = max(-(-panels // TASKS), 1) if parallel else panels
        staged = Staged.of(g, dot, coding, x, in_dtype, shift)
        with tasks(-(-panels // chunk), parallel) as task:
            row = Row(g, dot, coding, weights, views[0].flat, start, out, epilogue, views[1:],
                      staged)  # fmt: skip
            first = task * chunk
            with T.serial(0, T.max(T.min(first + chunk, full) - first, 0)) as i:
                row.panel(first + i, lanes)
            if rest:
                with T.If(task == (panels - 1) // chunk), T.Then():
                    row.panel(full, rest)
    return made[0]


