"""One row times weights, at the speed of memory: read once, in order, and decoded in registers.

A panel's codes and scales lie one after the other; its output channels are accumulators. Sums of a
group are scaled and added to those of the channel: in float32, or exactly in int32. Two panels far
apart are computed side by side, and what they need next is fetched ahead: the machine's own
prefetcher stops at the end of a page, and follows two streams faster than one.

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
    prefetch,
    scratch,
    splat,
    store,
    tasks,
    vector,
)  # fmt: skip
from .decode import BYTE_BITS, HALF, LOW_HALF, OFFSET, PLAIN, Coding, part
from .dot import Dot
from .geometry import Linear
from .plan import SERIAL_MACS, TASKS, row_lanes

# Panels computed side by side, and bytes that each is fetched ahead. One core, 44 MB of bytes, its
# caches cold, huge pages: one stream 2.7 ms, fetched ahead 2.4, two 2.2, four 2.5, eight 2.6;
# 512 to 2048 bytes are alike.
STREAMS = 2
AHEAD = 1024
CACHE_LINE = 64
# Elements of the row handled together before the panels.
LANES = 8
# Steps of a group written out: the loop's counter costs little beside them.
UNROLL = 4


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
    """Everything the panels of one kernel share. scales: None where the coding has none."""

    g: Linear
    dot: Dot
    coding: Coding
    codes: Buffer
    scales: Buffer | None
    init: Buffer | None
    out: Buffer
    epilogue: Epilogue
    views: Sequence[View]
    staged: Staged

    @property
    def lanes(self) -> int:
        return row_lanes(self.g, self.dot)

    @property
    def floats(self) -> bool:
        return self.dot.acc_dtype == "float32"

    def chunk(self, first: Expr, count: Expr) -> None:
        """`count` whole panels from `first` on, as streams that begin at equal distances."""
        each = T.bind(count // STREAMS)
        with T.serial(0, each) as i:
            self.panels([first + s * each + i for s in range(STREAMS)], self.lanes)
        with T.serial(0, count % STREAMS) as i:
            self.panels([first + STREAMS * each + i], self.lanes)

    def panels(self, places: Sequence[Expr], width: int) -> None:
        """Panels side by side, of each the first `width` channels."""
        vectors = range(-(-width // self.dot.lanes))
        lines = [Line(self, p, vectors) for p in places]
        sums = [line.accumulators() for line in lines]
        if self.scales is None:
            self._group(lines, sums, 0)
        else:
            self._groups(lines, sums, self.scales)
        for line, total in zip(lines, sums, strict=True):
            self._finish(total, line.panel * self.lanes, width)

    def _groups(self, lines: Sequence[Line], sums: Sequence[Sequence[Buffer]],
                scales: Buffer) -> None:  # fmt: skip
        """The sums of all groups, each times its scales."""
        with T.serial(0, self.coding.groups(self.g.k)) as group:
            start = self.staged.start(group)
            parts = [line.accumulators(start) for line in lines]
            self._group(lines, parts, group)
            for line, total, part_ in zip(lines, sums, parts, strict=True):
                line.add(total, part_, group, scales)

    def _group(self, lines: Sequence[Line], parts: Sequence[Sequence[Buffer]],
               group: Expr) -> None:  # fmt: skip
        """The sums of one group."""
        dot, coding = self.dot, self.coding
        count = -(-(coding.group or self.g.k) // dot.depth)
        together = _together(dot, coding, count)
        first = 0 if coding.group is None else group * count
        whole, rest = divmod(count, together)
        if whole:
            with T.serial(0, whole) as k:
                self._steps(lines, parts, first + k * together, together)
        if rest:
            self._steps(lines, parts, first + whole * together, rest)

    def _steps(self, lines: Sequence[Line], parts: Sequence[Sequence[Buffer]], first: Expr,
               count: int) -> None:  # fmt: skip
        """`count` steps from `first` on, a group of instructions after the other."""
        dot = self.dot
        for start in range(0, count, dot.group):
            here = range(start, min(start + dot.group, count))
            a = dot.operands(self.staged.x, [(first + start) * dot.depth], len(here))
            for line, sums in zip(lines, parts, strict=True):
                line.fetch(first, here)
                line.multiply(sums, a, first, here)

    def _finish(self, sums: Sequence[Buffer], first: Expr, width: int) -> None:
        lanes = self.dot.lanes
        for v, total in enumerate(sums):
            inside = min(width - v * lanes, lanes)
            for start, n in pieces(inside, lanes):
                channel = first + v * lanes + start
                value = vector(total, start, n)
                if self.init is not None:
                    value = value + vector(self.init, channel, n)
                at = Point(0, tuple(0 for _ in self.g.lead), channel)
                store(self.out, channel, self.epilogue(value, at, n, self.views), n)


@dataclass(frozen=True)
class Line:
    """One of the panels computed side by side, and which of its vectors are."""

    row: Row
    panel: Expr
    vectors: range

    def accumulators(self, start: Expr | None = None) -> list[Buffer]:
        """New ones that hold `start`, or zero."""
        dot = self.row.dot
        made = [local(dot.lanes, dot.acc_dtype) for _ in self.vectors]
        value = splat(T.Cast(dot.acc_dtype, 0) if start is None else start, dot.lanes)
        for acc in made:
            store(acc, 0, value, dot.lanes)
        return made

    def add(self, sums: Sequence[Buffer], parts: Sequence[Buffer], group: Expr,
            scales: Buffer) -> None:  # fmt: skip
        """The parts of a group times its scales."""
        row, lanes, dtype = self.row, self.row.dot.lanes, self.row.dot.acc_dtype
        first = (self.panel * row.coding.groups(row.g.k) + group) * row.lanes
        for v in self.vectors:
            scale = vector(scales, first + v * lanes, lanes)
            value, before = vector(parts[v], 0, lanes), vector(sums[v], 0, lanes)
            after = (
                row.dot.emit(before, [(value, scale)]) if row.floats
                else before + value * cast(scale, dtype, lanes)
            )  # fmt: skip
            store(sums[v], 0, after, lanes)

    def multiply(self, sums: Sequence[Buffer], a: Sequence[Expr], first: Expr,
                 steps: range) -> None:  # fmt: skip
        """One group of instructions, of the steps `first` + each of `steps`."""
        dot, size = self.row.dot, self.row.dot.lanes * self.row.dot.depth
        per_byte = self.row.coding.per_byte
        for v in self.vectors:
            b = [self._operand(self._at(first, s) + v * size, s % per_byte) for s in steps]
            total = dot.emit(vector(sums[v], 0, dot.lanes), list(zip(a, b, strict=True)))
            store(sums[v], 0, total, dot.lanes)

    def _at(self, first: Expr, step: int) -> Expr:
        """Where the codes of the step `first` + `step` begin; the first of a byte is even."""
        row = self.row
        coding, block = row.coding, row.lanes * row.dot.depth
        steps = coding.steps(row.g.k, row.dot)
        whole = (self.panel * steps + first) // coding.per_byte * block
        return whole + step // coding.per_byte * block

    def fetch(self, first: Expr, steps: range) -> None:
        """Have what will be read after AHEAD bytes brought into the first-level cache."""
        row = self.row
        width = row.dot.weight_width if row.coding.scale is None else 1
        size = row.lanes * row.dot.depth * width
        for step in (s for s in steps if s % row.coding.per_byte == 0):
            for line in range(0, size, CACHE_LINE):
                prefetch(row.codes, self._at(first, step) + (AHEAD + line) // width)

    def _operand(self, at: Expr, half: int) -> Expr:
        row, dot = self.row, self.row.dot
        size = dot.lanes * dot.depth
        codes = vector(row.codes, at, size)
        if row.coding.scale is None:
            return codes
        if row.coding.bits == BYTE_BITS:
            return cast(codes, dot.b_dtype, size) if row.floats else codes
        if not row.floats:
            return cast(part(codes, half, "uint8", size), dot.b_dtype, size)
        whole = cast(codes, "int32", size)
        return cast(part(whole, 0, "int32", size) if half == 0 else whole, "float32", size)


def _together(dot: Dot, coding: Coding, count: int) -> int:
    """Steps written out in the loop over a group: whole bytes, whole groups of instructions."""
    least = max(dot.group, coding.per_byte)
    return min(-(-max(UNROLL, least) // least) * least, -(-count // coding.per_byte)
               * coding.per_byte)  # fmt: skip


def gemv(g: Linear, dot: Dot, *, in_dtype: str, out_dtype: str, epilogue: Epilogue = keep,
         operands: Sequence[Operand] = (), init: bool = True, shift: int = 0,
         coding: Coding = PLAIN, name: str = "gemv") -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], [scales], *operands, out): one row times weights.

    x `in_dtype` [*lead, K], of one row; weights and scales, if there are any, as `coding.packing`
    lays them; init `dot.acc_dtype` [N]; out `out_dtype` [*lead, N].
    `sum_g s_g sum (x + shift) w + init` is stored.
    """
    lanes = row_lanes(g, dot)
    codes, *scaling = coding.operands(g, lanes, dot)
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        x, weights, start, views, out = declare(
            params, io, codes, dot.acc_dtype, init, [*scaling, *operands]
        )
        full, rest = divmod(g.n, lanes)
        panels = full + (rest > 0)
        parallel = g.k * g.n >= SERIAL_MACS
        chunk = max(-(-panels // TASKS), 1) if parallel else panels
        staged = Staged.of(g, dot, coding, x, in_dtype, shift)
        scales = views[0].flat if scaling else None
        with tasks(-(-panels // chunk), parallel) as task:
            row = Row(g, dot, coding, weights, scales, start, out, epilogue, views[len(scaling) :],
                      staged)  # fmt: skip
            first = task * chunk
            row.chunk(first, T.bind(T.max(T.min(first + chunk, full) - first, 0)))
            if rest:
                with T.If(task == (panels - 1) // chunk), T.Then():
                    row.panels([full], rest)
    return made[0]
