"""Depthwise convolution on the input as it lies, for float32: the border is left out of the sums.

Rows are the outer loop and channels the inner one, so that the input streams through the caches.
Columns whose kernel reaches over the border are done one by one, with the taps that are inside.
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
    declare,
    function,
    keep,
    local,
    store,
    tasks,
    vector,
)
from .dot import Dot
from .geometry import Conv
from .plan import SERIAL_MACS, TASKS

# Vectors of channels x columns of a tile; 14 accumulators leave two registers for weights.
VECTORS = 2
MAX_COLUMNS = 7


def direct_depthwise_conv2d(g: Conv, dot: Dot, *, out_dtype: str, epilogue: Epilogue = keep,
                            operands: Sequence[Operand] = (), init: bool = True,
                            name: str = "depthwise") -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out), for a Dot of depth 1 and padding with zeros.

    x `dot.a_dtype` [N, H, W, C]; weights [1, 1, KH, 1, KW, C, 1]; init `dot.acc_dtype` [C]; out
    `out_dtype` [N, OH, OW, C].
    """
    if dot.depth != 1:
        raise ValueError(f"{dot.name} takes {dot.depth} taps at once; expected one")
    made: list[Any] = []
    with function(name, made) as params:
        io = Operand("x", g.in_shape, dot.a_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", (1, 1, g.kernel[0], 1, g.kernel[1], g.channels, 1), dot.b_dtype)
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        rows = Image(g, dot, x, weights, start, out, epilogue, views)
        rows.emit(params.symbols.dim(g.batch))
    return made[0]


@dataclass(frozen=True)
class Image:
    """All rows of all images."""

    g: Conv
    dot: Dot
    x: Buffer
    weights: Buffer
    init: Buffer | None
    out: Buffer
    epilogue: Epilogue
    views: Sequence[View]

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return min(VECTORS, self.g.channels // self.dot.lanes) * self.dot.lanes

    def emit(self, images: Expr) -> None:
        g = self.g
        macs = math.prod((g.out_height, g.out_width, g.channels, *g.kernel))
        macs *= g.batch if isinstance(g.batch, int) else 1
        parallel = macs >= SERIAL_MACS
        rows = -(-g.out_height // TASKS) if parallel else g.out_height
        bands = -(-g.out_height // rows)
        with tasks(images * bands, parallel) as task:
            band, image = task % bands, task // bands
            top = T.bind(T.min(band * rows, g.out_height - rows))
            with T.serial(0, rows) as r:
                self._row(image, T.bind(top + r))

    def _row(self, image: Expr, y: Expr) -> None:
        g = self.g
        above = y * g.stride[0] - g.padding[0]
        taps = _inside(above, g.dilation[0], g.kernel[0], g.height)
        low = min(-(-g.padding[1] // g.stride[1]), g.out_width)
        reach = g.dilation[1] * (g.kernel[1] - 1)
        high = max((g.width - 1 - reach + g.padding[1]) // g.stride[1] + 1, low)
        high = min(high, g.out_width)
        with T.serial(0, -(-g.channels // self.width)) as block:
            first = T.bind(T.min(block * self.width, g.channels - self.width))
            for begin, end in ((0, low), (high, g.out_width)):
                if begin < end:
                    with T.serial(0, end - begin) as i:
                        self._tile(image, y, begin + i, 1, first, taps)
            if low < high:
                self._inner(image, y, low, high - low, first, taps)

    def _inner(self, image: Expr, y: Expr, low: int, count: int, first: Expr,
               taps: tuple[Expr, Expr]) -> None:  # fmt: skip
        """The columns all of whose taps are inside."""
        most = min(MAX_COLUMNS, count)
        columns = min(range(1, most + 1), key=lambda n: (-(-count // n), n))
        with T.serial(0, -(-count // columns)) as t:
            x = T.bind(low + T.min(t * columns, count - columns))
            self._tile(image, y, x, columns, first, taps)

    def _tile(self, image: Expr, y: Expr, x: Expr, columns: int, first: Expr,
              taps: tuple[Expr, Expr]) -> None:  # fmt: skip
        """`columns` columns from x on; one column alone may reach over the border."""
        g, dot = self.g, self.dot
        vectors = range(self.width // dot.lanes)
        accs = [[local(dot.lanes, dot.acc_dtype) for _ in vectors] for _ in range(columns)]
        zero = T.broadcast(T.Cast(dot.acc_dtype, 0), dot.lanes)
        for line in accs:
            for v, acc in enumerate(line):
                at = first + v * dot.lanes
                start = zero if self.init is None else vector(self.init, at, dot.lanes)
                store(acc, 0, start, dot.lanes)
        left = T.bind(x * g.stride[1] - g.padding[1])
        across = _inside(left, g.dilation[1], g.kernel[1], g.width) if columns == 1 else None
        with T.serial(0, taps[1] - taps[0]) as i:
            kh = T.bind(taps[0] + i)
            line_y = y * g.stride[0] - g.padding[0] + kh * g.dilation[0]
            at = T.bind(((image * g.height + line_y) * g.width + left) * g.channels + first)
            if across is None:
                for kw in range(g.kernel[1]):
                    self._tap(accs, at, kh, kw, first)
            else:
                with T.serial(0, across[1] - across[0]) as j:
                    self._tap(accs, at, kh, across[0] + j, first)
        for i, line in enumerate(accs):
            pixel = (image * g.out_height + y) * g.out_width + x + i
            values = [vector(acc, 0, dot.lanes) for acc in line]
            value = T.Shuffle(values, list(range(self.width))) if len(vectors) > 1 else values[0]
            place = Point(pixel, (image, y, x + i), first)
            result = self.epilogue(value, place, self.width, self.views)
            store(self.out, pixel * g.channels + first, result, self.width)

    def _tap(self, accs: Sequence[Sequence[Buffer]], at: Expr, kh: Expr, kw: Expr,
             first: Expr) -> None:  # fmt: skip
        g, lanes = self.g, self.dot.lanes
        for v in range(self.width // lanes):
            b = vector(
                self.weights, (kh * g.kernel[1] + kw) * g.channels + first + v * lanes, lanes
            )
            for i, line in enumerate(accs):
                column = (kw * g.dilation[1] + i * g.stride[1]) * g.channels
                a = vector(self.x, at + column + v * lanes, lanes)
                store(line[v], 0, self.dot.emit(vector(line[v], 0, lanes), [(a, b)]), lanes)


def _inside(start: Expr, step: int, count: int, size: int) -> tuple[Expr, Expr]:
    """The range of k in range(count) for which start + k * step lies in range(size)."""
    low = T.max((step - 1 - start) // step, 0)
    high = T.min((size - 1 - start) // step + 1, count)
    return T.bind(low), T.bind(T.max(high, low))
