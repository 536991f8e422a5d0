"""Convolutions: all become Conv2d, with the window's geometry spelled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, pair, static
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import Conv2d, Dilate, Flip

aten = torch.ops.aten
Sizes = int | Sequence[int]
Pairs = tuple[tuple[int, int], ...]  # (before, after) per spatial axis


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation and groups, one entry per spatial axis."""

    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int


def spatial_rank(w: Node) -> int:
    rank = w.tensor.rank - 2
    if rank not in (1, 2):
        raise Refusal(f"a convolution over {rank} axes; 1 and 2 are supported")
    return rank


def convolve(b: Builder, x: Node, w: Node, bias: Node | None, g: Geometry) -> Node:
    """Conv2d of a batched operand; over one axis it is a Conv2d of height 1."""
    one = w.tensor.rank == 3
    if one:
        n, c, length = x.tensor.shape
        x = b.reshape(x, (n, c, 1, length))
        o, i, k = w.tensor.shape
        w = b.reshape(w, (o, i, 1, k))
        g = Geometry((1, *g.stride), ((0, 0), *g.padding), (1, *g.dilation), g.groups)
    (sh, sw), (dh, dw) = g.stride, g.dilation
    (top, left) = g.padding
    op = Conv2d((sh, sw), (top, left), (dh, dw), g.groups)
    y = b(op, x, w, *([] if bias is None else [bias]))
    n, o, _, length = y.tensor.shape
    return b.reshape(y, (n, o, length)) if one else y


def batched(b: Builder, x: Node, w: Node) -> Node:
    """The operand with a batch axis, which PyTorch lets one leave out."""
    return x if x.tensor.rank == w.tensor.rank else b.reshape(x, (1, *x.tensor.shape))


def conv(
    b: Builder, x: Node, w: Node, bias: Node | None = None, stride: Sizes = 1,
    padding: Sizes | str = 0, dilation: Sizes = 1, groups: int = 1,
) -> Value:  # fmt: skip
    rank = spatial_rank(w)
    kernel = static(w.tensor.shape[2:], "a kernel")
    steps, spread = pair(stride, rank), pair(dilation, rank)
    if isinstance(padding, str):
        pads = tuple(same_padding(k, d) if padding == "same" else (0, 0)
                     for k, d in zip(kernel, spread, strict=True))  # fmt: skip
    else:
        pads = tuple((p, p) for p in pair(padding, rank))
    y = convolve(b, batched(b, x, w), w, bias, Geometry(steps, pads, spread, groups))
    return b.reshape(y, b.out.shape)


def same_padding(kernel: int, dilation: int) -> tuple[int, int]:
    """Padding "same": the odd element comes after, as in PyTorch."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def conv_transpose(
    b: Builder, x: Node, w: Node, bias: Node | None = None, stride: Sizes = 1,
    padding: Sizes = 0, output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Value:  # fmt: skip
    """The operand is spread out by the stride, padded, and convolved with the flipped weight."""
    rank = spatial_rank(w)
    x = batched(b, x, w)
    kernel = static(w.tensor.shape[2:], "a kernel")
    spread = pair(dilation, rank)
    steps = pair(stride, rank)
    x = x if max(steps) == 1 else b(Dilate((1, 1, *steps)), x)
    pads = []
    extra = zip(kernel, spread, pair(padding, rank), pair(output_padding, rank), strict=True)
    for axis, (k, d, p, more) in enumerate(extra, start=2):
        before, after = d * (k - 1) - p, d * (k - 1) - p + more
        size = x.tensor.shape[axis]
        x = b.slice(x, axis, max(-before, 0), size - max(-after, 0))
        pads.append((max(before, 0), max(after, 0)))
    g = Geometry((1,) * rank, tuple(pads), spread, groups)
    y = convolve(b, x, turned_weight(b, w, groups), bias, g)
    return b.reshape(y, b.out.shape)


def turned_weight(b: Builder, w: Node, groups: int) -> Node:
    """[I, O/groups, *kernel] to [O, I/groups, *kernel], flipped along the kernel."""
    inputs, per_group, *kernel = static(w.tensor.shape, "a weight")
    y = b.reshape(w, (groups, inputs // groups, per_group, *kernel))
    y = b.permute(y, (0, 2, 1, *range(3, 3 + len(kernel))))
    y = b.reshape(y, (groups * per_group, inputs // groups, *kernel))
    return b(Flip(tuple(range(2, 2 + len(kernel)))), y)


def convolution(
    b: Builder, x: Node, w: Node, bias: Node | None, stride: Sizes, padding: Sizes,
    dilation: Sizes, transposed: bool, output_padding: Sizes, groups: int, *_: Any,
) -> Value:  # fmt: skip
    """The overload that decompositions give."""
    if transposed:
        return conv_transpose(b, x, w, bias, stride, padding, output_padding, groups, dilation)
    return conv(b, x, w, bias, stride, padding, dilation, groups)


ROWS: Mapping[Any, Handler] = {
    aten.conv1d.default: conv,
    aten.conv1d.padding: conv,
    aten.conv2d.default: conv,
    aten.conv2d.padding: conv,
    aten.convolution.default: convolution,
    aten.conv_transpose1d.default: conv_transpose,
    aten.conv_transpose2d.input: conv_transpose,
}
