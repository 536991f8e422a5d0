"""Depthwise convolution: channels in lanes, NHWC, any Dot of one or more taps.

A Dot of depth d takes d neighbouring taps of a kernel row at once: `MADDWD` two (exact for all
8-bit codes), `FMA` one. A task walks down the image with the last rows it needs in a ring: each
input row is widened, padded and interleaved once, [column, channel, d], and read by every kernel
row from the first-level cache. Packed weights: [1, 1, KH, 1, ceil(KW / d), C, d], zero padded, the
layout of `qcompiler.ops.Packing(C, d, taps=True)`.
"""

from __future__ import annotations

import math
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
    declare,
    fill,
    function,
    keep,
    local,
    scratch,
    splat,
    store,
    tasks,
    vector,
)
from .depthwise_direct import direct_depthwise_conv2d
from .dot import Dot
from .geometry import Conv
from .plan import SERIAL_MACS, TASKS

# Channel vectors side by side, for their codes pack well when stored; their codes fill at most one
# 128-bit load (one vector of 512 bits: 38 GMAC/s over MobileNetV2's layers, two 36).
VECTORS = 2
LOAD_CODES = 16
# Output columns in one tile, at most; 7 divides the widths 7, 14, 28, 56 and 112.
MAX_COLUMNS = 7
# Registers that a tile needs beside its accumulators: one of weights and one product.
OPERAND_REGISTERS = 2


def packed_shape(g: Conv, dot: Dot) -> tuple[int, ...]:
    """The shape of the weights as the kernel reads them."""
    return (1, 1, g.kernel[0], 1, -(-g.kernel[1] // dot.depth), g.channels, dot.depth)


def depthwise_conv2d(g: Conv, dot: Dot, *, in_dtype: str, out_dtype: str,
                     epilogue: Epilogue = keep, operands: Sequence[Operand] = (),
                     init: bool = True, pad: int = 0, shift: int = 0,
                     name: str = "depthwise") -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out): a depthwise convolution and its epilogue.

    x `in_dtype` [N, H, W, C]; weights `dot.b_dtype` packed; init `dot.acc_dtype` [C], where the
    accumulators start; out `out_dtype` [N, OH, OW, C]. pad: the code outside the input. shift:
    added to every code of x on its way to `dot.a_dtype`. sum((x + shift) * w) + init is stored.
    """
    if dot.depth == 1 and in_dtype == dot.a_dtype and pad == shift == 0:
        return direct_depthwise_conv2d(g, dot, out_dtype=out_dtype, epilogue=epilogue,
                                       operands=operands, init=init, name=name)  # fmt: skip
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", packed_shape(g, dot), dot.b_dtype)
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        images = params.symbols.dim(g.batch)
        column = Column(g, dot, in_dtype, x, weights, start, out, epilogue, views, pad, shift)
        column.emit(images)
    return made[0]


@dataclass(frozen=True)
class Column:
    """One block of channels, from the top of the image (or of a block of its rows) down."""

    g: Conv
    dot: Dot
    in_dtype: str
    x: Buffer
    weights: Buffer
    init: Buffer | None
    out: Buffer
    epilogue: Epilogue
    views: Sequence[View]
    pad: int
    shift: int

    @property
    def width(self) -> int:
        """Channels of a block."""
        vectors = min(VECTORS, LOAD_CODES // self.dot.lanes, self.g.channels // self.dot.lanes)
        return vectors * self.dot.lanes

    @property
    def groups(self) -> int:
        """Dots along a kernel row."""
        return -(-self.g.kernel[1] // self.dot.depth)

    @property
    def step(self) -> int:
        """Input columns from one interleaved entry to the next."""
        return math.gcd(self.g.stride[1], self.dot.depth * self.g.dilation[1])

    @property
    def entries(self) -> int:
        """Interleaved entries of an input row."""
        g, reach = self.g, (self.groups - 1) * self.dot.depth * self.g.dilation[1]
        return ((g.out_width - 1) * g.stride[1] + reach) // self.step + 1

    @property
    def lines(self) -> int:
        """Input rows in the ring."""
        return self.g.dilation[0] * (self.g.kernel[0] - 1) + 1

    @property
    def columns(self) -> int:
        """Output columns of a tile: what fits the registers and repeats least."""
        room = (self.dot.registers - OPERAND_REGISTERS) // (self.width // self.dot.lanes)
        most = min(room, MAX_COLUMNS, self.g.out_width)
        return min(range(1, most + 1), key=lambda n: (-(-self.g.out_width // n), n))

    def emit(self, images: Expr) -> None:
        g = self.g
        blocks = -(-g.channels // self.width)
        macs = math.prod((g.out_height, g.out_width, g.channels, *g.kernel))
        macs *= g.batch if isinstance(g.batch, int) else 1
        wanted = -(-TASKS // blocks) if macs >= SERIAL_MACS else 1
        rows = min(max(-(-g.out_height // wanted), 2 * self.lines), g.out_height)
        bands = -(-g.out_height // rows)
        with tasks(images * blocks * bands, macs >= SERIAL_MACS) as task:
            band, task = task % bands, task // bands
            block, image = task % blocks, task // blocks
            first = T.bind(T.min(block * self.width, g.channels - self.width))
            top = T.bind(T.min(band * rows, g.out_height - rows))
            size = self.lines * self.entries * self.width * self.dot.depth
            ring = scratch(size, self.dot.a_dtype)
            with T.serial(0, rows) as r:
                y = T.bind(top + r)
                self._stage(ring, image, y, r, first)
                self._row(ring, image, y, first)

    def _stage(self, ring: Buffer, image: Expr, y: Expr, r: Expr, first: Expr) -> None:
        """The input rows that output row y needs and the one before it did not."""
        g, fresh = self.g, min(self.g.stride[0], self.lines)
        known = T.bind(T.Select(r == 0, T.int32(0), T.int32(self.lines - fresh)))
        with T.serial(0, self.lines - known) as i:
            line = T.bind(y * g.stride[0] + known + i)
            slot = T.bind(line % self.lines * (self.entries * self.width * self.dot.depth))
            above = T.bind(line - g.padding[0])
            with T.If(T.And(above >= 0, above < g.height)):
                with T.Then():
                    self._line(ring, slot, (image * g.height + above) * g.width, first)
                with T.Else():
                    outside = T.Cast(self.dot.a_dtype, self.pad + self.shift)
                    fill(ring, slot, outside, self.entries * self.width * self.dot.depth)

    def _line(self, ring: Buffer, slot: Expr, pixel: Expr, first: Expr) -> None:
        g, reach = self.g, (self.dot.depth - 1) * self.g.dilation[1]
        left = g.padding[1]
        low = min(-(-left // self.step), self.entries)
        high = min(max((g.width - 1 - reach + left) // self.step + 1, low), self.entries)
        for begin, end, checked in ((0, low, True), (low, high, False), (high, self.entries, True)):
            if begin < end:
                with T.serial(0, end - begin) as i:
                    self._entry(ring, slot, pixel, first, begin + i, checked)

    def _entry(self, ring: Buffer, slot: Expr, pixel: Expr, first: Expr, entry: Expr,
               checked: bool) -> None:  # fmt: skip
        """The taps of one dot side by side, for every channel of the block."""
        dot, n = self.dot, self.width
        size = dot.lanes * dot.depth
        column = entry * self.step - self.g.padding[1]
        taps = [
            self._pixel(pixel, first, column + j * self.g.dilation[1], checked)
            for j in range(dot.depth)
        ]
        for v in range(n // dot.lanes):
            # One vector at a time, or LLVM builds the interleaving from slow permutations.
            picked = [j * n + v * dot.lanes + c for c in range(dot.lanes) for j in range(dot.depth)]
            wide = cast(T.Shuffle(taps, picked), dot.a_dtype, size)
            if self.shift:
                wide = wide + splat(T.Cast(dot.a_dtype, self.shift), size)
            store(ring, slot + entry * (n * dot.depth) + v * size, wide, size)

    def _pixel(self, pixel: Expr, first: Expr, column: Expr, checked: bool) -> Expr:
        g, n = self.g, self.width
        if not checked:
            return vector(self.x, (pixel + column) * g.channels + first, n)
        inside = T.And(column >= 0, column < g.width)
        near = T.max(T.min(column, g.width - 1), 0)
        value = vector(self.x, (pixel + near) * g.channels + first, n)
        return T.Select(inside, value, splat(T.Cast(self.in_dtype, self.pad), n))

    def _row(self, ring: Buffer, image: Expr, y: Expr, first: Expr) -> None:
        """One output row."""
        width, columns = self.g.out_width, self.columns
        # Looked up, not computed, in the loop over the kernel: its few shifts cost 6 % there.
        lines = local(self.g.kernel[0], "int32")
        for kh in range(self.g.kernel[0]):
            line = (y * self.g.stride[0] + kh * self.g.dilation[0]) % self.lines
            store(lines, kh, line * self.entries, 1)
        with T.serial(0, -(-width // columns)) as t:
            at = t * columns
            x = at if width % columns == 0 else T.bind(T.min(at, width - columns))
            self._tile(ring, image, y, x, first, lines)

    def _tile(self, ring: Buffer, image: Expr, y: Expr, x: Expr, first: Expr,
              lines: Buffer) -> None:  # fmt: skip
        g, dot = self.g, self.dot
        vectors = self.width // dot.lanes
        accs = [[local(dot.lanes, dot.acc_dtype) for _ in range(vectors)]
                for _ in range(self.columns)]  # fmt: skip
        for line in accs:
            for v, acc in enumerate(line):
                zero = T.broadcast(T.Cast(dot.acc_dtype, 0), dot.lanes)
                at = first + v * dot.lanes
                start = zero if self.init is None else vector(self.init, at, dot.lanes)
                store(acc, 0, start, dot.lanes)
        for v in range(vectors):
            with T.serial(0, g.kernel[0]) as kh:
                entry = T.bind(lines[kh] + x * (g.stride[1] // self.step))
                self._kernel_row([a[v] for a in accs], ring, entry, kh * self.groups, first, v)
        for i, line in enumerate(accs):
            pixel = (image * g.out_height + y) * g.out_width + x + i
            place = Point(pixel, (image, y, x + i), first)
            values = [vector(acc, 0, dot.lanes) for acc in line]
            value = T.Shuffle(values, list(range(self.width))) if vectors > 1 else values[0]
            result = self.epilogue(value, place, self.width, self.views)
            store(self.out, pixel * g.channels + first, result, self.width)

    def _kernel_row(self, accs: Sequence[Buffer], ring: Buffer, entry: Expr, group: Expr,
                    first: Expr, v: int) -> None:  # fmt: skip
        g, dot, size = self.g, self.dot, self.dot.lanes * self.dot.depth
        across = g.stride[1] // self.step
        for j in range(self.groups):
            skip = j * dot.depth * g.dilation[1] // self.step
            channel = (group + j) * g.channels + first + v * dot.lanes
            b = vector(self.weights, channel * dot.depth, size)
            for i, acc in enumerate(accs):
                place = (entry + (i * across + skip)) * self.width + v * dot.lanes
                a = vector(ring, place * dot.depth, size)
                store(acc, 0, dot.emit(vector(acc, 0, dot.lanes), [(a, b)]), dot.lanes)
