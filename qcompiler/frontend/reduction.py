"""Reductions: the reduced axes are moved last and merged into one row, as the IR has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value, axis_of, static
from qcompiler.frontend.dims import product
from qcompiler.frontend.elementwise import promoted, times
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import (
    Abs,
    Add,
    AvgPool2d,
    Compare,
    Concat,
    Cumsum,
    Exp,
    Log,
    Neg,
    Not,
    Or,
    Power,
    Reduce,
    Reduction,
    Relation,
    Softmax,
    Sqrt,
    Sub,
    Where,
    Window,
)  # fmt: skip
from qcompiler.types import DType

aten = torch.ops.aten
RowFunction = Callable[[Builder, Node], Node]  # [..., K] -> [..., 1]

EXACT_IN_FLOAT = 1 << 24  # integers up to here are float32 values


def axes_of(axes: Any, rank: int) -> list[int]:
    """The reduced axes, sorted; none given means all."""
    if axes is None or axes == []:
        return list(range(rank))
    given = [axes] if isinstance(axes, int) else axes
    return sorted(axis_of(a, rank) for a in given)


def reduced(b: Builder, x: Node, axes: Sequence[int], function: RowFunction) -> Node:
    """`function` over the rows of the given axes; each reduced axis stays, with size 1."""
    shape, rank = x.tensor.shape, x.tensor.rank
    kept = [k for k in range(rank) if k not in axes]
    merged = product([shape[k] for k in axes])
    y = b.permute(x, [*kept, *axes])
    y = function(b, b.reshape(y, (*(shape[k] for k in kept), merged)))
    return b.reshape(y, tuple(1 if k in axes else d for k, d in enumerate(shape)))


def row(function: RowFunction) -> Handler:
    """A row of the table: reduce, then give the result PyTorch's shape and dtype."""

    def handler(b: Builder, x: Node, axes: Any = None, *_: Any) -> Value:
        y = reduced(b, x, axes_of(axes, x.tensor.rank), function)
        return b.reshape(b.cast(y, b.out.dtype), b.out.shape)

    return handler


def whole(function: RowFunction) -> Handler:
    """A row that reduces everything."""
    return lambda b, x, *_: row(function)(b, x)


def sum_of(b: Builder, x: Node) -> Node:
    """Integers are summed exactly: the last element of the running sum."""
    if x.tensor.dtype.is_float:
        return b(Reduce(Reduction.SUM), x)
    x = b.cast(x, DType.INT64)
    axis, size = x.tensor.rank - 1, x.tensor.shape[-1]
    return b.slice(b(Cumsum(axis), x), axis, size - 1, size)


def mean_of(b: Builder, x: Node) -> Node:
    return b(Reduce(Reduction.MEAN), b.cast(x, b.out.dtype))


def max_of(b: Builder, x: Node) -> Node:
    return b(Reduce(Reduction.MAX), x)


def min_of(b: Builder, x: Node) -> Node:
    """`-max(-x)`; of integers `-1 - max(-1 - x)`, which never overflows."""
    if x.tensor.dtype.is_float:
        return b(Neg(), max_of(b, b(Neg(), x)))
    wide = b.cast(x, DType.INT32 if x.tensor.dtype is DType.UINT8 else x.tensor.dtype)
    last = b.const(-1, wide.tensor.dtype)
    return b.cast(b(Sub(), last, max_of(b, b(Sub(), last, wide))), x.tensor.dtype)


def any_of(b: Builder, x: Node) -> Node:
    truth = b.cast(b.cast(x, DType.BOOL), DType.INT32)
    return b.cast(max_of(b, truth), DType.BOOL)


def all_of(b: Builder, x: Node) -> Node:
    return b(Not(), any_of(b, b(Not(), b.cast(x, DType.BOOL))))


def of_truth(whole: RowFunction, truth: RowFunction) -> RowFunction:
    """The largest of bools is whether any holds, the smallest whether all do."""
    return lambda b, x: (truth if x.tensor.dtype is DType.BOOL else whole)(b, x)


LARGEST, SMALLEST = of_truth(max_of, any_of), of_truth(min_of, all_of)


def count_nonzero(b: Builder, x: Node) -> Node:
    return sum_of(b, b.cast(x, DType.BOOL))


def log_sum_exp(b: Builder, x: Node) -> Node:
    """`log(sum(exp(x - max))) + max`; an infinite maximum is not subtracted."""
    x = b.cast(x, b.out.dtype)
    top = b(Reduce(Reduction.MAX), x)
    endless = b(Compare(Relation.EQ), b(Abs(), top), b.const(math.inf, x.tensor.dtype))
    top = b(Where(), endless, b.const(0.0, x.tensor.dtype), top)
    total = b(Reduce(Reduction.SUM), b(Exp(), b(Sub(), x, top)))
    return b(Add(), b(Log(), total), top)


def norm_of(order: Number) -> RowFunction:
    """The vector norms of order 1, 2 and infinity."""

    def function(b: Builder, x: Node) -> Node:
        if order == 2:
            return b(Sqrt(), b(Reduce(Reduction.SUM), b(Power(2), x)))
        if order == 1:
            return b(Reduce(Reduction.SUM), b(Abs(), x))
        if order == math.inf:
            return b(Reduce(Reduction.MAX), b(Abs(), x))
        raise Refusal(f"a norm of order {order}; 1, 2 and inf are supported")

    return function


def vector_norm(
    b: Builder, x: Node, order: Number = 2, axes: Any = None, keep: bool = False, dtype: Any = None
) -> Value:
    return row(norm_of(2 if order is None else order))(b, b.cast(x, b.out.dtype), axes)


def mean(b: Builder, x: Node, axes: Any = None, *_: Any) -> Value:
    """The mean over height and width is a pool over one window of that size."""
    dims, shape = axes_of(axes, x.tensor.rank), x.tensor.shape
    spatial = x.tensor.rank == 4 and dims == [2, 3] and x.tensor.dtype is b.out.dtype
    height, width = shape[2:] if spatial else ("", "")
    if isinstance(height, int) and isinstance(width, int):
        return b.reshape(b(AvgPool2d(Window((height, width))), x), b.out.shape)
    return row(mean_of)(b, x, axes)


def variance_of(correction: Number) -> RowFunction:
    def function(b: Builder, x: Node) -> Node:
        (count,) = static(x.tensor.shape[-1:], "a variance over an axis")
        centred = b(Sub(), x, b(Reduce(Reduction.MEAN), x))
        total = b(Reduce(Reduction.SUM), b(Power(2), centred))
        return times(b, total, 1 / (count - correction) if count > correction else math.nan)

    return function


def variance(root: bool, with_mean: bool = False) -> Handler:
    """var, std and var_mean; the overloads differ in how they give the correction."""

    def handler(b: Builder, x: Node, *args: Any) -> Value:
        axes = None if isinstance(args[0], bool) else args[0]
        given = args[0] if isinstance(args[0], bool) else args[1]
        correction = 1 if given is None else given
        y = reduced(b, x, axes_of(axes, x.tensor.rank), variance_of(correction))
        y = b.reshape(b(Sqrt(), y) if root else y, b.out.shape)
        return (y, row(mean_of)(b, x, axes)) if with_mean else y

    return handler


def arg_max(largest: bool) -> Handler:
    """The first index of the largest (smallest) value."""

    def handler(b: Builder, x: Node, axis: int | None = None, *_: Any) -> Value:
        axes = axes_of(axis, x.tensor.rank)
        y = reduced(b, x, axes, lambda b, x: first_index(b, x, largest))
        return b.reshape(b.cast(y, DType.INT64), b.out.shape)

    return handler


def first_index(b: Builder, x: Node, largest: bool) -> Node:
    """`-max(where(x == max(x), -index, -inf))`, exact in float32 for short rows; NaN is largest."""
    (size,) = static(x.tensor.shape[-1:], "argmax over an axis")
    if size > EXACT_IN_FLOAT:
        raise Refusal(f"argmax over {size} elements; at most {EXACT_IN_FLOAT} are supported")
    x = b.cast(x, DType.INT32) if x.tensor.dtype is DType.BOOL else x
    best = max_of(b, x) if largest else min_of(b, x)
    hits = b(Compare(Relation.EQ), x, best)
    if x.tensor.dtype.is_float:
        hits = b(Or(), hits, b(Compare(Relation.NE), x, x))
    counted = b.value(-torch.arange(size, dtype=torch.float32))
    chosen = b(Where(), hits, counted, b.const(-math.inf, DType.FLOAT32))
    return b(Neg(), b(Reduce(Reduction.MAX), chosen))


def extreme(largest: bool) -> Handler:
    """max.dim and min.dim: the values and their indices."""

    def handler(b: Builder, x: Node, axis: int, *_: Any) -> Value:
        values = row(LARGEST if largest else SMALLEST)(b, x, axis)
        return values, arg_max(largest)(b, x, axis)

    return handler


def softmax(log: bool) -> Handler:
    def handler(b: Builder, x: Node, axis: int, *_: Any) -> Value:
        return along_last(b, b.cast(x, b.out.dtype), axis, lambda y: b(Softmax(log), y))

    return handler


def along_last(b: Builder, x: Node, axis: int, function: Callable[[Node], Node]) -> Node:
    """`function` with the axis moved last, and back."""
    rank = x.tensor.rank
    if rank == 0:
        return b.reshape(function(b.reshape(x, (1,))), ())
    axis = axis_of(axis, rank)
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    return b.permute(function(b.permute(x, swap)), swap)


def cumsum(b: Builder, x: Node, axis: int, *_: Any) -> Value:
    x = b.cast(x, b.out.dtype)
    return b(Cumsum(axis_of(axis, x.tensor.rank)), x) if x.tensor.rank else x


def diff(
    b: Builder, x: Node, count: int = 1, axis: int = -1, before: Node | None = None,
    after: Node | None = None,
) -> Value:  # fmt: skip
    """The step from each element to the next, `count` times; of bools: whether they differ."""
    axis = axis_of(axis, x.tensor.rank)
    parts = [p for p in (before, x, after) if p is not None]
    x = x if len(parts) == 1 else b(Concat(axis), *promoted(b, *parts))
    for _ in range(count):
        size = x.tensor.shape[axis]
        later, earlier = b.slice(x, axis, 1, size), b.slice(x, axis, 0, size - 1)
        logic = x.tensor.dtype is DType.BOOL
        x = b(Compare(Relation.NE) if logic else Sub(), later, earlier)
    return x


ROWS: Mapping[Any, Handler] = {
    aten.sum.default: whole(lambda b, x: sum_of(b, b.cast(x, b.out.dtype))),
    aten.sum.dim_IntList: row(lambda b, x: sum_of(b, b.cast(x, b.out.dtype))),
    aten.mean.default: lambda b, x, *_: mean(b, x),
    aten.mean.dim: mean,
    aten.amax.default: row(LARGEST),
    aten.amin.default: row(SMALLEST),
    aten.max.default: whole(LARGEST),
    aten.min.default: whole(SMALLEST),
    aten.max.dim: extreme(True),
    aten.min.dim: extreme(False),
    aten.argmax.default: arg_max(True),
    aten.argmin.default: arg_max(False),
    aten.any.default: whole(any_of),
    aten.any.dim: row(any_of),
    aten.any.dims: row(any_of),
    aten.all.default: whole(all_of),
    aten.all.dim: row(all_of),
    aten.all.dims: row(all_of),
    aten.count_nonzero.default: row(count_nonzero),
    aten.count_nonzero.dim_IntList: row(count_nonzero),
    aten.logsumexp.default: row(log_sum_exp),
    aten.linalg_vector_norm.default: vector_norm,
    aten.norm.Scalar: vector_norm,
    aten.norm.ScalarOpt_dim: vector_norm,
    aten.var.default: variance(root=False),
    aten.var.dim: variance(root=False),
    aten.var.correction: variance(root=False),
    aten.std.default: variance(root=True),
    aten.std.dim: variance(root=True),
    aten.std.correction: variance(root=True),
    aten.var_mean.correction: variance(root=False, with_mean=True),
    aten.softmax.int: softmax(log=False),
    aten._softmax.default: softmax(log=False),
    aten.log_softmax.int: softmax(log=True),
    aten._log_softmax.default: softmax(log=True),
    aten.cumsum.default: cumsum,
    aten.diff.default: diff,
}
