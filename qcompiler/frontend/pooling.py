"""Pools and interpolation over height and width; one spatial axis is a height of 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, pair, static
from qcompiler.frontend.errors import Absent, Refusal
from qcompiler.graph import Node
from qcompiler.ops import AvgPool2d, MaxPool2d, Op, Resize, Window

aten = torch.ops.aten
Sizes = int | Sequence[int]

NO_INDICES = Absent("the indices of a max pool (return_indices=True)")


def on_images(b: Builder, x: Node, rank: int, function: Callable[[Node], Node]) -> Value:
    """`function` on [N, C, H, W], whatever of batch and height the operand lacks."""
    shape = x.tensor.shape
    lead = shape[: len(shape) - rank]
    n, c = lead if len(lead) == 2 else (1, *lead)
    space = shape[len(shape) - rank :]
    y = function(b.reshape(x, (n, c, *([1] * (2 - rank)), *space)))
    return b.reshape(y, b.out.shape)


def window(
    kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil: bool, rank: int
) -> Window:
    """PyTorch's arguments; no stride means the kernel's size."""
    sizes = pair(kernel, rank)
    steps = pair(stride, rank) if stride not in ([], (), None) else sizes
    pads, spread = pair(padding, rank), pair(dilation, rank)
    (kh, kw), (sh, sw), (dh, dw) = (_two(v, 1) for v in (sizes, steps, spread))
    ph, pw = _two(pads, 0)
    return Window((kh, kw), (sh, sw), ((ph, ph), (pw, pw)), (dh, dw), bool(ceil))


def _two(values: Sequence[int], default: int) -> tuple[int, int]:
    first, second = values if len(values) == 2 else (default, *values)
    return first, second


def max_pool(rank: int, indices: bool = False) -> Handler:
    def row(
        b: Builder, x: Node, kernel: Sizes, stride: Sizes = (), padding: Sizes = 0,
        dilation: Sizes = 1, ceil: bool = False,
    ) -> Value:  # fmt: skip
        op = MaxPool2d(window(kernel, stride, padding, dilation, ceil, rank))
        y = on_images(b, x, rank, lambda image: b(op, image))
        return (y, NO_INDICES) if indices else y

    return row


def avg_pool(rank: int) -> Handler:
    def row(
        b: Builder, x: Node, kernel: Sizes, stride: Sizes = (), padding: Sizes = 0,
        ceil: bool = False, count_padding: bool = True, divisor: int | None = None,
    ) -> Value:  # fmt: skip
        op = AvgPool2d(window(kernel, stride, padding, 1, ceil, rank), count_padding, divisor)
        return on_images(b, x, rank, lambda image: b(op, image))

    return row


def adaptive_pool(rank: int, pool: Callable[[Window], Op], indices: bool = False) -> Handler:
    def row(b: Builder, x: Node, *_: Any) -> Value:
        sizes = static(x.tensor.shape[-rank:], "an adaptive pool over an axis")
        wanted = static(b.out.shape[-rank:], "an adaptive pool")
        if any(size % want for size, want in zip(sizes, wanted, strict=True)):
            raise Refusal(
                f"an adaptive pool from {list(sizes)} to {list(wanted)}; "
                "sizes that divide are supported"
            )
        kernel = _two([s // w for s, w in zip(sizes, wanted, strict=True)], 1)
        op = pool(Window(kernel, kernel))
        y = x if kernel == (1, 1) else on_images(b, x, rank, lambda image: b(op, image))
        return (y, NO_INDICES) if indices else y

    return row


def resize(rank: int, bilinear: bool, by_factors: bool) -> Handler:
    """by_factors: the overload whose last argument lists the scale factors."""

    def row(b: Builder, x: Node, _: Any, *args: Any) -> Value:
        align = bool(args[0]) if bilinear else False
        given = args[int(bilinear) :]
        factors = (given[0] if given else None) if by_factors else list(given)
        size = _two(static(b.out.shape[-rank:], "interpolation to a size"), 1)
        op = Resize(size, bilinear, align, source_steps(factors, x, b, rank))
        return on_images(b, x, rank, lambda image: b(op, image))

    return row


def source_steps(
    factors: Sequence[float | None] | None, x: Node, b: Builder, rank: int
) -> tuple[float, float] | None:
    """How far the source moves per output step, when scale factors were given."""
    if not factors or all(f is None for f in factors):
        return None
    sizes = zip(x.tensor.shape[-rank:], b.out.shape[-rank:], factors, strict=True)
    steps = [1.0 / f if f else _ratio(i, o) for i, o, f in sizes]
    return (steps[0], steps[1]) if rank == 2 else (1.0, steps[0])


def _ratio(size: Any, wanted: Any) -> float:
    return float(size) / float(wanted)


ROWS: Mapping[Any, Handler] = {
    aten.max_pool1d.default: max_pool(1),
    aten.max_pool2d.default: max_pool(2),
    aten.max_pool2d_with_indices.default: max_pool(2, indices=True),
    aten.max_pool1d_with_indices.default: max_pool(1, indices=True),
    aten.avg_pool1d.default: avg_pool(1),
    aten.avg_pool2d.default: avg_pool(2),
    aten.adaptive_avg_pool1d.default: adaptive_pool(1, AvgPool2d),
    aten.adaptive_avg_pool2d.default: adaptive_pool(2, AvgPool2d),
    aten._adaptive_avg_pool2d.default: adaptive_pool(2, AvgPool2d),
    aten.adaptive_max_pool1d.default: adaptive_pool(1, MaxPool2d, indices=True),
    aten.adaptive_max_pool2d.default: adaptive_pool(2, MaxPool2d, indices=True),
    aten.upsample_nearest1d.vec: resize(1, False, True),
    aten.upsample_nearest1d.default: resize(1, False, False),
    aten.upsample_nearest2d.vec: resize(2, False, True),
    aten.upsample_nearest2d.default: resize(2, False, False),
    aten.upsample_linear1d.vec: resize(1, True, True),
    aten.upsample_linear1d.default: resize(1, True, False),
    aten.upsample_bilinear2d.vec: resize(2, True, True),
    aten.upsample_bilinear2d.default: resize(2, True, False),
}
