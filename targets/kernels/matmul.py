"""Matrix product and convolution by one template: implicit GEMM, NHWC, any Dot.

Packed weights [groups, panels, KH, KW, ceil(CI / depth), lanes, depth]. A register tile of output
pixels x channels runs over the reduction; its accumulators go through the epilogue before they
leave the registers. Where a size is not a multiple of the tile the last tile overlaps the one
before it: some outputs are computed twice, none is read or written out of bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Point,
    Symbols,
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
    unravel,
    vector,
)  # fmt: skip
from .decode import Coding, Decoder
from .depthwise import depthwise_conv2d
from .dot import Dot
from .geometry import Conv, Linear, as_linear, split_lead
from .plan import Plan, Stage, Tile, channelwise, plan_conv, plan_linear

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
        if not self.blocked:
            part, panel = self.decoded(panel, 0, self.panel_size)
            with tile_rows(count, tile.rows) as (_, m):
                part.tile(tile, source, panel, first, width, rows(tile.rows, m))
            return
        size = tile.lines(self.dot) * tile.vectors * self.dot.size
        sums = scratch(-(-count // tile.rows) * size, self.dot.acc_dtype)
        with T.serial(0, -(-count // tile.rows)) as t:
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
            part._reduce(accs, source, [r.source + at for r in places], weights)
            with T.If(last):
                with T.Then():
                    self._finish(places, accs, first, width)
                with T.Else():
                    self._move(accs, sums, t * size, load=False)

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
             rows: Sequence[Row]) -> None:  # fmt: skip
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
                self._reduce(accs, source, here, weights + j * last.weights)
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

    def _reduce(self, accs: Sequence[Sequence[Buffer]], source: Buffer, rows: Sequence[Expr],
                weights: Expr) -> None:  # fmt: skip
        group = self.dot.group
        whole, rest = divmod(self.steps, group)
        if whole:
            with T.serial(0, whole) as k:
                self._step(accs, source, rows, weights, k * group, group)
        if rest:
            self._step(accs, source, rows, weights, whole * group, rest)

    def _step(self, accs: Sequence[Sequence[Buffer]], source: Buffer, rows: Sequence[Expr],
              weights: Expr, k: Expr, count: int) -> None:  # fmt: skip
        dot, size = self.dot, self.dot.lanes * self.dot.depth
        panel = self.plan.lanes * dot.depth
        for taken, line in zip(_taken(rows, dot.rows), accs, strict=True):
            a = dot.operands(source, [row + k * dot.depth for row in taken], count)
            for v, acc in enumerate(line):
                b = [
                    vector(self.weights, (weights + k + g) * panel + v * size, size)
                    for g in range(count)
                ]
                total = dot.emit(vector(acc, 0, dot.size), list(zip(a, b, strict=True)))
                store(acc, 0, total, dot.size)

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


def packed_shape(g: Conv | Linear, plan: Plan, dot: Dot) -> tuple[int, ...]:
    """The shape of the weights as the kernel reads them."""
    if isinstance(g, Linear):
        return (1, plan.panels, 1, 1, -(-g.k // dot.depth), plan.lanes, dot.depth)
    deep = -(-g.group_in // dot.depth)
    return (g.groups, plan.panels, *g.kernel, deep, plan.lanes, dot.depth)


def conv2d(g: Conv, dot: Dot, *, in_dtype: str, out_dtype: str, epilogue: Epilogue = keep,
           operands: Sequence[Operand] = (), init: bool = True, pad: int = 0, shift: int = 0,
           name: str = "conv2d") -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out): a convolution and its epilogue.

    x `in_dtype` [N, H, W, CI]; weights `dot.b_dtype` packed; init `dot.acc_dtype` [CO], where the
    accumulators start; out `out_dtype` [N, OH, OW, CO]. pad: the code outside the input. shift:
    added to every code of x on its way to `dot.a_dtype`. sum((x + shift) * w) + init is stored.
    """
    if channelwise(g, dot):
        return depthwise_conv2d(g, dot, in_dtype=in_dtype, out_dtype=out_dtype, epilogue=epilogue,
                                operands=operands, init=init, pad=pad, shift=shift,
                                name=name)  # fmt: skip
    if g.pointwise:
        return linear(as_linear(g), dot, in_dtype=in_dtype, out_dtype=out_dtype, epilogue=epilogue,
                      operands=operands, init=init, shift=shift, name=name)  # fmt: skip
    plan = plan_conv(g, dot, in_dtype)
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", packed_shape(g, plan, dot), dot.b_dtype)
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        images = params.symbols.dim(g.batch)
        window = Window(g, plan, dot, x, pad, shift)
        whole = window.stage_whole(images) if plan.stage is Stage.WHOLE else None
        taps, steps, size = window.taps()
        taps, steps, blocked = split_depth(dot, plan, taps, steps, size)
        product = Product(dot, plan, taps, steps, size, g.group_out, weights, start, out,
                          g.out_channels, epilogue, views, blocked)  # fmt: skip
        with tasks(images * plan.blocks * plan.chunks, plan.parallel) as task:
            block, task = task % plan.blocks, task // plan.blocks
            image, chunk = task % images, task // images
            top = T.bind(T.min(block * plan.block, g.out_height - plan.block))
            source, base = window.source(whole, image, top)

            def part(tile: Tile, panel: Expr, first: Expr, width: int) -> None:
                start = base + _group(g, first)
                product.block(
                    tile, source, panel, first, width, plan.block * g.out_width,
                    lambda n, m: window.rows(n, m, start, image, top),
                )  # fmt: skip

            panels_of(product, part, chunk)
    return made[0]


def _group(g: Conv, first: Expr) -> Expr:
    """The first input channel of the group that output channel `first` is in."""
    return 0 if g.groups == 1 else first // g.group_out * g.group_in


@dataclass(frozen=True)
class Window:
    """How output pixels of a convolution see the input, staged or as it is."""

    g: Conv
    plan: Plan
    dot: Dot
    x: Buffer
    pad: int
    shift: int

    @property
    def staged(self) -> bool:
        return self.plan.stage is not Stage.NONE

    @property
    def line(self) -> int:
        """Elements from one input row to the next."""
        g = self.g
        if not self.staged:
            return g.width * g.channels
        reach = g.dilation[1] * (g.kernel[1] - 1) + 1
        return ((g.out_width - 1) * g.stride[1] + reach) * g.channels

    def lines(self, out_rows: int) -> int:
        """Input rows that `out_rows` output rows read."""
        g = self.g
        return (out_rows - 1) * g.stride[0] + g.dilation[0] * (g.kernel[0] - 1) + 1

    def taps(self) -> tuple[tuple[Tap, ...], int, int]:
        """(loops over the kernel, steps of the innermost loop, steps of a panel)."""
        g, deep = self.g, -(-self.g.group_in // self.dot.depth)
        (kh, kw), (dh, dw) = g.kernel, g.dilation
        size = kh * kw * deep
        down = Tap(kh, dh * self.line, kw * deep)
        joined = g.groups == 1 and dw == 1 and g.channels % self.dot.depth == 0
        if joined and deep % self.dot.group == 0:
            return tuple(t for t in (down,) if t.extent > 1), kw * deep, size
        across = Tap(kw, dw * g.channels, deep)
        return tuple(t for t in (down, across) if t.extent > 1), deep, size

    def rows(self, count: int, m: Expr, base: Expr, image: Expr, top: Expr) -> list[Row]:
        """`count` output pixels from pixel m of the block on."""
        g = self.g
        down, across = g.stride[0] * self.line, g.stride[1] * g.channels
        if g.out_width % count == 0:
            y, x = T.bind(m // g.out_width), T.bind(m % g.out_width)
            places = [(y, x + i) for i in range(count)]
        else:
            places = [((m + i) // g.out_width, (m + i) % g.out_width) for i in range(count)]
        start = (image * g.out_height + top) * g.out_width + m
        return [
            Row(T.bind(base + y * down + x * across), start + i, (image, top + y, x))
            for i, (y, x) in enumerate(places)
        ]

    def source(self, whole: Buffer | None, image: Expr, top: Expr) -> tuple[Buffer, Expr]:
        """(buffer, offset of the first element that output row `top` reads)."""
        g = self.g
        if whole is not None:
            return whole, (image * self.lines(g.out_height) + top * g.stride[0]) * self.line
        if not self.staged:
            return self.x, (image * g.height + top * g.stride[0]) * self.line
        lines = self.lines(self.plan.block)
        block = scratch(lines * self.line + self.dot.depth, self.dot.a_dtype)
        with T.serial(0, lines) as r:
            self._stage_line(block, r * self.line, image, top * g.stride[0] - g.padding[0] + r)
        return block, 0

    def stage_whole(self, images: Expr) -> Buffer:
        """All images copied, in parallel."""
        lines = self.lines(self.g.out_height)
        block = scratch(images * lines * self.line + self.dot.depth, self.dot.a_dtype)
        with tasks(images * lines, self.plan.parallel) as t:
            self._stage_line(block, t * self.line, t // lines, t % lines - self.g.padding[0])
        return block

    def _stage_line(self, block: Buffer, to: Expr, image: Expr, y: Expr) -> None:
        """One padded input row, y of the image, or a row of padding."""
        g, dtype = self.g, self.dot.a_dtype
        outside = T.Cast(dtype, self.pad + self.shift)
        left = min(g.padding[1] * g.channels, self.line)
        inside = min(g.width * g.channels, self.line - left)
        right = self.line - left - inside
        if g.padding[0] == 0 and self.lines(g.out_height) <= g.height:
            self._copy_line(block, to, image, y, (left, inside, right), outside)
            return
        with T.If(T.And(y >= 0, y < g.height)):
            with T.Then():
                self._copy_line(block, to, image, y, (left, inside, right), outside)
            with T.Else():
                fill(block, to, outside, self.line)

    def _copy_line(self, block: Buffer, to: Expr, image: Expr, y: Expr,
                   sizes: tuple[int, int, int], outside: Expr) -> None:  # fmt: skip
        g, (left, inside, right) = self.g, sizes
        fill(block, to, outside, left)
        at = (image * g.height + y) * g.width * g.channels
        copy(block, to + left, self.x, at, inside, _changed(self.dot.a_dtype, self.shift))
        fill(block, to + left + inside, outside, right)


def _changed(dtype: str, shift: int) -> Callable[[Expr, int], Expr]:
    """How staged elements are made from those of the input."""

    def change(value: Expr, lanes: int) -> Expr:
        wide = cast(value, dtype, lanes)
        return wide + splat(T.Cast(dtype, shift), lanes) if shift else wide

    return change


def linear(g: Linear, dot: Dot, *, in_dtype: str, out_dtype: str, epilogue: Epilogue = keep,
           operands: Sequence[Operand] = (), init: bool = True, shift: int = 0,
           coding: Coding | None = None, name: str = "linear") -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out): a matrix product and its epilogue.

    x `in_dtype` [*lead, K]; weights `dot.b_dtype` packed; init `dot.acc_dtype` [N]; out `out_dtype`
    [*lead, N]. sum((x + shift) * w) + init is stored. coding: weights are codes, as it says, and
    their scales the first of the operands; a panel is decoded for all rows of a task.
    """
    plan = plan_linear(g, dot, in_dtype)
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", packed_shape(g, plan, dot), dot.b_dtype)
        if coding is not None:
            packed, scales = coding.operands(g, plan.lanes, dot)
            operands = [scales, *operands]
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        decoder = None
        if coding is not None:
            decoder = Decoder.of(coding, g, dot, plan.lanes, weights, views[0].flat)
            views = views[1:]
        size = -(-g.k // dot.depth)
        taps, steps, blocked = split_depth(dot, plan, (), size, size)
        product = Product(dot, plan, taps, steps, size, g.n, weights, start, out, g.n, epilogue,
                          views, blocked, decoder)  # fmt: skip
        rows = Rows(g, plan, dot, x, shift, params.symbols)
        rows.emit(product)
    return made[0]


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix product, cut into tasks; their number may be known only at run time."""

    g: Linear
    plan: Plan
    dot: Dot
    x: Buffer
    shift: int
    symbols: Symbols

    def emit(self, product: Product) -> None:
        plan = self.plan
        images, pixels = split_lead(self.g.lead)
        count = self.symbols.dim(images)
        if plan.blocks == 0:
            count, pixels = 1, self.symbols.product(self.g.lead)
        blocks = plan.blocks or (pixels + plan.block - 1) // plan.block
        whole = self._stage(0, count * pixels, True) if plan.stage is Stage.WHOLE else None
        with tasks(count * blocks * plan.chunks, plan.parallel) as task:
            block, task = task % blocks, task // blocks
            image, chunk = task % count, task // count
            if plan.blocks:
                size: Expr = plan.block
                first = T.bind(image * pixels + T.min(block * plan.block, pixels - plan.block))
            else:
                first = T.bind(block * plan.block)
                size = T.bind(T.min(pixels - first, plan.block))
            source, base = whole if whole is not None else self.x, first * self.g.k
            if plan.stage is Stage.TASK:
                source, base = self._stage(first, size, False), 0

            def part(tile: Tile, panel: Expr, channel: Expr, width: int) -> None:
                if isinstance(size, int):
                    product.block(tile, source, panel, channel, width, size,
                                  lambda n, m: self._rows(n, base, first, m))  # fmt: skip
                    return
                part, panel = product.decoded(panel, 0, product.panel_size)
                for rows, m in self._tiles(size, tile.rows):
                    part.tile(Tile(rows, tile.vectors), source, panel, channel, width,
                                 self._rows(rows, base, first, m))  # fmt: skip

            panels_of(product, part, chunk)

    def _tiles(self, size: Expr, rows: int) -> Iterator[tuple[int, Expr]]:
        """(rows of the tile, its first row in the block), each yielded inside its loop."""
        with T.serial(0, size // rows) as t:
            yield rows, t * rows
        if rows > 1:
            with T.serial(0, size % rows) as t:
                yield 1, size - 1 - t

    def _rows(self, count: int, base: Expr, first: Expr, m: Expr) -> list[Row]:
        dims = [self.symbols.dim(d) for d in self.g.lead]
        start = first + m
        return [
            Row(base + (m + i) * self.g.k, start + i, unravel(start + i, dims))
            for i in range(count)
        ]

    def _stage(self, first: Expr, size: Expr, parallel: bool) -> Buffer:
        """Rows `first` to `first + size`, changed to what the dot takes, with slack behind."""
        k = self.g.k
        limit = size if isinstance(size, int) or parallel else self.plan.block
        block = scratch(limit * k + self.dot.depth, self.dot.a_dtype)
        change = _changed(self.dot.a_dtype, self.shift)
        with tasks(size, parallel and self.plan.parallel) as r:
            copy(block, r * k, self.x, (first + r) * k, k, change)
        return block
