"""The tiles of a matrix product: what one task computes of it, in registers.

A register tile of output pixels x channels runs over the reduction; its accumulators go through
the epilogue before they leave the registers. Where a size is not a multiple of the tile the last
tile overlaps the one before it: some outputs are computed twice, none is read or written out of
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from tvm.script.ir_builder import tirx as T

from .algebra import dtype_bits
from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Point,
    View,
    local,
    pieces,
    prefetch,
    scratch,
    store,
    vector,
)
from .decode import Decoder
from .dot import Dot, Halves
from .plan import Plan, Tile

# Accumulators handed to the epilogue together: two vectors, so that bytes are packed well, but no
# more than make 128 bits of bytes (one vector of 512 bits: 181 GMAC/s, two 179).
EPILOGUE_VECTORS = 2
EPILOGUE_LANES = 16

# Bytes of a panel that stay in a first-level cache of 32 KiB beside the rows that pass by.
PANEL_BYTES = 24 << 10
# Bytes of weights a cycle above which a panel is cut to that size (float32, 128 x 3072 x 768: 45
# GMAC/s uncut, 57 cut). Second-level caches deliver 16 to 32 in practice.
BLOCKED_RATE = 8.0
# A piece of a panel is at least this part of what fits: odd depths have no good divisor.
LEAST_PIECES = 4
# Dots of a tile and one row of the kernel up to which that row is written out: loops of one or two
# steps cost more than their bodies (first convolution of EfficientNet: 46 GMAC/s, 58 written out).
UNROLLED_DOTS = 80
# Bytes of weights from which on those of the next panel are prefetched while one is used: a program
# that has more weights than the second-level cache holds reads them anew in every call, and first
# passes wait for them (in the time without: ResNet-50 int8-fast 0.94, float32 0.96; BERT int8-fast
# 0.93; GPT-2 0.89).
FAR_BYTES = 64 << 10
# Passes over a panel among which that is shared: with more of them it is not worth an instruction.
MOST_PASSES = 32


@dataclass(frozen=True)
class Row:
    """One output pixel of a tile: where its first input element is, and where its output goes."""

    source: Expr
    pixel: Expr
    lead: tuple[Expr, ...]


@dataclass(frozen=True)
class Tap:
    """One loop of the reduction: its extent, and its steps in the source and in the weights."""

    extent: int
    source: int
    weights: int


@dataclass(frozen=True)
class Ahead:
    """Weights to prefetch while others are multiplied: the first element, and in how many passes
    over as many weights all of them are."""

    first: Expr
    passes: int


@dataclass(frozen=True)
class Product:
    """Everything the tiles of one kernel share."""

    dot: Dot
    plan: Plan
    taps: tuple[Tap, ...]
    steps: int
    panel_size: int
    group_out: int
    weights: Buffer
    init: Buffer | None
    out: Buffer
    channels: int
    epilogue: Epilogue
    views: Sequence[View]
    blocked: bool = False
    far: bool = False
    decoder: Decoder | None = None

    def decoded(self, panel: Expr, first: Expr, count: int) -> tuple[Product, Expr]:
        """(a product that reads `count` steps of the panel from `first` on decoded, its panel)."""
        if self.decoder is None:
            return self, panel
        weights = self.decoder.written(panel, first, count)
        return replace(self, weights=weights, decoder=None), 0

    def block(self, tile: Tile, source: Buffer, panel: Expr, first: Expr, width: int, count: int,
              rows: Callable[[int, Expr], list[Row]]) -> None:  # fmt: skip
        """`count` rows x the `width` channels from `first` on; rows(n, m): n of them from m on."""
        passes = -(-count // tile.rows)
        if not self.blocked:
            part, panel = self.decoded(panel, 0, self.panel_size)
            with tile_rows(count, tile.rows) as (t, m):
                ahead = part._ahead(panel * self.panel_size, self.panel_size, t, passes)
                part.tile(tile, source, panel, first, width, rows(tile.rows, m), ahead)
            return
        size = tile.lines(self.dot) * tile.vectors * self.dot.size
        sums = scratch(passes * size, self.dot.acc_dtype)
        with T.serial(0, passes) as t:
            accs = self._accumulators(tile)
            for line in accs:
                self._start(line, first, width)
            self._move(accs, sums, t * size, load=False)
        with ExitStack() as stack:
            at, weights, last = self._enter(stack, self.taps, 0 if self.decoder else panel)
            part = self
            if self.decoder is not None:
                part, weights = self.decoded(panel, weights, self.steps)
            t, m = stack.enter_context(tile_rows(count, tile.rows))
            places, accs = rows(tile.rows, m), self._accumulators(tile)
            self._move(accs, sums, t * size, load=True)
            ahead = part._ahead(weights, self.steps, t, passes)
            part._reduce(accs, source, [r.source + at for r in places], weights, ahead)
            with T.If(last):
                with T.Then():
                    self._finish(places, accs, first, width)
                with T.Else():
                    self._move(accs, sums, t * size, load=False)

    def _ahead(self, start: Expr, steps: int, tile: Expr, passes: int) -> Ahead | None:
        """What the pass of a tile over `steps` steps of weights from `start` on prefetches of those
        that follow: its share, one of `passes`. None where weights stay in the caches anyway."""
        if not self.far or not 1 < passes <= MOST_PASSES:
            return None
        share = steps * self._step_size // passes
        return Ahead((start + steps) * self._step_size + tile * share, passes)

    @property
    def _step_size(self) -> int:
        """Elements of weights in a step."""
        return self.plan.lanes * self.dot.depth

    def _accumulators(self, tile: Tile) -> list[list[Buffer]]:
        size, dtype = self.dot.size, self.dot.acc_dtype
        lines = range(tile.lines(self.dot))
        return [[local(size, dtype) for _ in range(tile.vectors)] for _ in lines]

    def _move(self, accs: Sequence[Sequence[Buffer]], sums: Buffer, at: Expr, load: bool) -> None:
        """All accumulators of a tile from memory, or to it."""
        size = self.dot.size
        for k, acc in enumerate(a for line in accs for a in line):
            target, to, origin, place = (acc, 0, sums, at + k * size)
            if not load:
                target, to, origin, place = (sums, at + k * size, acc, 0)
            store(target, to, vector(origin, place, size), size)

    def _enter(self, stack: ExitStack, taps: Sequence[Tap],
               panel: Expr) -> tuple[Expr, Expr, Expr]:  # fmt: skip
        """Enters the loops; (offset in the source, in the weights, whether it is the last turn)."""
        at, weights, last = 0, panel * self.panel_size, True
        for tap in taps:
            i = stack.enter_context(T.serial(0, tap.extent))
            at, weights = at + i * tap.source, weights + i * tap.weights
            turn = i == tap.extent - 1
            last = turn if last is True else T.And(last, turn)
        return at, weights, last

    def tile(self, tile: Tile, source: Buffer, panel: Expr, first: Expr, width: int,
             rows: Sequence[Row], ahead: Ahead | None = None) -> None:  # fmt: skip
        """`rows` x the `width` channels from `first` on, whose weights are in `panel`."""
        accs = self._accumulators(tile)
        for line in accs:
            self._start(line, first, width)
        with ExitStack() as stack:
            *outer, last = (Tap(1, 0, 0), *self.taps)
            emitted = last.extent * self.steps * len(rows) * tile.vectors
            unrolled = range(last.extent if emitted <= UNROLLED_DOTS else 1)
            loops = outer if len(unrolled) > 1 else self.taps
            at, weights, _ = self._enter(stack, loops, panel)
            for j in unrolled:
                here = [r.source + (at + j * last.source) for r in rows]
                read = weights + j * last.weights
                done = read - panel * self.panel_size
                self._reduce(accs, source, here, read, self._moved(ahead, done))
        self._finish(rows, accs, first, width)

    def _start(self, line: Sequence[Buffer], first: Expr, width: int) -> None:
        dot, lanes = self.dot, self.dot.lanes
        for v, acc in enumerate(line):
            inside = min(width - v * lanes, lanes)
            if self.init is None or inside < lanes:
                store(acc, 0, T.broadcast(T.Cast(dot.acc_dtype, 0), dot.size), dot.size)
            if self.init is not None:
                for start, n in pieces(inside, lanes):
                    value = vector(self.init, first + v * lanes + start, n)
                    for r in range(dot.rows):
                        store(acc, r * lanes + start, value, n)

    def _moved(self, ahead: Ahead | None, steps: Expr) -> Ahead | None:
        """After so many steps."""
        if ahead is None:
            return None
        return replace(ahead, first=ahead.first + steps * self._step_size // ahead.passes)

    def _reduce(self, accs: Sequence[Sequence[Buffer]], source: Buffer, rows: Sequence[Expr],
                weights: Expr, ahead: Ahead | None = None) -> None:  # fmt: skip
        group = self.dot.group
        whole, rest = divmod(self.steps, group)
        if whole:
            with T.serial(0, whole) as k:
                if ahead is not None:
                    share = max(group * self._step_size // ahead.passes, 1)
                    prefetch(self.weights, ahead.first + k * share)
                self._step(accs, source, rows, weights, k * group, group)
        if rest:
            self._step(accs, source, rows, weights, whole * group, rest)

    def _step(self, accs: Sequence[Sequence[Buffer]], source: Buffer, rows: Sequence[Expr],
              weights: Expr, k: Expr, count: int) -> None:  # fmt: skip
        dot = self.dot
        if dot.halves is not None:
            self._halves(dot.halves, accs, source, rows, weights, k, count)
            return
        for taken, line in zip(_taken(rows, dot.rows), accs, strict=True):
            a = dot.operands(source, [row + k * dot.depth for row in taken], count)
            for v, acc in enumerate(line):
                b = [self._weights(weights + k + g, v) for g in range(count)]
                total = dot.emit(vector(acc, 0, dot.size), list(zip(a, b, strict=True)))
                store(acc, 0, total, dot.size)

    def _halves(self, halves: Halves, accs: Sequence[Sequence[Buffer]], source: Buffer,
                rows: Sequence[Expr], weights: Expr, k: Expr, count: int) -> None:  # fmt: skip
        """A step in halves: one instruction after the other, each for all accumulators."""
        dot, lanes = self.dot, halves.lanes
        sums = [[local(lanes, halves.dtype) for _ in line] for line in accs]
        for g in range(count):
            b = [self._weights(weights + k + g, v) for v in range(len(accs[0]))]
            for row, line in zip(rows, sums, strict=True):
                a = dot.broadcast(source, row + (k + g) * dot.depth)
                for part, taken in zip(line, b, strict=True):
                    before = vector(part, 0, lanes) if g else None
                    store(part, 0, halves.add(before, a, taken), lanes)
        for accumulators, parts in zip(accs, sums, strict=True):
            for acc, part in zip(accumulators, parts, strict=True):
                total = halves.widen(vector(acc, 0, dot.size), vector(part, 0, lanes))
                store(acc, 0, total, dot.size)

    def _weights(self, step: Expr, v: int) -> Expr:
        """What vector v of the channels is multiplied with in a step."""
        size = self.dot.lanes * self.dot.depth
        return vector(self.weights, step * self._step_size + v * size, size)

    def _finish(self, rows: Sequence[Row], accs: Sequence[Sequence[Buffer]], first: Expr,
                width: int) -> None:  # fmt: skip
        lanes, size = self.dot.lanes, self.dot.size
        for i, row in enumerate(rows):
            line, skip = accs[i // self.dot.rows], i % self.dot.rows * lanes
            for start, n in pieces(width, min(EPILOGUE_VECTORS * size, EPILOGUE_LANES)):
                used = line[start // lanes : -(-(start + n) // lanes)]
                where = [
                    (start % lanes + j) // lanes * size + skip + (start + j) % lanes
                    for j in range(n)
                ]
                value = _picked([vector(acc, 0, size) for acc in used], where)
                at = Point(row.pixel, row.lead, first + start)
                result = self.epilogue(value, at, n, self.views)
                store(self.out, row.pixel * self.channels + first + start, result, n)


def _taken(rows: Sequence[Expr], count: int) -> Iterator[list[Expr]]:
    """The rows that each instruction takes; where they run out, the last one again."""
    for i in range(0, len(rows), count):
        here = list(rows[i : i + count])
        yield here + here[-1:] * (count - len(here))


def _picked(vectors: Sequence[Expr], where: list[int]) -> Expr:
    """The elements at these places of vectors laid end to end."""
    if len(vectors) == 1 and where == list(range(int(vectors[0].ty.dtype.lanes))):
        return vectors[0]
    return T.Shuffle(list(vectors), where)


@contextmanager
def tile_rows(count: int, size: int) -> Iterator[tuple[Expr, Expr]]:
    """(number, first row) of each tile; the last tile overlaps the one before it."""
    with T.serial(0, -(-count // size)) as t:
        yield t, t * size if count % size == 0 else T.bind(T.min(t * size, count - size))


def is_far(weights: Operand) -> bool:
    """Whether packed weights are so many that they are worth prefetching."""
    elements = math.prod(d for d in weights.shape if isinstance(d, int))
    return elements * dtype_bits(weights.dtype) // 8 >= FAR_BYTES


def panels_of(p: Product, part: Callable[[Tile, Expr, Expr, int], None], chunk: Expr) -> None:
    """part(tile, panel, first channel, width) over the panels of one chunk."""
    plan, groups = p.plan, p.channels // p.group_out
    if groups > 1:
        with _range(chunk * plan.chunk, plan.chunk, groups, plan.chunks) as g:
            _panels(p, part, g * plan.panels, g * p.group_out, 0, plan.full, True)
        return
    first = chunk * plan.chunk
    last = plan.full if plan.chunks == 1 else T.min(first + plan.chunk, plan.full)
    if plan.chunks == 1 or not plan.rest:
        _panels(p, part, 0, 0, first, last, True)
        return
    _panels(p, part, 0, 0, first, last, False)
    with T.If(chunk == plan.chunks - 1), T.Then():
        _panels(p, part, 0, 0, plan.full, plan.full, True)


@contextmanager
def _range(first: Expr, size: int, end: int, chunks: int) -> Iterator[Expr]:
    """The indices of a chunk of `size` from `first` on, below `end`."""
    inside = size if end % size == 0 or chunks == 1 else T.min(size, end - first)
    with T.serial(0, inside) as i:
        yield first + i


def _panels(p: Product, part: Callable[[Tile, Expr, Expr, int], None], base: Expr, channel: Expr,
            first: Expr, last: Expr, tail: bool) -> None:  # fmt: skip
    plan = p.plan
    if plan.main is not None and not (isinstance(first, int) and first == last):
        with T.serial(0, last - first) as i:
            panel = first + i
            part(plan.main, base + panel, channel + panel * plan.lanes, plan.lanes)
    if tail and plan.tail is not None:
        part(plan.tail, base + plan.full, channel + plan.full * plan.lanes, plan.rest)


def split_depth(dot: Dot, plan: Plan, taps: tuple[Tap, ...], steps: int,
                size: int) -> tuple[tuple[Tap, ...], int, bool]:  # fmt: skip
    """(taps, steps of the innermost loop, whether taps go around the rows) of a panel of `size`.

    A panel that exceeds the first-level cache is cut along the reduction, where the instruction is
    so fast that the second level could not feed it.
    """
    tile = plan.main or plan.tail
    assert tile is not None
    bytes_per_step = plan.lanes * dot.depth * dot.weight_width
    rate = bytes_per_step / (tile.lines(dot) * tile.vectors * dot.cycles)
    static = plan.blocks > 0
    if rate < BLOCKED_RATE or size * bytes_per_step <= PANEL_BYTES or not static:
        return taps, steps, False
    most = PANEL_BYTES // bytes_per_step
    # Groups stay whole, as they are proven: each piece begins one.
    whole = [d for d in range(1, steps + 1) if steps % d == 0 and d % dot.group == 0]
    piece = max((d for d in (*whole, steps) if d <= most), default=0)
    if piece * LEAST_PIECES < min(most, steps):
        return taps, steps, False
    inner = (Tap(steps // piece, piece * dot.depth, piece),) if piece < steps else ()
    return (*taps, *inner), piece, True
