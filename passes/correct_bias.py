"""Correct biases: the mean error that rounded weights make is known, and goes into the bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import Const, Conv2d, Dequantize, DynamicQuantize, Get, Linear, Quantize, const
from qcompiler.pipeline import Pass, declare
from qcompiler.rewrite import Miss
from qcompiler.types import DType, QParams

if TYPE_CHECKING:
    from torch import Tensor


def mean_error_into_bias(node: Node) -> Node | Miss | None:
    """layer(dq(q(x)), dq(q(W)), b) => layer(dq(q(x)), dq(q(W)), b - (dq(q(W)) - W) mean(x)).

    Condition: W and b are Const, the means of x were measured, int32 sums stay proven. The mean of
    each output channel is then that of the float layer, up to borders (Nagel et al. 2019).
    """
    if type(node.op) not in (Conv2d, Linear) or node.note.precision is not DType.INT8:
        return None
    x, w, *biases = node.inputs
    weight = Weight.of(w)
    read = x.inputs[0].tensor.quant if isinstance(x.op, Dequantize) else None
    if weight is None or not all(isinstance(b.op, Const) for b in biases):
        return Miss("its weight or bias is not constant")
    if not bool(weight.error.any()):
        return Miss("its weights are codes already")
    means = _means(node, x)
    if means is None:
        return Miss(f"no means of %{x.name} were measured")
    old = [b.op.value.double() for b in biases if isinstance(b.op, Const)]
    new = (old[0] if old else 0.0) - _response(node, weight.error, means)
    if not proven(weight, read, new):
        return Miss("with the corrected bias int32 sums are not proven")
    bias = const(new.float(), name=f"{biases[0].name if biases else node.name}.corrected")
    return replace(node, inputs=(x, w, bias))


@dataclass(frozen=True)
class Weight:
    """A constant weight in codes: the codes, their scales, what they stand for (float32), and that
    less the float value (float64). spread: float64, the scale of each weight."""

    codes: Tensor
    scales: tuple[float, ...]
    real: Tensor
    error: Tensor
    spread: Tensor

    @staticmethod
    def of(node: Node) -> Weight | None:
        match node:
            case Node(Dequantize() as dequantize, (Node(Quantize() as quantize) as coded, *_)):
                values = [i.op.value for i in coded.inputs if isinstance(i.op, Const)]
                params = coded.tensor.quant
                if params is not None and len(values) == len(coded.inputs):
                    codes = quantize.eval(*values)
                    real = dequantize.eval(codes, *values[1:])
                    error = real.double() - values[0].double()
                    ones = dequantize.eval(codes.new_ones(codes.shape), values[1], values[2] * 0)
                    return Weight(codes, params.scale, real, error, ones.double())
        return None


def _means(node: Node, x: Node) -> Tensor | None:
    """float64 [C]: the mean of each input channel, 0 where nothing finite was seen."""
    import torch

    source = _source(x)
    stats = source.note.stats if source is not None else None
    # Statistics of rank 4 are along axis 1, which is not what a linear layer contracts.
    if stats is None or stats.channels is None or (x.tensor.rank == 4) != _is_conv(node):
        return None
    means = torch.from_numpy(stats.channels.means).nan_to_num(0.0)
    channels = x.tensor.shape[1 if _is_conv(node) else -1]
    return means if len(means) == channels else None


def _source(x: Node) -> Node | None:
    """The float value that is read through static codes, through rows quantized at run time, or as
    it is."""
    match x:
        case Node(Dequantize(), (Node(Quantize(), (source, *_)), *_)):
            return source
        case Node(Dequantize(), (Node(Get(), (Node(DynamicQuantize(), (source,)),)), *_)):
            return source
        case Node(Dequantize()):
            return None
    return x


def _is_conv(node: Node) -> bool:
    return isinstance(node.op, Conv2d)


def _response(node: Node, weight: Tensor, means: Tensor) -> Tensor:
    """float64 [O]: what the layer, with this weight and no bias, makes of constant channels."""
    if not isinstance(node.op, Conv2d):
        return weight @ means
    groups = node.op.groups
    taps = weight.sum((2, 3)).reshape(groups, -1, weight.shape[1])
    return (taps @ means.reshape(groups, -1, 1)).reshape(-1)


def proven(weight: Weight, x: QParams | None, bias: Tensor) -> bool:
    """Whether int32 sums still fit; over rows quantized at run time the bias stays float."""
    import torch

    if x is None:
        return True
    scales = torch.tensor(weight.scales, dtype=torch.float64)
    try:
        codes = arith.quantize_bias(bias.float(), x.scale[0], scales)
    except arith.ArithError:
        return False
    rows = weight.codes.flatten(1)
    return arith.fits_int32(*arith.int32_bounds(rows, codes, x.zero_point, x.qmin, x.qmax))


@declare("correct-bias", Level.QDQ)
@dataclass(frozen=True)
class CorrectBias(Pass):
    """Apply the rule above once to each layer; a second time would correct twice."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        def change(node: Node) -> Node:
            result = mean_error_into_bias(node)
            if isinstance(result, Miss):
                ctx.emit("missed", mean_error_into_bias, node, result.reason)
            elif result is not None:
                ctx.emit("applied", mean_error_into_bias, node, result)
            return result if isinstance(result, Node) else node

        return graph.map(change)


correct_bias = CorrectBias()
