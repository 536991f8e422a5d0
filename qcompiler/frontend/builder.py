"""The builder: what the rows of the table make nodes with; constants fold as they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from qcompiler.frontend.dims import Dims, numel, same
from qcompiler.frontend.errors import Refusal
from qcompiler.frontend.naming import Site
from qcompiler.graph import Node, Note
from qcompiler.op import Movement, Op, Unary
from qcompiler.ops import (
    Abs,
    Cast,
    Const,
    Expand,
    Full,
    LayerNorm,
    LeakyRelu,
    Neg,
    Permute,
    Power,
    Prelu,
    Reshape,
    RmsNorm,
    Round,
    Slice,
    Softmax,
    Sqrt,
    Sub,
)  # fmt: skip
from qcompiler.types import Dim, DType, Sym, TensorType

Value = Any  # what a call gives: a Node, a tuple of values, a Dim, a Python constant, or Absent
Handler = Callable[..., Value]
Number = bool | int | float

FOLD_LIMIT = 1 << 22
"""Elements. A constant made at import may be this large or as large as what it is made of; a causal
mask of 2048 positions just fits."""
LAZY_OVER = 64  # elements; larger constants that only repeat smaller ones stay an Expand


class Builder:
    """Makes the nodes of one graph. `out` is the type PyTorch gives the call at hand."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        self.known: dict[Node, torch.Tensor] = {}
        self.site = Site("", "")
        self.expected: tuple[TensorType | None, ...] = ()
        self.made: set[Node] = set()

    def begin(self, site: Site, expected: Sequence[TensorType | None]) -> None:
        """Start the nodes of one call."""
        self.site = site
        self.expected = tuple(expected)
        self.made = set()

    @property
    def out(self) -> TensorType:
        """Type of the call's first result."""
        (first, *_) = self.expected or (None,)
        if first is None:
            raise Refusal("a result that is not a tensor")
        return first

    def __call__(self, op: Op, *inputs: Node) -> Node:
        """Apply an op. Constant operands give a constant, unless it would be too large.

        A function that the law states for float32 alone gets float64 operands as float32.
        """
        if _single(op) and any(i.tensor.dtype is DType.FLOAT64 for i in inputs):
            narrow = [self.cast(i, DType.FLOAT32) for i in inputs]
            return self.cast(self(op, *narrow), DType.FLOAT64)
        note = Note(origin=self.site.origin)
        node = op(*inputs, name=f"{self.site.name}.{op.kind}", note=note)
        values = [self.known[i] for i in inputs if i in self.known]
        if len(values) == len(inputs) and not _open(op) and self.may_fold(node, values):
            return self.value(op.eval(*values), like=inputs if isinstance(op, Movement) else ())
        self.made.add(node)
        return node

    def may_fold(self, node: Node, values: Sequence[torch.Tensor]) -> bool:
        if isinstance(node.op, Expand):
            return False
        return folds(node.tensor.shape, values)

    def value(self, tensor: torch.Tensor, like: Sequence[Node] = ()) -> Node:
        """A constant. One that repeats a smaller one is kept small, under an Expand."""
        tensor = tensor.detach()
        DType.of(tensor.dtype)
        once = tensor
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if size > 1 and stride == 0:
                once = once.narrow(axis, 0, 1)
        named = [i.name for i in like if isinstance(i.op, Const)]
        name = named[0] if len(named) == 1 and once.dim() else f"{self.site.name}.const"
        note = Note(origin=self.site.origin)
        if once.numel() < tensor.numel() > LAZY_OVER:
            node = Const(once.clone(memory_format=torch.contiguous_format))(name=name, note=note)
            self.known[node] = node.op.eval()
            shape = tuple(tensor.shape)
            node = Expand(shape)(node, name=f"{self.site.name}.expand", note=note)
        else:
            tensor = tensor.contiguous()
            node = Const(tensor)(name=name, note=note)
        self.known[node] = tensor
        self.made.add(node)
        return node

    def const(self, value: Number | list[Any], dtype: DType) -> Node:
        return self.value(torch.tensor(value, dtype=dtype.torch))

    def full(self, shape: Sequence[Dim], value: Number, dtype: DType) -> Node:
        """A tensor of one value: a constant, or an op when a size is symbolic."""
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) == len(shape):
            return self.value(torch.tensor(value, dtype=dtype.torch).expand(sizes))
        return self(Full(tuple(shape), float(value), dtype))

    def finish(self, node: Node) -> Node:
        """The call's result under the call's own name."""
        if node not in self.made or isinstance(node.op, Const):
            return node
        named = replace(node, name=self.site.name)
        if node in self.known:
            self.known[named] = self.known[node]
        return named

    def cast(self, x: Node | Number | Sym, dtype: DType) -> Node:
        """The operand in a dtype; a Python number becomes a constant of it."""
        if isinstance(x, Sym):
            raise Refusal(f"arithmetic with the symbolic size {x!r}")
        if not isinstance(x, Node):
            return self.const(x, dtype)
        return x if x.tensor.dtype is dtype else self(Cast(dtype), x)

    def reshape(self, x: Node, shape: Sequence[Dim]) -> Node:
        shape = tuple(shape)
        if isinstance(x.op, Reshape) and x in self.made:
            (x,) = x.inputs
        equal = len(shape) == x.tensor.rank and all(map(same, shape, x.tensor.shape))
        return x if equal else self(Reshape(shape), x)

    def permute(self, x: Node, dims: Sequence[int]) -> Node:
        dims = tuple(dims)
        return x if dims == tuple(range(len(dims))) else self(Permute(dims), x)

    def slice(self, x: Node, axis: int, start: Dim, stop: Dim, step: int = 1) -> Node:
        whole = start == 0 and same(stop, x.tensor.shape[axis]) and step == 1
        return x if whole else self(Slice(axis, start, stop, step), x)

    def expand(self, x: Node, shape: Sequence[Dim]) -> Node:
        shape = tuple(shape)
        if len(shape) == x.tensor.rank and all(map(same, shape, x.tensor.shape)):
            return x
        if x in self.known and numel(shape) is not None:
            return self.value(self.known[x].expand([d for d in shape if isinstance(d, int)]))
        return self(Expand(shape), x)

    def one_minus(self, x: Node) -> Node:
        return self(Sub(), self.const(1.0, x.tensor.dtype), x)


def folds(shape: Sequence[Dim], values: Sequence[torch.Tensor]) -> bool:
    """Whether a result of this shape, made of these constants, may become a constant."""
    size = numel(shape)
    return size is not None and size <= max(FOLD_LIMIT, sum(v.numel() for v in values))


def _open(op: Op) -> bool:
    """Whether the op has a symbolic attribute, so that it has no value yet."""
    attributes = [v if isinstance(v, tuple) else (v,) for v in vars(op).values()]
    return any(isinstance(d, Sym) for v in attributes for d in v)


def _single(op: Op) -> bool:
    """Whether the op's formula has polynomials or constants of float32; plain IEEE ones do not."""
    if isinstance(op, Unary):
        return not isinstance(op, Neg | Abs | Sqrt | Round | Power)
    return isinstance(op, LeakyRelu | Prelu | Softmax | LayerNorm | RmsNorm)


def axis_of(axis: int, rank: int) -> int:
    """A dimension argument counted from the front."""
    axis = axis + max(rank, 1) if axis < 0 else axis
    if not 0 <= axis < max(rank, 1):
        raise Refusal(f"axis {axis} of a tensor of rank {rank}")
    return axis


def pair(value: int | Sequence[int], count: int = 2) -> tuple[int, ...]:
    """A size argument of a windowed op: one number stands for all axes."""
    values = [value] if isinstance(value, int) else list(value)
    values = values * count if len(values) == 1 else values
    if len(values) != count or not all(isinstance(v, int) for v in values):
        raise Refusal(f"{count} known sizes, got {values}")
    return tuple(values)


def static(shape: Sequence[Dim], what: str) -> tuple[int, ...]:
    """The sizes as plain ints; a symbolic one is refused."""
    sizes = tuple(d for d in shape if isinstance(d, int))
    if len(sizes) != len(shape):
        raise Refusal(f"{what} with a symbolic size {[*shape]}; trace it with a fixed size")
    return sizes


def finite(value: float | None, default: float) -> float:
    return default if value is None or math.isnan(value) else float(value)
