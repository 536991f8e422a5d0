"""Data movement: views, slices, joins, repetition and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, axis_of, static
from qcompiler.frontend.dims import product, same
from qcompiler.frontend.errors import Refusal
from qcompiler.frontend.folding import SAME_VALUE
from qcompiler.graph import Node
from qcompiler.ops import Concat, Flip, Gather, Pad
from qcompiler.types import Dim, DType

aten = torch.ops.aten

NO_END = 2**62  # a slice without an end has one near 2^63


def as_out(b: Builder, x: Node, *_: Any) -> Value:
    """The same elements under the result's shape."""
    return b.reshape(x, b.out.shape)


def same_value(b: Builder, x: Node, *_: Any) -> Value:
    return x


def to_dtype(b: Builder, x: Node, *_: Any) -> Value:
    return b.cast(x, b.out.dtype)


def transpose(b: Builder, x: Node, first: int, second: int) -> Value:
    dims = list(range(x.tensor.rank))
    if not dims:
        return x
    i, j = axis_of(first, len(dims)), axis_of(second, len(dims))
    dims[i], dims[j] = dims[j], dims[i]
    return b.permute(x, dims)


def reverse_axes(b: Builder, x: Node) -> Value:
    return b.permute(x, range(x.tensor.rank)[::-1])


def permute(b: Builder, x: Node, dims: Sequence[int]) -> Value:
    return b.permute(x, [axis_of(d, x.tensor.rank) for d in dims])


def movedim(b: Builder, x: Node, source: Any, target: Any) -> Value:
    rank = x.tensor.rank
    sources, targets = (
        [axis_of(a, rank) for a in ([v] if isinstance(v, int) else v)] for v in (source, target)
    )
    rest = iter(k for k in range(rank) if k not in sources)
    at = dict(zip(targets, sources, strict=True))
    return b.permute(x, [at[k] if k in at else next(rest) for k in range(rank)])


def expand(b: Builder, x: Node, *_: Any) -> Value:
    return b.expand(x, b.out.shape)


def repeat(b: Builder, x: Node, counts: Sequence[Dim]) -> Value:
    """[d] repeated r times: [1, d] expanded to [r, d], then merged."""
    shape = (*[1] * (len(counts) - x.tensor.rank), *x.tensor.shape)
    apart = [s for d in shape for s in (1, d)]
    wide = [s for r, d in zip(counts, shape, strict=True) for s in (r, d)]
    return b.reshape(b.expand(b.reshape(x, apart), wide), b.out.shape)


def repeat_interleave(b: Builder, x: Node, count: Dim, axis: int | None = None, *_: Any) -> Value:
    shape = x.tensor.shape if axis is not None else (product(x.tensor.shape),)
    at = axis_of(axis or 0, len(shape)) + 1
    apart, wide = ((*shape[:at], r, *shape[at:]) for r in (1, count))
    return b.reshape(b.expand(b.reshape(x, apart), wide), b.out.shape)


def flip(b: Builder, x: Node, axes: Sequence[int]) -> Value:
    return b(Flip(tuple(sorted(axis_of(a, x.tensor.rank) for a in axes))), x)


def roll(b: Builder, x: Node, shifts: Sequence[int], axes: Sequence[int] = ()) -> Value:
    """The last `shift` elements come first, along each axis."""
    y = x if axes else b.reshape(x, (product(x.tensor.shape),))
    for shift, axis in zip(shifts, axes or (0,), strict=True):
        axis = axis_of(axis, y.tensor.rank)
        size = y.tensor.shape[axis]
        shift = shift % size if isinstance(size, int) and size else shift
        if shift:
            cut = size - shift if shift > 0 else -shift
            y = b(Concat(axis), b.slice(y, axis, cut, size), b.slice(y, axis, 0, cut))
    return b.reshape(y, x.tensor.shape)


def slice_of(
    b: Builder, x: Node, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Value:
    axis = axis_of(axis, x.tensor.rank)
    low, high = bounds(x.tensor.shape[axis], start, stop)
    return b.slice(x, axis, low, high, step)


def bounds(size: Dim, start: Any, stop: Any) -> tuple[Dim, Dim]:
    """The range `start:stop` of a dimension as Python counts it, from the front and clipped."""
    if all(isinstance(v, int) or v is None for v in (size, start, stop)):
        low, high, _ = slice(start, stop).indices(size)  # type: ignore[arg-type]
        return low, max(low, high)
    begin: Dim = 0 if start is None else start
    end: Dim = size if stop is None or (isinstance(stop, int) and stop >= NO_END) else stop
    return from_front(begin, size), from_front(end, size)


def from_front(place: Dim, size: Dim) -> Dim:
    return size + place if isinstance(place, int) and place < 0 else place


def select(b: Builder, x: Node, axis: int, index: Dim) -> Value:
    axis = axis_of(axis, x.tensor.rank)
    at = from_front(index, x.tensor.shape[axis])
    return b.reshape(b.slice(x, axis, at, at + 1), b.out.shape)


def narrow(b: Builder, x: Node, axis: int, start: Dim, length: Dim) -> Value:
    return b.slice(x, axis_of(axis, x.tensor.rank), start, start + length)


def pieces(b: Builder, x: Node, axis: int) -> Value:
    """Slices one after the other, of the sizes PyTorch gives the results."""
    axis = axis_of(axis, x.tensor.rank)
    start: Dim = 0
    parts = []
    for part in b.expected:
        assert part is not None
        size = part.shape[axis]
        parts.append(b.slice(x, axis, start, start + size))
        start = start + size
    return tuple(parts)


def split(b: Builder, x: Node, _: Any, axis: int = 0) -> Value:
    return pieces(b, x, axis)


def unbind(b: Builder, x: Node, axis: int = 0) -> Value:
    axis = axis_of(axis, x.tensor.rank)
    (size,) = static(x.tensor.shape[axis : axis + 1], "unbind")
    return tuple(b.reshape(b.slice(x, axis, k, k + 1), b.out.shape) for k in range(size))


def concat(b: Builder, parts: Sequence[Node], axis: int = 0) -> Value:
    """Empty rank-1 tensors are skipped, as PyTorch does."""
    filled = [p for p in parts if p.tensor.shape != (0,)] or list(parts[:1])
    axis = axis_of(axis, filled[0].tensor.rank)
    filled = [b.cast(p, b.out.dtype) for p in filled if p.tensor.shape[axis] != 0] or filled[:1]
    return filled[0] if len(filled) == 1 else b(Concat(axis), *filled)


def stack(b: Builder, parts: Sequence[Node], axis: int = 0) -> Value:
    shape = parts[0].tensor.shape
    axis = axis_of(axis, len(shape) + 1)
    shape = (*shape[:axis], 1, *shape[axis:])
    return concat(b, [b.reshape(p, shape) for p in parts], axis)


def select_scatter(b: Builder, x: Node, source: Node, axis: int, index: int) -> Value:
    axis = axis_of(axis, x.tensor.rank)
    at = from_front(index, x.tensor.shape[axis])
    shape = (*x.tensor.shape[:axis], 1, *x.tensor.shape[axis + 1 :])
    source = b.reshape(b.cast(source, x.tensor.dtype), shape)
    return _replaced(b, x, source, axis, at, at + 1)


def slice_scatter(
    b: Builder, x: Node, source: Node, axis: int = 0, start: Any = None, stop: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    if step != 1:
        raise Refusal(f"assignment to a slice with step {step}; only step 1 is supported")
    axis = axis_of(axis, x.tensor.rank)
    low, high = bounds(x.tensor.shape[axis], start, stop)
    return _replaced(b, x, b.cast(source, x.tensor.dtype), axis, low, high)


def _replaced(b: Builder, x: Node, source: Node, axis: int, low: Dim, high: Dim) -> Node:
    size = x.tensor.shape[axis]
    parts = [source]
    if low != 0:
        parts.insert(0, b.slice(x, axis, 0, low))
    if not same(high, size):
        parts.append(b.slice(x, axis, high, size))
    return parts[0] if len(parts) == 1 else b(Concat(axis), *parts)


def copy_into(b: Builder, x: Node, source: Node, *_: Any) -> Value:
    return b.expand(b.cast(source, b.out.dtype), b.out.shape)


def pad(
    b: Builder, x: Node, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    """`pads` is (before, after) of the last axis, then of the one before it, and so on."""
    if any(not isinstance(p, int) for p in pads):
        raise Refusal("padding by a symbolic amount")
    pairs = [(pads[k], pads[k + 1]) for k in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (x.tensor.rank - len(pairs)) + pairs
    if mode == "constant":
        return pad_constant(b, x, pairs, value or 0.0)
    for axis, (before, after) in enumerate(pairs):
        if before or after:
            index = padded_index(x, axis, before, after, mode)
            x = b(Gather(axis), x, b.const(index, DType.INT64))
    return x


def pad_constant(b: Builder, x: Node, pairs: Sequence[tuple[int, int]], value: float) -> Node:
    """Negative amounts cut the operand."""
    for axis, (before, after) in enumerate(pairs):
        size = x.tensor.shape[axis]
        x = b.slice(x, axis, max(-before, 0), size - max(-after, 0))
    border = tuple((max(before, 0), max(after, 0)) for before, after in pairs)
    return b(Pad(border, float(value)), x) if any(map(any, border)) else x


def padded_index(x: Node, axis: int, before: int, after: int, mode: str) -> list[int]:
    """Which element each place of the padded axis takes."""
    (size,) = static(x.tensor.shape[axis : axis + 1], f"{mode} padding")
    places = range(-before, size + after)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = [k % period for k in places]
        return [min(k, period - k) for k in folded]
    if mode == "circular":
        return [k % size for k in places]
    return [min(max(k, 0), size - 1) for k in places]


def in_mode(mode: str) -> Handler:
    return lambda b, x, pads: pad(b, x, pads, mode)


def pixel_shuffle(b: Builder, x: Node, factor: int) -> Value:
    *batch, channels, height, width = x.tensor.shape
    k = len(batch)
    y = b.reshape(x, (*batch, channels // factor**2, factor, factor, height, width))
    y = b.permute(y, (*range(k), k, k + 3, k + 1, k + 4, k + 2))
    return b.reshape(y, b.out.shape)


def pixel_unshuffle(b: Builder, x: Node, factor: int) -> Value:
    *batch, channels, height, width = x.tensor.shape
    k = len(batch)
    y = b.reshape(x, (*batch, channels, height // factor, factor, width // factor, factor))
    y = b.permute(y, (*range(k), k, k + 2, k + 4, k + 1, k + 3))
    return b.reshape(y, b.out.shape)


def channel_shuffle(b: Builder, x: Node, groups: int) -> Value:
    n, channels, *rest = x.tensor.shape
    y = b.reshape(x, (n, groups, channels // groups, *rest))
    y = b.permute(y, (0, 2, 1, *range(3, 3 + len(rest))))
    return b.reshape(y, b.out.shape)


def broadcast(b: Builder, tensors: Sequence[Node]) -> Value:
    shapes = [t.shape for t in b.expected if t is not None]
    return tuple(b.expand(x, s) for x, s in zip(tensors, shapes, strict=True))


def meshgrid(b: Builder, tensors: Sequence[Node], indexing: str = "ij") -> Value:
    if indexing != "ij":
        raise Refusal("meshgrid with indexing='xy'; use 'ij' and a transpose")
    grids = []
    for k, x in enumerate(tensors):
        shape: list[Dim] = [1] * len(tensors)
        shape[k] = x.tensor.shape[0] if x.tensor.rank else 1
        grids.append(b.expand(b.reshape(x, shape), b.out.shape))
    return tuple(grids)


CASTS = (
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
    aten.type_as.default,
)  # fmt: skip
VIEWS = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_as.default,
    aten.reshape_as.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten._reshape_copy.default,
    aten.ravel.default, aten.atleast_1d.default, aten.atleast_2d.default,
)  # fmt: skip

ROWS: Mapping[Any, Handler] = {
    **dict.fromkeys(SAME_VALUE, same_value),
    **dict.fromkeys(CASTS, to_dtype),
    **dict.fromkeys(VIEWS, as_out),
    aten.transpose.int: transpose,
    aten.swapaxes.default: transpose,
    aten.swapdims.default: transpose,
    aten.t.default: reverse_axes,
    aten.numpy_T.default: reverse_axes,
    aten.mT.default: lambda b, x: transpose(b, x, -2, -1),
    aten.permute.default: permute,
    aten.movedim.int: movedim,
    aten.movedim.intlist: movedim,
    aten.moveaxis.int: movedim,
    aten.expand.default: expand,
    aten.expand_as.default: expand,
    aten.broadcast_to.default: expand,
    aten.broadcast_tensors.default: broadcast,
    aten.meshgrid.default: meshgrid,
    aten.meshgrid.indexing: meshgrid,
    aten.repeat.default: repeat,
    aten.tile.default: lambda b, x, r: repeat(b, x, [1] * (x.tensor.rank - len(r)) + list(r)),
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.flip.default: flip,
    aten.roll.default: roll,
    aten.slice.Tensor: slice_of,
    aten.select.int: select,
    aten.narrow.default: narrow,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.split.sizes: split,
    aten.chunk.default: split,
    aten.tensor_split.sections: split,
    aten.unbind.int: unbind,
    aten.cat.default: concat,
    aten.concat.default: concat,
    aten.concatenate.default: concat,
    aten.stack.default: stack,
    aten.select_scatter.default: select_scatter,
    aten.slice_scatter.default: slice_scatter,
    aten.copy.default: copy_into,
    aten.pad.default: pad,
    aten.constant_pad_nd.default: lambda b, x, pads, value: pad(b, x, pads, "constant", value),
    **dict.fromkeys((aten.reflection_pad1d.default, aten.reflection_pad2d.default),
                    in_mode("reflect")),
    **dict.fromkeys((aten.replication_pad1d.default, aten.replication_pad2d.default),
                    in_mode("replicate")),
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
}  # fmt: skip
