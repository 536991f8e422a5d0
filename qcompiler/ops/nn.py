"""Convolution, matmul, normalisation, attention, reductions: float semantics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from qcompiler import arith
from qcompiler.op import Compute, Float, Op, QuantRule, RowOp
from qcompiler.ops.pool import (
    NO_PADS,
    Pads,
    Pair,
    Window,
    channel_axis,
    from_nchw,
    to_nchw,
    windowed,
)
from qcompiler.types import Dim, DType, TensorType, Type

if TYPE_CHECKING:
    import torch

def conv_shape(op: Conv2d, *inputs: TensorType) -> tuple[Dim, ...]:
    """Checks the operands of a convolution and gives its output shape."""
    op.expects(len(inputs) in (2, 3), "x, a weight and perhaps a bias", *inputs)
    x, w, *b = inputs
    op.expects(x.rank == 4 and w.rank == 4, "operands of rank 4", x, w)
    channels = x.shape[channel_axis(op.channels_last)]
    out, per_group = w.shape[0], w.shape[1]
    op.expects(per_group * op.groups == channels, f"{channels} input channels", w, op.groups)
    op.expects(isinstance(out, int) and out % op.groups == 0, "groups that divide channels", w)
    op.expects(not b or b[0].shape == (out,), f"a bias of shape [{out}]", *b)
    shape = windowed(op.window(w), x, out, op.channels_last)
    spatial = shape[1:3] if op.channels_last else shape[2:]
    op.expects(all(not isinstance(d, int) or d > 0 for d in spatial), "a window that fits", x, w)
    return shape


@dataclass(frozen=True)
class Conv2d(Op):
    """Cross-correlation. x [N,C,H,W] (channels_last: [N,H,W,C]), w [O,C/groups,KH,KW], b [O]."""

    quant: ClassVar[QuantRule] = Compute()
    stride: Pair = (1, 1)
    padding: Pads = NO_PADS
    dilation: Pair = (1, 1)
    groups: int = 1
    channels_last: bool = False

    def window(self, w: TensorType) -> Window:
        kernel = (w.ints[2], w.ints[3])
        return Window(kernel, self.stride, self.padding, self.dilation)

    def infer(self, *inputs: TensorType) -> TensorType:
        float_operands(self, *inputs)
        return TensorType(conv_shape(self, *inputs), inputs[0].dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, w, *b = inputs
        y = self.correlate(x, w)
        y = y + b[0].reshape(-1, 1, 1) if b else y
        return from_nchw(y, self.channels_last)

    def correlate(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The sums of products, [N,O,OH,OW], in the dtype of the operands."""
        import torch
        import torch.nn.functional as F

        (t, b), (left, r) = self.padding
        x = F.pad(to_nchw(x, self.channels_last), (left, r, t, b))
        if x.shape[1] == 1:
            # oneDNN (torch 2.13) misreads one channel with the strides of channels last
            x = x.clone(memory_format=torch.contiguous_format)
        return F.conv2d(x, w, None, self.stride, 0, self.dilation, self.groups)


@dataclass(frozen=True)
class Linear(Op):
    """x [..., K] times w [N, K] transposed, plus b [N]."""

    quant: ClassVar[QuantRule] = Compute()

    def infer(self, *inputs: TensorType) -> TensorType:
        float_operands(self, *inputs)
        return TensorType(linear_shape(self, *inputs), inputs[0].dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        return F.linear(*inputs)


def float_operands(op: Op, *inputs: TensorType) -> None:
    one = all(i.dtype.is_float and i.dtype == inputs[0].dtype for i in inputs)
    op.expects(one, "float operands of one dtype", *inputs)


def linear_shape(op: Op, *inputs: TensorType) -> tuple[Dim, ...]:
    op.expects(len(inputs) in (2, 3), "x, a weight and perhaps a bias", *inputs)
    x, w, *b = inputs
    op.expects(w.rank == 2 and x.rank >= 1, "x [..., K] and w [N, K]", x, w)
    op.expects(x.shape[-1] == w.shape[1], f"x with last dimension {w.shape[1]}", x, w)
    op.expects(not b or b[0].shape == (w.shape[0],), f"a bias of shape [{w.shape[0]}]", *b)
    return (*x.shape[:-1], w.shape[0])


def matmul_shape(op: Op, a: TensorType, b: TensorType) -> tuple[Dim, ...]:
    """Batch dimensions broadcast; [..., M, K] x [..., K, N]."""
    from qcompiler.op import broadcast

    op.expects(a.rank >= 2 and b.rank >= 2, "operands of rank 2 or more", a, b)
    op.expects(a.shape[-1] == b.shape[-2], "inner dimensions that agree", a, b)
    return (*broadcast(op, a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


@dataclass(frozen=True)
class Matmul(Op):
    """a [..., M, K] times b [..., K, N]; batch dimensions broadcast."""

    quant: ClassVar[QuantRule] = Compute()

    def infer(self, *inputs: TensorType) -> TensorType:
        a, b = inputs
        self.expects(a.dtype.is_float and b.dtype == a.dtype, "float operands of one dtype", a, b)
        return TensorType(matmul_shape(self, a, b), a.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0] @ inputs[1]


@dataclass(frozen=True)
class Attention(Op):
    """Scaled dot-product attention (Vaswani et al. 2017): softmax(q k^T * scale + mask) v.

    q, k, v [..., L, E]; mask float or bool (True: attend). Lowered by `decompose`.
    """

    quant: ClassVar[QuantRule] = Float("attention is decomposed before quantization")
    scale: float
    causal: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        q, k, v = inputs[:3]
        self.expects(q.shape[-1] == k.shape[-1], "q and k of one width", q, k)
        self.expects(k.shape[-2] == v.shape[-2], "k and v of one length", k, v)
        return TensorType((*q.shape[:-1], v.shape[-1]), q.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        q, k, v, *mask = inputs
        return F.scaled_dot_product_attention(
            q, k, v, mask[0] if mask else None, is_causal=self.causal, scale=self.scale
        )


@dataclass(frozen=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(var + eps) * w + b over axis 1 (Ioffe and Szegedy 2015); folded."""

    quant: ClassVar[QuantRule] = Float("batch norm is folded or becomes a multiply and add")
    eps: float

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        self.expects(len(inputs) == 5, "x, mean, var, weight and bias", *inputs)
        self.expects(x.rank >= 2, "an operand of rank 2 or more", x)
        return TensorType(x.shape, x.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        x, mean, var, w, b = inputs
        return F.batch_norm(x, mean, var, w, b, False, 0.0, self.eps)


def scaled_rows(op: RowOp, count: int, *inputs: TensorType) -> Type:
    """The type of a norm of x [..., K] with `count - 1` vectors [K]."""
    op.expects(len(inputs) == count, f"{count} operands", *inputs)
    x, *rest = inputs
    found = RowOp.infer(op, x)
    fits = all(v.shape == x.shape[-1:] and v.dtype == x.dtype for v in rest)
    op.expects(fits, f"vectors of shape [{x.shape[-1]}]", *inputs)
    return found


@dataclass(frozen=True)
class LayerNorm(RowOp):
    """Normalisation of the last axis (Ba et al. 2016). x [..., K], w [K], b [K]."""

    quant: ClassVar[QuantRule] = Float("normalisation needs more range than 8 bits hold")
    eps: float

    def infer(self, *inputs: TensorType) -> Type:
        return scaled_rows(self, 3, *inputs)

    def law(self, n: Any, *xs: Any) -> Any:
        x, w, b = xs
        return arith.layer_norm(n, x, w, b, eps=self.eps)


@dataclass(frozen=True)
class RmsNorm(RowOp):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019)."""

    quant: ClassVar[QuantRule] = Float("normalisation needs more range than 8 bits hold")
    eps: float

    def infer(self, *inputs: TensorType) -> Type:
        return scaled_rows(self, 2, *inputs)

    def law(self, n: Any, *xs: Any) -> Any:
        x, w = xs
        return arith.rms_norm(n, x, w, eps=self.eps)


@dataclass(frozen=True)
class Softmax(RowOp):
    """exp(x - max) / sum over the last axis."""

    quant: ClassVar[QuantRule] = Float("softmax is exponential in its input")
    log: bool = False

    def law(self, n: Any, *xs: Any) -> Any:
        return (arith.log_softmax if self.log else arith.softmax)(n, xs[0])

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float] | None:
        return None if self.log else (0.0, 1.0)


class Reduction(Enum):
    """What a row is reduced to."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"


@dataclass(frozen=True)
class Reduce(RowOp):
    """One value per row of the last axis, which stays with size 1; the largest of integers, too."""

    quant: ClassVar[QuantRule] = Float("a row reduction is kept in float")
    by: Reduction

    def law(self, n: Any, *xs: Any) -> Any:
        if self.by is Reduction.MAX:
            return n.row_top(xs[0])
        return n.row_sum(xs[0]) if self.by is Reduction.SUM else arith.row_mean(n, xs[0])

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        whole = self.by is Reduction.MAX and x.dtype is not DType.BOOL and x.rank > 0
        if not whole:
            super().infer(*inputs)
        return TensorType((*x.shape[:-1], 1), x.dtype)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float] | None:
        return None if self.by is Reduction.SUM else ranges[0]


@dataclass(frozen=True)
class Cumsum(Op):
    """Running sum along an axis, in order."""

    quant: ClassVar[QuantRule] = Float("a running sum is kept as it is")
    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(inputs[0].shape, inputs[0].dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].cumsum(self.axis).to(inputs[0].dtype)
