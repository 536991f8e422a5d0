"""Products on a GPU without tiles: one thread for each output, which reads all it needs itself.

Right for every geometry, and what a convolution of many small groups needs. Weights lie with the
output channels of a group side by side, `Packing(group_out, 1)`, so that neighbouring threads read
neighbouring weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.ops import Packing

from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    Point,
    cast,
    declare,
    function,
    keep,
    local,
    store,
    tasks,
    unravel,
)
from .dot import Dot
from .geometry import Conv, Linear, split_lead
from .grid import Grid, guarded


def direct_packing(g: Conv | Linear) -> Packing:
    if isinstance(g, Linear):
        return Packing(g.n, 1)
    if g.depthwise:
        return Packing(g.channels, 1, 1, True)
    return Packing(g.group_out, 1, g.groups)


def as_conv(g: Conv | Linear) -> Conv:
    """A matrix product as a convolution of one image whose pixels are the rows."""
    if isinstance(g, Conv):
        return g
    images, pixels = split_lead(g.lead)
    return Conv(images, 1, pixels, g.k, g.n, (1, 1))


def direct_product(
    g: Conv | Linear, dot: Dot, *, in_dtype: str, out_dtype: str, grid: Grid,
    epilogue: Epilogue = keep, operands: Sequence[Operand] = (), init: bool = True, pad: int = 0,
    shift: int = 0, name: str = "direct",
) -> Any:  # fmt: skip
    """PrimFunc (x, weights, [init], *operands, out): as matmul.conv2d, with a dot of depth 1."""
    made: list[Any] = []
    shape = (as_conv(g).out_channels,)
    with function(name, made, grid) as params:
        io = Operand("x", g.in_shape, in_dtype), Operand("out", g.out_shape, out_dtype)
        packed = Operand("weights", direct_packing(g).shape(_weight_shape(g)), dot.b_dtype)
        x, weights, start, views, out = declare(params, io, packed, dot.acc_dtype, init, operands)
        pixels = params.symbols.product(g.out_shape[:-1])
        lead = [params.symbols.dim(d) for d in g.out_shape[:-1]]
        output = Output(as_conv(g), dot, x, weights, pad, shift)
        with tasks(pixels * shape[0], False) as task:
            pixel, channel = task // shape[0], task % shape[0]
            total = output.sum(pixel, channel)
            if start is not None:
                total = total + start[channel]
            at = Point(pixel, unravel(pixel, lead), channel)
            store(out, pixel * shape[0] + channel, epilogue(total, at, 1, views), 1)
    return made[0]


def _weight_shape(g: Conv | Linear) -> tuple[int, ...]:
    if isinstance(g, Linear):
        return (g.n, g.k)
    return (g.out_channels, g.group_in, *g.kernel)


@dataclass(frozen=True)
class Output:
    """How one output is summed."""

    g: Conv
    dot: Dot
    x: Buffer
    weights: Buffer
    pad: int
    shift: int

    def sum(self, pixel: Expr, channel: Expr) -> Expr:
        """sum((x + shift) * w) in `dot.acc_dtype`, over the window of an output pixel."""
        g, dtype = self.g, self.dot.acc_dtype
        image, y, x = unravel(pixel, [0, g.out_height, g.out_width])
        top, left = y * g.stride[0] - g.padding[0], x * g.stride[1] - g.padding[1]
        acc = local(1, dtype)
        store(acc, 0, T.Cast(dtype, 0), 1)
        with T.serial(0, g.kernel[0]) as i, T.serial(0, g.kernel[1]) as j:
            row, column = top + i * g.dilation[0], left + j * g.dilation[1]
            with T.serial(0, g.group_in) as c:
                first = channel // g.group_out * g.group_in
                place = ((image * g.height + row) * g.width + column) * g.channels + first + c
                a = local(1, dtype)
                store(a, 0, T.Cast(dtype, self.pad + self.shift), 1)
                inside = (row >= 0, row < g.height, column >= 0, column < g.width)
                with guarded(*(inside if g.padded else ())):
                    code = cast(self.x[place], dtype, 1)
                    store(a, 0, code + T.Cast(dtype, self.shift) if self.shift else code, 1)
                w = cast(self.weights[self._weight(channel, i, j, c)], dtype, 1)
                store(acc, 0, self.dot.emit(acc[0], [(a[0], w)]), 1)
        return acc[0]

    def _weight(self, channel: Expr, i: Expr, j: Expr, c: Expr) -> Expr:
        """Where a weight lies, packed."""
        g = self.g
        if g.depthwise:
            return (i * g.kernel[1] + j) * g.channels + channel
        group, inside = channel // g.group_out, channel % g.group_out
        tap = (group * g.kernel[0] + i) * g.kernel[1] + j
        return (tap * g.group_in + c) * g.group_out + inside
