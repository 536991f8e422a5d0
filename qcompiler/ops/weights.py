"""Linear layers whose weights alone are codes, or are codes in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qcompiler import arith
from qcompiler.op import Compute, Op, QuantRule
from qcompiler.ops.nn import linear_shape
from qcompiler.types import DType, TensorType

if TYPE_CHECKING:
    import torch


def grouped_shape(w: TensorType, group: int | None) -> tuple[int, ...]:
    """The shape of the scales of weights [N, K]: one a channel, or one a channel and group."""
    channels, size = w.ints
    return (channels,) if group is None else (channels, arith.group_count(size, group))


@dataclass(frozen=True)
class WeightOnlyLinear(Op):
    """x [..., K] times `float32(q) * scale` transposed, plus b [N]; all sums are float32.

    Operands x float32, codes int8 [N, K], scale float32 [N], or [N, ceil(K / group)], and perhaps
    b. Like any float product it holds to 1e-4 of the largest result, not bit for bit.
    """

    quant: ClassVar[QuantRule] = Compute()
    group: int | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        self.expects(len(inputs) in (3, 4), "x, codes, scales and perhaps a bias", *inputs)
        x, w, scale, *bias = inputs
        shape = linear_shape(self, x, w, *bias)
        floats = all(i.dtype is DType.FLOAT32 for i in (x, scale, *bias))
        self.expects(floats and w.dtype is DType.INT8, "int8 weights, all else float32", *inputs)
        expected = grouped_shape(w, self.group)
        self.expects(scale.shape == expected, f"scales of shape {expected}", scale)
        return TensorType(shape, DType.FLOAT32)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        x, codes, scale, *bias = inputs
        return F.linear(x, arith.decode(codes, scale, self.group), *bias)


@dataclass(frozen=True)
class GroupedIntLinear(Op):
    """`sum_g i_g * sum_{k in g} x[k] * w[k]` exactly in int32; x [..., K], w [N, K].

    Operands codes x, codes w and factors int8 [N, ceil(K / group)], each in 1..127.
    """

    quant: ClassVar[QuantRule] = Compute()
    group: int

    def infer(self, *inputs: TensorType) -> TensorType:
        self.expects(len(inputs) == 3, "codes, weights and factors", *inputs)
        x, w, factors = inputs
        shape = linear_shape(self, x, w)
        self.expects(x.dtype.is_code and w.dtype is DType.INT8, "codes and int8 weights", x, w)
        expected = grouped_shape(w, self.group)
        fits = factors.shape == expected and factors.dtype is DType.INT8
        self.expects(fits, f"int8 factors of shape {expected}", factors)
        return TensorType(shape, DType.INT32)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, w, factors = inputs
        return arith.grouped_sum(x, w, factors, self.group)
