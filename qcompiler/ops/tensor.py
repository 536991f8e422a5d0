"""Data movement: codes stay codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qcompiler.op import Movement, Op
from qcompiler.types import Dim, DType, Sym, TensorType

if TYPE_CHECKING:
    import torch


def _keep(x: TensorType, shape: tuple[Dim, ...], axis: int | None = None) -> TensorType:
    """The type after a movement: codes keep per-tensor parameters, or those moved to `axis`."""
    quant = x.quant
    if quant is not None and not quant.per_tensor:
        quant = quant.moved(axis) if axis is not None else None
    return TensorType(shape, x.dtype, quant)


def _filled(y: TensorType, x: TensorType, value: float) -> TensorType:
    """The type `y` that `value` is filled into: codes may be that one, too."""
    if y.quant is None or y.shape == x.shape:
        return y
    low, high = min(y.quant.qmin, int(value)), max(y.quant.qmax, int(value))
    return replace(y, quant=replace(y.quant, qmin=low, qmax=high))


@dataclass(frozen=True)
class Reshape(Movement):
    """The same elements in row-major order under another shape."""

    shape: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if x.static and all(isinstance(d, int) for d in self.shape):
            size = TensorType(self.shape, x.dtype).size
            self.expects(x.size == size, f"{x.size} elements", self.shape)
        axis = x.quant.axis if x.quant else None
        same = axis is not None and x.shape[: axis + 1] == self.shape[: axis + 1]
        return _keep(x, self.shape, axis if same else None)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].reshape([d for d in self.shape if isinstance(d, int)])


@dataclass(frozen=True)
class Permute(Movement):
    """`y.shape[k] = x.shape[dims[k]]`."""

    dims: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(sorted(self.dims) == list(range(x.rank)), f"a permutation of {x.rank}", self)
        axis = self.dims.index(x.quant.axis) if x.quant and x.quant.axis is not None else None
        return _keep(x, tuple(x.shape[d] for d in self.dims), axis)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].permute(self.dims).contiguous()


@dataclass(frozen=True)
class Slice(Movement):
    """`x[..., start:stop:step, ...]` along one axis, 0 <= start <= stop <= dim, step > 0."""

    axis: int
    start: Dim
    stop: Dim
    step: int = 1

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(0 <= self.axis < x.rank and self.step > 0, "an axis and a step > 0", self)
        dim = x.shape[self.axis]
        if isinstance(self.stop, int) and isinstance(dim, int) and isinstance(self.start, int):
            self.expects(0 <= self.start <= self.stop <= dim, f"a range in 0..{dim}", self)
        size = (self.stop - self.start + (self.step - 1)) // self.step
        shape = (*x.shape[: self.axis], size, *x.shape[self.axis + 1 :])
        axis = x.quant.axis if x.quant and x.quant.axis != self.axis else None
        return _keep(x, shape, axis)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        index = [slice(None)] * inputs[0].ndim
        index[self.axis] = slice(self.start, self.stop, self.step)
        return inputs[0][tuple(index)]


def _one_scale(x: TensorType, y: TensorType) -> bool:
    if x.quant is None or y.quant is None:
        return x.quant is y.quant
    return (x.quant.scale, x.quant.zero_point) == (y.quant.scale, y.quant.zero_point)


@dataclass(frozen=True)
class Concat(Movement):
    """The operands one after the other along an axis; codes must share their parameters."""

    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        self.expects(0 <= self.axis < x.rank, "an axis of the operands", self, x)
        total: Dim = 0
        for y in inputs:
            rest = [k for k in range(x.rank) if k != self.axis]
            fits = y.rank == x.rank and all(y.shape[k] == x.shape[k] for k in rest)
            self.expects(fits, "equal shapes beside the axis", *inputs)
            self.expects(y.dtype == x.dtype, "one dtype", *inputs)
            self.expects(_one_scale(x, y), "equal scales and zero points", x.quant, y.quant)
            total = total + y.shape[self.axis]
        shape = (*x.shape[: self.axis], total, *x.shape[self.axis + 1 :])
        quants = [y.quant for y in inputs if y.quant]
        if x.quant is None or not x.quant.per_tensor:
            return TensorType(shape, x.dtype)
        low, high = min(q.qmin for q in quants), max(q.qmax for q in quants)
        return TensorType(shape, x.dtype, replace(x.quant, qmin=low, qmax=high))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat(inputs, self.axis)


@dataclass(frozen=True)
class Pad(Movement):
    """A border of one value: `pads` is (before, after) per axis; on codes `value` is a code."""

    pads: tuple[tuple[int, int], ...]
    value: float = 0.0

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(len(self.pads) == x.rank, f"{x.rank} pairs", self.pads)
        shape = tuple(d + (a + b) for d, (a, b) in zip(x.shape, self.pads, strict=True))
        return _filled(_keep(x, shape), x, self.value)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        return super().bounds(*ranges, (self.value, self.value))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        flat = [p for pair in reversed(self.pads) for p in pair]
        return F.pad(inputs[0], flat, value=self.value)


@dataclass(frozen=True)
class Expand(Movement):
    """Dimensions of size 1 repeated to `shape`; leading dimensions may be added."""

    shape: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        pairs = zip(reversed(x.shape), reversed(self.shape), strict=False)
        fits = len(self.shape) >= x.rank and all(d in (1, s) for d, s in pairs)
        self.expects(fits, "a shape the operand broadcasts to", x, self.shape)
        return _keep(x, self.shape)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].expand([d for d in self.shape if isinstance(d, int)]).contiguous()


@dataclass(frozen=True)
class Flip(Movement):
    """The order of elements reversed along axes."""

    axes: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        return _keep(inputs[0], inputs[0].shape)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].flip(self.axes)


@dataclass(frozen=True)
class Dilate(Movement):
    """`value` (a code, on codes) inserted between elements: size d becomes (d - 1) * s + 1."""

    strides: tuple[int, ...]
    value: float = 0.0

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(len(self.strides) == x.rank, f"{x.rank} strides", self.strides)
        dims = zip(x.shape, self.strides, strict=True)
        return _filled(_keep(x, tuple((d - 1) * s + 1 for d, s in dims)), x, self.value)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        return super().bounds(*ranges, (self.value, self.value))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        shape = [(d - 1) * s + 1 for d, s in zip(x.shape, self.strides, strict=True)]
        y = x.new_full(shape, self.value)
        y[tuple(slice(None, None, s) for s in self.strides)] = x
        return y


@dataclass(frozen=True)
class Gather(Movement):
    """`x` indexed along `axis` by an integer tensor: embedding (axis 0), index_select.

    An index out of range is an error, as in PyTorch; negative ones are not accepted.
    """

    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        x, index = inputs
        self.expects(index.dtype in (DType.INT64, DType.INT32), "integer indices", index)
        self.expects(0 <= self.axis < x.rank, "an axis of the operand", self, x)
        shape = (*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :])
        quant = x.quant if x.quant and x.quant.per_tensor else None
        return TensorType(shape, x.dtype, quant)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        return ranges[0]

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, index = inputs
        size = x.shape[self.axis]
        if index.numel() and not bool(((index >= 0) & (index < size)).all()):
            got = f"{int(index.min())}..{int(index.max())}"
            raise IndexError(f"gather: expected indices in 0..{size - 1}, got {got}")
        shape = (*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :])
        return x.index_select(self.axis, index.reshape(-1)).reshape(shape)


@dataclass(frozen=True)
class GatherElements(Movement):
    """`y[i][j] = x[i][index[i][j]]` along `axis` (torch.gather)."""

    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        x, index = inputs
        self.expects(x.rank == index.rank, "operands of one rank", x, index)
        return _keep(x, index.shape)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        return ranges[0]

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].gather(self.axis, inputs[1].long())


@dataclass(frozen=True)
class Arange(Op):
    """`start, start + step, ...`, `size` values."""

    start: int
    step: int
    size: Dim
    dtype: DType = DType.INT64

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType((self.size,), self.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        assert isinstance(self.size, int)
        return (torch.arange(self.size) * self.step + self.start).to(self.dtype.torch)


@dataclass(frozen=True)
class Full(Op):
    """A tensor of one value whose shape has symbolic dimensions (a Const otherwise)."""

    shape: tuple[Dim, ...]
    value: float
    dtype: DType

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(self.shape, self.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        shape = [d for d in self.shape if isinstance(d, int)]
        return torch.full(shape, self.value, dtype=self.dtype.torch)


def bound_op(op: Op, values: dict[str, int]) -> Op:
    """The op with its symbolic dimensions replaced by numbers, ready for eval."""
    changes: dict[str, Any] = {}
    for name, attr in vars(op).items():
        if isinstance(attr, Sym):
            changes[name] = attr.at(values)
        elif isinstance(attr, tuple) and any(isinstance(d, Sym) for d in attr):
            changes[name] = tuple(d.at(values) if isinstance(d, Sym) else d for d in attr)
    return replace(op, **changes) if changes else op  # type: ignore[type-var]
