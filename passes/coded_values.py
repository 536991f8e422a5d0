"""Coded values: where a QDQ graph reads values through codes, and what they were before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.graph import Graph, Node
from qcompiler.ops import Const, Conv2d, Dequantize, DynamicQuantize, Get, Linear, Quantize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Coded:
    """Where values are read through codes in a QDQ graph.

    read: the dequantize. source: what is rounded; of weights the constant. layer: of weights.
    exact: of weights, what they were before. fine: whether integers keep the value with 8 bits
    more, so that only clipping counts.
    """

    read: Node
    source: Node
    layer: Node | None = None
    exact: Tensor | None = None
    fine: bool = False

    @property
    def name(self) -> str:
        return self.source.name if self.layer is None else self.layer.name

    @property
    def quantize(self) -> Quantize | None:
        """None where rows are quantized at run time."""
        op = self.read.inputs[0].op
        return op if isinstance(op, Quantize) else None

    def value(self, x: Tensor, read: Tensor) -> Tensor:
        """What integers make of x, where codes say `read`."""
        return self.clipped(x) if self.fine else read

    def said_by(self, codes: Tensor | None, otherwise: Tensor) -> Tensor:
        """What codes of the INTEGER graph say; where it has others, what rounding says."""
        quant = self.read.inputs[0].tensor.quant
        if self.fine or self.quantize is None or quant is None or not quant.per_tensor:
            return otherwise
        if codes is None or codes.shape != otherwise.shape or codes.is_floating_point():
            return otherwise
        return (codes.float() - quant.zero_point) * quant.scale[0]

    def clipped(self, x: Tensor) -> Tensor:
        """x within what the codes can say."""
        op = self.quantize
        if op is None or self.layer is not None:
            return x
        quant = self.read.inputs[0].tensor.quant
        assert quant is not None
        low, high = ((q - quant.zero_point) * quant.scale[0] for q in (quant.qmin, quant.qmax))
        return x.clamp(low, high)


@dataclass(frozen=True)
class Biased:
    """A layer's bias in a QDQ graph, and what it was before: zeros where there was none."""

    bias: Node
    layer: Node
    exact: Tensor

    @property
    def error(self) -> Tensor:
        """float64: what it is now, less that."""
        assert isinstance(self.bias.op, Const)
        return self.bias.op.value.double() - self.exact


def coded_values(
    exact: Graph, qdq: Graph, fine: Collection[str]
) -> tuple[tuple[Coded, ...], tuple[Biased, ...]]:
    """Of a QDQ graph, and the biases that it changed. exact: what it was made from. fine: the names
    of values that additions take with 8 bits more than codes have."""
    users = qdq.users()
    before = {node.name: node for node in exact.nodes()}
    coded = [c for node in users if (c := _coded(node, users, before, fine)) is not None]
    biased = [b for node in users if (b := _biased(node, before)) is not None]
    return tuple(coded), tuple(biased)


def _coded(
    node: Node, users: Mapping[Node, Sequence[Node]], before: Mapping[str, Node],
    fine: Collection[str],
) -> Coded | None:  # fmt: skip
    match node:
        case Node(Dequantize(), (Node(Quantize(), (Node(Const()) as weight, *_)), *_)):
            exact = before.get(weight.name)
            layer = next((u for u in users[node] if isinstance(u.op, Conv2d | Linear)), None)
            if layer is None or exact is None or not isinstance(exact.op, Const):
                return None
            return Coded(node, weight, layer, exact.op.value)
        case Node(Dequantize(), (Node(Quantize(), (source, *_)), *_)):
            return Coded(node, source, fine=source.name in fine)
        case Node(Dequantize(), (Node(Get(0), (Node(DynamicQuantize(), (source,)),)), *_)):
            return Coded(node, source)
    return None


def _biased(node: Node, before: Mapping[str, Node]) -> Biased | None:
    """The layer's bias, where it differs from what it was."""
    import torch

    if type(node.op) not in (Conv2d, Linear) or len(node.inputs) < 3:
        return None
    bias, old = node.inputs[2], before.get(node.name)
    if not isinstance(bias.op, Const) or old is None:
        return None
    exact = torch.zeros_like(bias.op.value)
    if len(old.inputs) > 2 and isinstance(old.inputs[2].op, Const):
        exact = old.inputs[2].op.value
    return None if exact.equal(bias.op.value) else Biased(bias, node, exact)


def grown(c: Coded) -> Tensor:
    """float64, one a channel of weights: the share of the rounding error's power that is there
    because scales are larger than the weights alone need. Steps of s make errors of s^2 / 12."""
    import torch

    op, exact = c.quantize, c.exact
    assert op is not None and exact is not None
    shape = (-1, *[1] * (exact.ndim - 1))
    if op.axis != 0 or op.group is not None:
        return torch.zeros(len(exact), dtype=torch.float64).reshape(shape)
    scale = c.read.inputs[1].op.eval().double()
    base = arith.weight_scales(exact, 0, qmax=op.qmax).double()
    share: Tensor = (1 - (base / scale).square()).clamp(min=0)
    return share.reshape(shape)
