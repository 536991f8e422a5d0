"""Convolution, matmul, normalisation, pooling, attention, reductions: float semantics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from qcompiler import arith
from qcompiler.op import Compute, Float, Movement, Op, QuantRule, RowOp
from qcompiler.types import Dim, DType, QParams, TensorType

if TYPE_CHECKING:
    import torch

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # (top, bottom), (left, right)
NO_PADS: Pads = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Window:
    """Where a 2-d window lies: kernel, stride, padding and dilation, in (height, width)."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pads = NO_PADS
    dilation: Pair = (1, 1)
    ceil: bool = False

    def size(self, height: Dim, width: Dim) -> tuple[Dim, Dim]:
        """Output height and width. In ceil mode the last window must start inside the input
        or its leading padding, as in PyTorch."""
        return self._along(0, height), self._along(1, width)

    def _along(self, k: int, dim: Dim) -> Dim:
        before, after = self.padding[k]
        reach = self.dilation[k] * (self.kernel[k] - 1) + 1
        room = dim + (before + after - reach)
        if not self.ceil or not isinstance(room, int) or not isinstance(dim, int):
            return room // self.stride[k] + 1
        count = -(-room // self.stride[k]) + 1
        return count - 1 if (count - 1) * self.stride[k] >= dim + before else count

    def fitted(self, height: int, width: int) -> Window:
        """The same windows with floor rounding: ceil mode becomes padding after the end."""
        pads = []
        for k, (dim, out) in enumerate(zip((height, width), self.size(height, width), strict=True)):
            assert isinstance(out, int)
            reach = self.dilation[k] * (self.kernel[k] - 1) + 1
            need = (out - 1) * self.stride[k] + reach - dim - self.padding[k][0]
            pads.append((self.padding[k][0], max(need, 0)))
        return Window(self.kernel, self.stride, (pads[0], pads[1]), self.dilation)

    def taps(self, x: torch.Tensor, fill: float) -> list[torch.Tensor]:
        """The input seen by each kernel position in row-major order, [..., OH, OW] each."""
        import torch.nn.functional as F

        fit = self.fitted(x.shape[-2], x.shape[-1])
        (t, b), (left, r) = fit.padding
        height, width = fit.size(x.shape[-2], x.shape[-1])
        assert isinstance(height, int) and isinstance(width, int)
        x = F.pad(x, (left, r, t, b), value=fill)
        (sh, sw), (dh, dw) = fit.stride, fit.dilation
        return [
            x[..., i * dh : i * dh + (height - 1) * sh + 1 : sh,
              j * dw : j * dw + (width - 1) * sw + 1 : sw]
            for i in range(fit.kernel[0]) for j in range(fit.kernel[1])
        ]  # fmt: skip


def channel_axis(channels_last: bool) -> int:
    return 3 if channels_last else 1


def to_nchw(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.permute(0, 3, 1, 2) if channels_last else x


def from_nchw(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if channels_last else x


def windowed(window: Window, x: TensorType, channels: Dim, last: bool) -> tuple[Dim, ...]:
    """The output shape of a windowed op on a 4-d operand."""
    n, h, w = (x.shape[0], *(x.shape[1:3] if last else x.shape[2:4]))
    height, width = window.size(h, w)
    return (n, height, width, channels) if last else (n, channels, height, width)


def conv_shape(op: Conv2d, x: TensorType, w: TensorType) -> tuple[Dim, ...]:
    """Checks the operands of a convolution and gives its output shape."""
    op.expects(x.rank == 4 and w.rank == 4, "operands of rank 4", x, w)
    channels = x.shape[channel_axis(op.channels_last)]
    out, per_group = w.shape[0], w.shape[1]
    op.expects(per_group * op.groups == channels, f"{channels} input channels", w, op.groups)
    op.expects(isinstance(out, int) and out % op.groups == 0, "groups that divide channels", w)
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
        x, w = inputs[:2]
        self.expects(x.dtype.is_float and w.dtype == x.dtype, "float operands of one dtype", x, w)
        return TensorType(conv_shape(self, x, w), x.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, w, *b = inputs
        y = self.correlate(x, w)
        y = y + b[0].reshape(-1, 1, 1) if b else y
        return from_nchw(y, self.channels_last)

    def correlate(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The sums of products, [N,O,OH,OW], in the dtype of the operands."""
        import torch.nn.functional as F

        (t, b), (left, r) = self.padding
        x = F.pad(to_nchw(x, self.channels_last), (left, r, t, b))
        return F.conv2d(x, w, None, self.stride, 0, self.dilation, self.groups)


@dataclass(frozen=True)
class Linear(Op):
    """x [..., K] times w [N, K] transposed, plus b [N]."""

    quant: ClassVar[QuantRule] = Compute()

    def infer(self, *inputs: TensorType) -> TensorType:
        x, w = inputs[:2]
        self.expects(x.dtype.is_float and w.dtype == x.dtype, "float operands of one dtype", x, w)
        return TensorType(linear_shape(self, *inputs), x.dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        return F.linear(*inputs)


def linear_shape(op: Op, *inputs: TensorType) -> tuple[Dim, ...]:
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


@dataclass(frozen=True)
class LayerNorm(RowOp):
    """Normalisation of the last axis (Ba et al. 2016). x [..., K], w [K], b [K]."""

    quant: ClassVar[QuantRule] = Float("normalisation needs more range than 8 bits hold")
    eps: float

    def law(self, n: Any, *xs: Any) -> Any:
        return arith.layer_norm(n, *xs, eps=self.eps)


@dataclass(frozen=True)
class RmsNorm(RowOp):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019)."""

    quant: ClassVar[QuantRule] = Float("normalisation needs more range than 8 bits hold")
    eps: float

    def law(self, n: Any, *xs: Any) -> Any:
        return arith.rms_norm(n, *xs, eps=self.eps)


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
    """One value per row of the last axis, which stays with size 1."""

    quant: ClassVar[QuantRule] = Float("a row reduction is kept in float")
    by: Reduction

    def law(self, n: Any, *xs: Any) -> Any:
        if self.by is Reduction.MAX:
            return n.row_max(xs[0])
        return n.row_sum(xs[0]) if self.by is Reduction.SUM else arith.row_mean(n, xs[0])

    def infer(self, *inputs: TensorType) -> TensorType:
        x = super().infer(*inputs)
        assert isinstance(x, TensorType)
        return TensorType((*x.shape[:-1], 1), x.dtype)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float] | None:
        return None if self.by is Reduction.SUM else ranges[0]


@dataclass(frozen=True)
class MaxPool2d(Movement):
    """The largest value of each window; padding never wins. Codes stay codes."""

    window: Window
    channels_last: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(x.rank == 4, "an operand of rank 4", x)
        channels = x.shape[channel_axis(self.channels_last)]
        shape = windowed(self.window, x, channels, self.channels_last)
        return TensorType(shape, x.dtype, x.quant)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        x = to_nchw(inputs[0], self.channels_last)
        fill = -math.inf if x.is_floating_point() else DType.of(x.dtype).limits[0]
        taps = self.window.taps(x, fill)
        result = taps[0]
        for tap in taps[1:]:
            result = torch.maximum(result, tap)
        return from_nchw(result, self.channels_last)


def window_counts(window: Window, height: int, width: int, with_padding: bool) -> torch.Tensor:
    """How many elements each window averages, [OH, OW]; the ceil-mode overhang never counts."""
    import torch

    inside = torch.ones(1, 1, height, width)
    if with_padding:
        (t, b), (left, r) = window.padding
        inside = torch.nn.functional.pad(inside, (left, r, t, b), value=1.0)
        window = Window(window.kernel, window.stride, NO_PADS, window.dilation, window.ceil)
    total = torch.zeros(())
    for tap in window.taps(inside, 0.0):
        total = total + tap
    return total[0, 0]


def window_sum(taps: list[torch.Tensor]) -> torch.Tensor:
    """Sums tap after tap, in row-major window order: the law for pooling sums."""
    total = taps[0]
    for tap in taps[1:]:
        total = total + tap
    return total


@dataclass(frozen=True)
class AvgPool2d(Op):
    """The mean of each window: taps summed in row-major order, then one division."""

    quant: ClassVar[QuantRule] = Compute()
    window: Window
    count_padding: bool = True
    divisor: int | None = None
    channels_last: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(x.rank == 4 and x.dtype.is_float, "a float operand of rank 4", x)
        channels = x.shape[channel_axis(self.channels_last)]
        return TensorType(windowed(self.window, x, channels, self.channels_last), x.dtype)

    def counts(self, height: int, width: int) -> torch.Tensor:
        """The divisor of each output position, float32 [OH, OW]."""
        counts = window_counts(self.window, height, width, self.count_padding)
        return counts if self.divisor is None else counts * 0 + self.divisor

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x = to_nchw(inputs[0], self.channels_last)
        total = window_sum(self.window.taps(x, 0.0))
        y = total / self.counts(x.shape[-2], x.shape[-1]).to(x.dtype)
        return from_nchw(y, self.channels_last)

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        ((lo, hi),) = ranges
        return min(lo, 0.0), max(hi, 0.0)


@dataclass(frozen=True)
class Resize(Op):
    """Nearest or bilinear interpolation of [N,C,H,W] to `size` (H, W), PyTorch's sampling.

    Bilinear: `a + (b - a) * t` along width, then height; source positions are constants.
    """

    quant: ClassVar[QuantRule] = Float("interpolation is kept in float")
    size: Pair
    bilinear: bool = False
    align_corners: bool = False
    scale: tuple[float, float] | None = None  # source step when a scale factor was given
    channels_last: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        self.expects(x.rank == 4, "an operand of rank 4", x)
        n, c = x.shape[0], x.shape[channel_axis(self.channels_last)]
        quant: QParams | None = None if self.bilinear else x.quant
        shape = (n, *self.size, c) if self.channels_last else (n, c, *self.size)
        return TensorType(shape, x.dtype, quant)

    def sources(self, axis: int, dim: int) -> tuple[list[int], list[int], list[float]]:
        """Per output position: lower and upper source index, and the weight of the upper."""
        import numpy as np

        out = self.size[axis]
        k = np.arange(out, dtype=np.float32)
        step = np.float32(self.scale[axis] if self.scale else dim / out)
        if not self.bilinear:
            low = np.minimum((k * step).astype(np.int64), dim - 1).tolist()
            return low, low, [0.0] * out
        if self.align_corners:
            at = k * np.float32((dim - 1) / max(out - 1, 1))
        else:
            at = np.maximum((k + np.float32(0.5)) * step - np.float32(0.5), np.float32(0))
        low = np.minimum(np.floor(at).astype(np.int64), dim - 1)
        high = np.minimum(low + 1, dim - 1)
        weight = np.clip(at - low.astype(np.float32), 0, 1).astype(np.float32)
        return low.tolist(), high.tolist(), [float(t) for t in weight]

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        x = to_nchw(inputs[0], self.channels_last)
        for axis, dim in ((3, x.shape[3]), (2, x.shape[2])):
            low, high, weight = self.sources(axis - 2, dim)
            a = x.index_select(axis, torch.tensor(low))
            if self.bilinear:
                b = x.index_select(axis, torch.tensor(high))
                t = torch.tensor(weight).reshape(-1, *[1] * (3 - axis))
                a = a + (b - a) * t
            x = a
        return from_nchw(x, self.channels_last)


@dataclass(frozen=True)
class Cumsum(Op):
    """Running sum along an axis, in order."""

    quant: ClassVar[QuantRule] = Float("a running sum is kept as it is")
    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(inputs[0].shape, inputs[0].dtype)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].cumsum(self.axis).to(inputs[0].dtype)
