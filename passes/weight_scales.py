"""Weight scales: per output channel, the smallest at which every sum provably fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.ops import Const, Conv2d
from qcompiler.target import Target
from qcompiler.types import DType, QParams, Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Operand:
    """The activation codes a layer multiplies its weights with.

    scale: None where it is computed at run time; the bias is then added in float.
    """

    dtype: DType
    qmin: int
    qmax: int
    zero_point: int
    scale: float | None

    @staticmethod
    def of(scheme: Scheme) -> Operand:
        if scheme.params is None:
            return Operand(scheme.dtype, scheme.qmin, scheme.qmax, 0, None)
        p = scheme.params
        return Operand(scheme.dtype, p.qmin, p.qmax, p.zero_point, p.scale[0])


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights, and the codes it reads."""

    node: Node
    x: Operand | None  # None: the activation stays float
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(node: Node, scheme: Scheme | None) -> Layer:
        """node: its weight is Const. scheme: that of its activation."""
        x, (w, *biases) = Operand.of(scheme) if scheme else None, node.inputs[1:]
        assert isinstance(w.op, Const)
        static = x is not None and x.scale is not None
        bias = next((b.op.value for b in biases if static and isinstance(b.op, Const)), None)
        return Layer(node, x, w.op.value, bias)

    def rows(self, values: Tensor, depth: int) -> Tensor:
        """Weights [O, K] in the order a kernel reads them: row, column, then input channels,
        these padded with zeros to a multiple of `depth` (see ops.Packing)."""
        import torch.nn.functional as F

        if isinstance(self.node.op, Conv2d):
            values = values.permute(0, 2, 3, 1)
        return F.pad(values, (0, -values.shape[-1] % depth)).flatten(1)


def weight_params(layers: Sequence[Layer], scheme: Scheme, target: Target | None) -> QParams:
    """Parameters of a weight that `layers` read: per channel the largest scale any of them needs.

    Raises ArithError where no scale will do; the reason is for the user to read.
    """
    import torch

    scales = [_scales(layer, scheme, target) for layer in layers]
    largest = torch.stack(scales).amax(0)
    magnitude = max(float(layer.weight.abs().max()) for layer in layers)
    if 0 < magnitude < scheme.qmax * arith.SCALE_MIN:
        raise arith.ArithError(
            f"its weights reach {magnitude:.3g} at most, too little for a scale of 2^-60 or more"
        )
    for layer in layers:
        _prove(layer, largest, scheme, target)
    return QParams(tuple(largest.tolist()), 0, scheme.qmin, scheme.qmax, scheme.axis)


def _scales(layer: Layer, scheme: Scheme, target: Target | None) -> Tensor:
    x = layer.x
    if x is None:
        return arith.weight_scales(layer.weight, 0, qmax=scheme.qmax)
    rule, depth = _rule(x.dtype, scheme.dtype, target)
    proof = arith.proof_scale(layer.rows(layer.weight, depth), scheme.qmax, x.qmin, x.qmax, rule)
    return arith.weight_scales(
        layer.weight, 0, qmax=scheme.qmax, x_scale=x.scale, bias=layer.bias, proof=proof
    )


def _prove(layer: Layer, scales: Tensor, scheme: Scheme, target: Target | None) -> None:
    """Raises ArithError unless every sum with these scales fits where it is kept."""
    x = layer.x
    if x is None:
        return
    rule, depth = _rule(x.dtype, scheme.dtype, target)
    codes = layer.rows(arith.quantize_weight(layer.weight, scales, 0, scheme.qmax), depth)
    if not bool(arith.fits(codes, x.qmin, x.qmax, rule).all()):
        raise arith.ArithError(f"its weights do not satisfy {rule}")
    bias = None
    if layer.bias is not None and x.scale is not None:
        bias = arith.quantize_bias(layer.bias, x.scale, scales)
    low, high = arith.int32_bounds(codes, bias, x.zero_point, x.qmin, x.qmax)
    if not arith.fits_int32(low, high):
        worst = max(-int(low.min()), int(high.max()))
        raise arith.ArithError(
            f"its sums reach {worst} over {codes.shape[1]} products, beyond int32"
        )


def _rule(a: DType, b: DType, target: Target | None) -> tuple[arith.SumRule | None, int]:
    return (None, 1) if target is None else (target.sum_rule(a, b), target.depth(a, b))
