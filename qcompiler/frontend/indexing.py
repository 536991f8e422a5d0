"""Indexing by tensors: embedding, gather, x[i, j], one-hot, triangles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, axis_of, static
from qcompiler.frontend.dims import product, same
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    Arange,
    Compare,
    Expand,
    Gather,
    GatherElements,
    Mul,
    Relation,
    Reshape,
    Where,
)  # fmt: skip
from qcompiler.types import Dim, DType

aten = torch.ops.aten


def embedding(b: Builder, table: Node, index: Node, *_: Any) -> Value:
    return b(Gather(0), table, index)


def index_select(b: Builder, x: Node, axis: int, index: Node) -> Value:
    y = b(Gather(axis_of(axis, x.tensor.rank)), x, index)
    return b.reshape(y, b.out.shape)


def gather(b: Builder, x: Node, axis: int, index: Node, *_: Any) -> Value:
    return b(GatherElements(axis_of(axis, x.tensor.rank)), x, index)


def index(b: Builder, x: Node, indices: Sequence[Node | None]) -> Value:
    """x[..., i, ..., j, ...]: the indexed axes go first, are replaced, and go back."""
    axes = [k for k, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if i is not None]
    if any(i.tensor.dtype is DType.BOOL for i in tensors):
        raise Refusal("an index by a mask, whose result's size depends on the data; use where")
    if len(axes) == 1:
        return b(Gather(axes[0]), x, wrapped(b, tensors[0], x.tensor.shape[axes[0]]))
    rank = x.tensor.rank
    moved = b.permute(x, axes + [k for k in range(rank) if k not in axes])
    y = index_first(b, moved, tensors)
    if axes != list(range(axes[0], axes[0] + len(axes))) or axes[0] == 0:
        return y
    wide = y.tensor.rank - (rank - len(axes))
    front, back = range(wide, wide + axes[0]), range(wide + axes[0], y.tensor.rank)
    return b.permute(y, [*front, *range(wide), *back])


def wrapped(b: Builder, index: Node, size: Dim) -> Node:
    """The index with negative values counted from the end; a constant is changed at once."""
    value = b.known.get(index)
    if isinstance(index.op, Arange | Gather) or not isinstance(size, int):
        return index
    if value is not None:
        negative = bool((value < 0).any())
        return b.value(torch.where(value < 0, value + size, value)) if negative else index
    if _never_negative(index):
        return index
    zero, end = (b.const(v, index.tensor.dtype) for v in (0, size))
    return b(Where(), b(Compare(Relation.LT), index, zero), b(Add(), index, end), index)


def _never_negative(index: Node) -> bool:
    while isinstance(index.op, Reshape | Expand):
        (index,) = index.inputs
    return isinstance(index.op, Arange) and index.op.start >= 0 and index.op.step >= 0


def index_first(b: Builder, x: Node, tensors: Sequence[Node]) -> Node:
    """x[i, j, ...] over the leading axes; the result is [*broadcast of the indices, *rest].

    An index that counts 0, 1, ... along an axis of its own keeps that axis instead.
    """
    rank = max(t.tensor.rank for t in tensors)
    places = counted_places(b, tensors, x.tensor.shape, rank)
    if None not in places and len(set(places)) == len(places):
        return kept_axes(b, x, [p for p in places if p is not None], rank)
    if len(tensors) == 2 and places[0] is not None:
        own = _axes_of(tensors[1], rank)
        if places[0] not in own:
            return gather_beside(b, x, tensors[1], places[0], rank)
    return index_flat(b, x, tensors)


def counted_places(
    b: Builder, tensors: Sequence[Node], sizes: Sequence[Dim], rank: int
) -> list[int | None]:
    """The axis each index counts along; one of a single element takes an axis nobody uses."""
    places = [counts_along(b, t, d, rank) for t, d in zip(tensors, sizes, strict=False)]
    used = {axis for t in tensors for axis in _axes_of(t, rank)}
    for k, index in enumerate(tensors):
        if places[k] is not None and not _axes_of(index, rank):
            places[k] = next((axis for axis in range(rank) if axis not in used), None)
            used |= {axis for axis in (places[k],) if axis is not None}
    return places


def _axes_of(index: Node, rank: int) -> set[int]:
    shift = rank - index.tensor.rank
    return {k + shift for k, d in enumerate(index.tensor.shape) if d != 1}


def counts_along(b: Builder, index: Node, size: Dim, rank: int) -> int | None:
    """The axis of the broadcast shape along which the index is 0, 1, ..., size - 1, if any."""
    axes = _axes_of(index, rank)
    if len(axes) > 1:
        return None
    axis = next(iter(axes), rank - 1)
    if not same(product(index.tensor.shape), size):
        return None
    value = b.known.get(index)
    if value is not None:
        counted = torch.arange(value.numel(), dtype=value.dtype)
        return axis if torch.equal(value.reshape(-1), counted) else None
    while isinstance(index.op, Reshape):
        (index,) = index.inputs
    op = index.op
    plain = isinstance(op, Arange) and op.start == 0 and op.step == 1 and same(op.size, size)
    return axis if plain else None


def kept_axes(b: Builder, x: Node, places: list[int], rank: int) -> Node:
    """Each leading axis k of x becomes axis places[k]; other axes of the indices are 1."""
    count = len(places)
    order = sorted(range(count), key=lambda k: places[k])
    x = b.permute(x, [*order, *range(count, x.tensor.rank)])
    shape: list[Dim] = [1] * rank
    for k, place in enumerate(sorted(places)):
        shape[place] = x.tensor.shape[k]
    return b.reshape(x, (*shape, *x.tensor.shape[count:]))


def gather_beside(b: Builder, x: Node, index: Node, place: int, rank: int) -> Node:
    """x[count, index] where the index does not vary along `place`: a gather of axis 1."""
    inner = [d for k, d in enumerate(_full(index, rank)) if k != place]
    flat = b.reshape(wrapped(b, index, x.tensor.shape[1]), inner)
    y = b(Gather(1), x, flat)
    order = [*range(1, place + 1), 0, *range(place + 1, y.tensor.rank)]
    return b.permute(y, order)


def _full(index: Node, rank: int) -> tuple[Dim, ...]:
    return (*[1] * (rank - index.tensor.rank), *index.tensor.shape)


def index_flat(b: Builder, x: Node, tensors: Sequence[Node]) -> Node:
    """One index into the merged leading axes."""
    count = len(tensors)
    sizes = static(x.tensor.shape[1:count], "an index by several tensors into axes")
    total: Node | None = None
    for k, index in enumerate(tensors):
        step = 1
        for size in sizes[k:]:
            step *= size
        term = wrapped(b, b.cast(index, DType.INT64), x.tensor.shape[k])
        term = term if step == 1 else b(Mul(), term, b.const(step, DType.INT64))
        total = term if total is None else b(Add(), total, term)
    assert total is not None
    merged = b.reshape(x, (product(x.tensor.shape[:count]), *x.tensor.shape[count:]))
    return b(Gather(0), merged, total)


def unfold(b: Builder, x: Node, axis: int, size: int, step: int) -> Value:
    """Windows of an axis; the places within a window become the last axis."""
    axis = axis_of(axis, x.tensor.rank)
    (length,) = static(x.tensor.shape[axis : axis + 1], "unfold of an axis")
    starts = range(0, length - size + 1, step)
    index = [[start + k for k in range(size)] for start in starts]
    y = b(Gather(axis), x, b.const(index, DType.INT64))
    order = [k for k in range(y.tensor.rank) if k != axis + 1]
    return b.permute(y, [*order, axis + 1])


def one_hot(b: Builder, index: Node, classes: int = -1) -> Value:
    if classes < 0:
        raise Refusal("one_hot without num_classes; give the number of classes")
    wide = b.reshape(index, (*index.tensor.shape, 1))
    counted = b.value(torch.arange(classes, dtype=index.tensor.dtype.torch))
    return b.cast(b(Compare(Relation.EQ), wide, counted), b.out.dtype)


def triangle(relation: Relation) -> Handler:
    """tril keeps column <= row + diagonal, triu column >= row + diagonal."""

    def row(b: Builder, x: Node, diagonal: int = 0) -> Value:
        rows, columns = x.tensor.shape[-2:]
        down = b.reshape(arange(b, diagonal, rows), (rows, 1))
        keep = b(Compare(relation), arange(b, 0, columns), down)
        return b(Where(), keep, x, b.const(0, x.tensor.dtype))

    return row


def arange(b: Builder, start: int, size: Dim) -> Node:
    if isinstance(size, int):
        return b.value(torch.arange(start, start + size))
    return b(Arange(start, 1, size))


ROWS: Mapping[Any, Handler] = {
    aten.embedding.default: embedding,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.index.Tensor: index,
    aten._unsafe_index.Tensor: index,
    aten.unfold.default: unfold,
    aten.one_hot.default: one_hot,
    aten.tril.default: triangle(Relation.LE),
    aten.triu.default: triangle(Relation.GE),
}
