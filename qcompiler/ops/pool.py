"""Windows over images: pooling and interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qcompiler.op import Compute, Float, Movement, Op, QuantRule, Same
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
        (_, bottom), (_, right) = window.fitted(height, width).padding
        inside = torch.nn.functional.pad(inside, (left, r, t, b), value=1.0)
        over = ((0, max(bottom - b, 0)), (0, max(right - r, 0)))
        window = Window(window.kernel, window.stride, over, window.dilation)
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

    size: Pair
    bilinear: bool = False
    align_corners: bool = False
    scale: tuple[float, float] | None = None  # source step when a scale factor was given
    channels_last: bool = False

    @property
    def quant(self) -> QuantRule:  # type: ignore[override]
        """Nearest moves values; bilinear mixes them."""
        return Float("bilinear interpolation is kept in float") if self.bilinear else Same()

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
