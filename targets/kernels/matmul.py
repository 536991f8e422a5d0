"""Matrix product and convolution by one template: implicit GEMM, NHWC, any Dot.

Packed weights [groups, panels, KH, KW, ceil(CI / depth), lanes, depth]; where a kernel row is taken
like the channels of one tap, [1, panels, KH, 1, ceil(KW * CI / depth), lanes, depth]. Here the work
is cut into tasks and the input is staged; what a task computes is in product.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Symbols,
    cast,
    copy,
    declare,
    fill,
    function,
    keep,
    scratch,
    splat,
    tasks,
    unravel,
)  # fmt: skip
from .decode import Coding, Decoder
from .depthwise import depthwise_conv2d
from .dot import Dot
from .geometry import Conv, Linear, as_linear, split_lead
from .plan import Plan, Stage, Tile, channelwise, plan_conv, plan_linear
from .product import Product, Row, Tap, is_far, panels_of, split_depth


def packed_shape(g: Conv | Linear, plan: Plan, dot: Dot) -> tuple[int, ...]:
    """The shape of the weights as the kernel reads them."""
    if isinstance(g, Linear):
        return (1, plan.panels, 1, 1, -(-g.k // dot.depth), plan.lanes, dot.depth)
    taps, size = g.row(dot.depth)
    deep = -(-size // dot.depth)
    return (g.groups, plan.panels, g.kernel[0], taps, deep, plan.lanes, dot.depth)


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
                          g.out_channels, epilogue, views, blocked, is_far(packed))  # fmt: skip
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
        g, (kw, row) = self.g, self.g.row(self.dot.depth)
        (kh, _), (dh, dw), deep = g.kernel, g.dilation, -(-row // self.dot.depth)
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
                          views, blocked, coding is None and is_far(packed), decoder)  # fmt: skip
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
