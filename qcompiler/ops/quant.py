"""Quantize, dequantize and the integer ops: exact, by the law of arith.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Compute, Elementwise, Op, QuantRule, RowOp, broadcast
from qcompiler.ops.nn import Conv2d, conv_shape, linear_shape, matmul_shape
from qcompiler.ops.pool import (  # fmt: skip
    Window,
    channel_axis,
    from_nchw,
    to_nchw,
    window_sum,
    windowed,
)
from qcompiler.ops.values import Const
from qcompiler.ops.weights import grouped_shape
from qcompiler.types import DType, QParams, TensorType, TupleType, Type

if TYPE_CHECKING:
    import torch


def _const_params(inputs: Sequence[Node], like: Quantize | Dequantize) -> QParams | None:
    """The parameters that Const scale and zero-point operands spell out.

    Grouped codes stand for themselves: their many scales are only an operand of what reads them.
    """
    scale, zero_point = inputs[1].op, inputs[2].op
    if isinstance(like, Quantize) and like.group is not None:
        return QParams((1.0,), 0, like.qmin, like.qmax)
    if not (isinstance(scale, Const) and isinstance(zero_point, Const)):
        return None
    scales = tuple(scale.value.reshape(-1).tolist())
    code = inputs[0].tensor.quant or like
    low, high = (like.qmin, like.qmax) if isinstance(like, Quantize) else (0, 0)
    if isinstance(like, Dequantize) and isinstance(code, QParams):
        low, high = code.qmin, code.qmax
    return QParams(scales, int(zero_point.value.reshape(-1)[0]), low, high, like.axis)


def _along(
    value: torch.Tensor, axis: int | None, of: torch.Tensor, group: int | None = None
) -> torch.Tensor:
    """A vector per channel shaped to broadcast along `axis` of a tensor; one per channel and group
    [N, ceil(K / group)] as one per weight."""
    if axis is None or value.ndim == 0:
        return value
    if group is not None:
        return arith.spread(value, group, of.shape[-1])
    return value.reshape([-1, *[1] * (of.ndim - axis - 1)])


@dataclass(frozen=True)
class Quantize(Elementwise):
    """`int(clamp(rint(x / scale), qmin - zp, qmax - zp)) + zp`; operands x, scale, zero point.

    group: the scale is one per channel and so many neighbours along the last axis, [N, groups].
    On an operand that requires grad the codes come as float with a straight-through gradient
    (Bengio et al. 2013), so the same graph trains.
    """

    arity: ClassVar[tuple[int, int]] = (3, 3)

    to: DType
    qmin: int
    qmax: int
    axis: int | None = None
    group: int | None = None

    def type_of(self, inputs: Sequence[Node]) -> Type:
        x = self.infer(*(i.tensor for i in inputs))
        return replace(x, quant=_const_params(inputs, self))

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        self.expects(x.dtype.is_float, "a float operand", x)
        return TensorType(x.shape, self.to)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        x, scale, zero_point = xs
        inverse = n.div(n.const(1.0), scale)
        return arith.quantize(n, x, inverse, zero_point, self.qmin, self.qmax, self.to.value)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, scale, zero_point = inputs
        scale = _along(scale, self.axis, x, self.group)
        zero_point = _along(zero_point, self.axis, x)
        if not (x.requires_grad or scale.requires_grad):
            codes: torch.Tensor = self.law(arith.TORCH, x, scale, zero_point)
            return codes
        real = x / scale
        real = real + (real.round() - real).detach() + zero_point
        return real.clamp(self.qmin, self.qmax)


@dataclass(frozen=True)
class Dequantize(Elementwise):
    """`float32(q - zp) * scale`, rounded once; operands q, scale, zero point. group: as above."""

    arity: ClassVar[tuple[int, int]] = (3, 3)

    axis: int | None = None
    group: int | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        self.expects(len(inputs) == 3, "codes, scale and zero point", *inputs)
        q, scale, zero_point = inputs
        if self.axis is None:
            fits = broadcast(self, *(i.shape for i in inputs)) == q.shape
            self.expects(fits, "scale and zero point that broadcast to the codes", *inputs)
        elif self.group is not None:
            fits = scale.shape == grouped_shape(q, self.group) and zero_point.shape == ()
            self.expects(fits, f"a scale per channel and {self.group} weights", *inputs)
        else:
            channels = q.shape[self.axis : self.axis + 1]
            fits = scale.shape == channels and zero_point.shape in ((), channels)
            self.expects(fits, f"a scale per channel of axis {self.axis}", *inputs)
        return TensorType(q.shape, DType.FLOAT32)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.dequantize(n, *xs)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        q, scale, zero_point = inputs
        if q.is_floating_point():
            return (q - zero_point) * _along(scale, self.axis, q, self.group)
        scale = _along(scale, self.axis, q, self.group)
        real: torch.Tensor = self.law(arith.TORCH, q, scale, _along(zero_point, self.axis, q))
        return real


@dataclass(frozen=True)
class Requantize(Elementwise):
    """Accumulators to codes: `int(rint(clamp(float32(acc) * m, qmin - zp, qmax - zp))) + zp`.

    Operands acc int32 and m float32, which broadcasts. With a third operand the second
    multiplies where acc >= 0 and the third elsewhere (PReLU, leaky ReLU).
    """

    arity: ClassVar[tuple[int, int]] = (2, 3)

    to: DType
    out: QParams

    def dtype(self, *inputs: TensorType) -> DType:
        acc, *multipliers = inputs
        self.expects(acc.dtype is DType.INT32, "an int32 accumulator", acc)
        floats = all(m.dtype is DType.FLOAT32 for m in multipliers)
        self.expects(floats, "float32 multipliers", *multipliers)
        return self.to

    def params(self, *inputs: TensorType) -> QParams:
        return self.out

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        o, to = self.out, self.to.value
        if len(xs) == 2:
            acc, m = xs
            return arith.requantize(n, acc, m, o.zero_point, o.qmin, o.qmax, to)
        acc, positive, negative = xs
        return arith.requantize_select(n, acc, positive, negative, o.zero_point, o.qmin, o.qmax, to)


@dataclass(frozen=True)
class Lookup(Elementwise):
    """A 256-entry table indexed by code + offset: any function of one code, exact everywhere."""

    to: DType
    out: QParams
    offset: int = 0

    def aligned(self, operand: int) -> bool:
        return operand == 0

    def infer(self, *inputs: TensorType) -> TensorType:
        q, table = inputs
        self.expects(q.dtype.bits == 8, "8-bit codes", q)
        self.expects(table.shape == (256,) and table.dtype is self.to, "a table of 256", table)
        return TensorType(q.shape, self.to, self.out)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        q, table = xs
        index = n.cast(q, "int32")
        return n.lookup(table, n.add(index, n.const(self.offset, "int32")))


def _product_params(x: TensorType, w: TensorType, axis: int) -> QParams | None:
    """Parameters of an int32 accumulator: scale sx * sw[c], zero point 0."""
    if x.quant is None or w.quant is None or not x.quant.per_tensor:
        return None
    sx = x.quant.scale[0]
    scale = tuple(sx * s for s in w.quant.scale)
    low, high = DType.INT32.limits
    return QParams(scale, 0, low, high, None if w.quant.per_tensor else axis)


def _accumulate(op: Op, x: TensorType, w: TensorType, bias: Sequence[TensorType]) -> None:
    op.expects(x.dtype.is_code and w.dtype.is_code, "codes", x, w)
    op.expects(all(b.dtype is DType.INT32 for b in bias), "an int32 bias", *bias)


@dataclass(frozen=True)
class IntConv2d(Conv2d):
    """sum((x - zero_point) * w) + b exactly in int32; the border holds the zero point."""

    zero_point: int = 0

    def infer(self, *inputs: TensorType) -> TensorType:
        x, w, *b = inputs
        _accumulate(self, x, w, b)
        shape = conv_shape(self, *inputs)
        params = _product_params(x, w, channel_axis(self.channels_last))
        return TensorType(shape, DType.INT32, params)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        x, w, *b = inputs
        y = self.correlate(x.double() - self.zero_point, w.double()).to(torch.int32)
        y = y + b[0].reshape(-1, 1, 1) if b else y
        return from_nchw(y, self.channels_last)


@dataclass(frozen=True)
class IntLinear(Op):
    """sum((x - zero_point) * w) + b exactly in int32; x [..., K], w [N, K], b [N]."""

    quant: ClassVar[QuantRule] = Compute()
    zero_point: int = 0

    def infer(self, *inputs: TensorType) -> TensorType:
        x, w, *b = inputs
        _accumulate(self, x, w, b)
        shape = linear_shape(self, *inputs)
        return TensorType(shape, DType.INT32, _product_params(x, w, len(shape) - 1))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        x, w, *b = inputs
        y = ((x.double() - self.zero_point) @ w.double().T).to(torch.int32)
        return y + b[0] if b else y


@dataclass(frozen=True)
class IntMatmul(Op):
    """sum((a - za) * (b - zb)) exactly in int32; both operands are activations."""

    quant: ClassVar[QuantRule] = Compute()
    za: int = 0
    zb: int = 0

    def infer(self, *inputs: TensorType) -> TensorType:
        a, b = inputs
        _accumulate(self, a, b, ())
        return TensorType(matmul_shape(self, a, b), DType.INT32, _product_params(a, b, 0))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        a, b = inputs
        return ((a.double() - self.za) @ (b.double() - self.zb)).to(torch.int32)


@dataclass(frozen=True)
class IntAdd(Elementwise):
    """(a - za) * ma + (b - zb) * mb in int32, of scale sy / 2^shift."""

    za: int
    zb: int
    ma: int
    mb: int
    out: QParams

    def dtype(self, *inputs: TensorType) -> DType:
        return DType.INT32

    def params(self, *inputs: TensorType) -> QParams:
        return self.out

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        a, b = xs
        return arith.int_add(n, a, b, self.za, self.zb, self.ma, self.mb)


@dataclass(frozen=True)
class IntMul(Elementwise):
    """(a - za) * (b - zb) in int32, of scale sa * sb."""

    za: int
    zb: int

    def dtype(self, *inputs: TensorType) -> DType:
        return DType.INT32

    def params(self, *inputs: TensorType) -> QParams | None:
        return _product_params(inputs[0], inputs[1], 0)

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        a, b = xs
        return arith.int_mul(n, a, b, self.za, self.zb)


@dataclass(frozen=True)
class IntSumPool2d(Op):
    """The sum of (q - zero_point) over each window, int32; padding adds nothing."""

    quant: ClassVar[QuantRule] = Compute()
    window: Window
    zero_point: int = 0
    channels_last: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(x.dtype.is_code and x.rank == 4, "codes of rank 4", x)
        channels = x.shape[channel_axis(self.channels_last)]
        shape = windowed(self.window, x, channels, self.channels_last)
        low, high = DType.INT32.limits
        params = QParams(x.quant.scale, 0, low, high) if x.quant else None
        return TensorType(shape, DType.INT32, params)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        x = to_nchw(inputs[0], self.channels_last).to(torch.int32) - self.zero_point
        return from_nchw(window_sum(self.window.taps(x, 0)), self.channels_last)


@dataclass(frozen=True)
class DynamicQuantize(RowOp):
    """Codes in [-qmax, qmax] and one scale per row of the last axis: (int8 [..., K], float32
    [..., 1])."""

    qmax: int = 127

    def infer(self, *inputs: TensorType) -> TupleType:
        x = super().infer(*inputs)
        assert isinstance(x, TensorType)
        self.expects(1 <= self.qmax <= DType.INT8.limits[1], "a qmax in 1..127", self.qmax)
        scale = TensorType((*x.shape[:-1], 1), DType.FLOAT32)
        return TupleType((TensorType(x.shape, DType.INT8), scale))

    def law(self, n: Any, *xs: Any) -> Any:
        return arith.dynamic_quantize(n, xs[0], self.qmax)


@dataclass(frozen=True)
class Rescale(Elementwise):
    """`float32(acc) * (sx * sw)`: accumulators of dynamically quantized rows to float."""

    arity: ClassVar[tuple[int, int]] = (3, 3)

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(inputs[0].dtype is DType.INT32, "an int32 accumulator", inputs[0])
        return DType.FLOAT32

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        return arith.rescale(n, *xs)
