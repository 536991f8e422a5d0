"""Simulate: what rounding errors of values and weights do to the outputs of a float graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Graph, Node
from qcompiler.interpret import run
from qcompiler.ops import Conv2d, Linear

if TYPE_CHECKING:
    import torch

SEED = 11


@dataclass(frozen=True)
class Errors:
    """variances: of the uniform errors that rounding adds to the values of nodes. weights: what
    constants become."""

    variances: Mapping[Node, float] = field(default_factory=dict)
    weights: Mapping[Node, torch.Tensor] = field(default_factory=dict)


class Simulation:
    """A graph that computes in float, on one sample.

    Unlike gradients it sees errors that saturate, and some that amplify others. Errors of weights
    are without their mean effect on a layer's outputs, which a corrected bias takes back.
    """

    def __init__(self, graph: Graph, sample: Sequence[torch.Tensor]) -> None:
        import torch

        self.graph, self.sample = graph, sample
        self.means: dict[Node, torch.Tensor] = {}
        self.layers = [n for n in graph.nodes() if isinstance(n.op, Conv2d | Linear)]
        read = {layer.inputs[0]: _axis(layer) for layer in self.layers}

        def see(node: Node, value: Any) -> None:
            if node in read:
                axis = read[node] % value.ndim
                rest = [k for k in range(value.ndim) if k != axis]
                self.means[node] = value.double().mean(rest) if rest else value.double()

        with torch.no_grad():
            self.exact = run(graph, sample, see=see)

    def noise(self, errors: Errors) -> float:
        """Noise power at the outputs, as a share of their signal power; the same arguments give the
        same number."""
        import torch

        generator = torch.Generator().manual_seed(SEED)
        given = errors.weights
        shifts = {
            n: self._shift(n, given[n.inputs[1]]) for n in self.layers if n.inputs[1] in given
        }  # fmt: skip

        def disturbed(node: Node, value: Any) -> Any:
            if node in shifts:
                value = value - shifts[node]
            width = math.sqrt(12 * errors.variances.get(node, 0.0))
            if not width:
                return value
            return value + (torch.rand(value.shape, generator=generator) - 0.5) * width

        with torch.no_grad():
            noisy = run(self.graph, self.sample, keep=errors.weights, change=disturbed)
        shares = 0.0
        for node, y, z in zip(self.graph.outputs, self.exact, noisy, strict=False):
            signal = float(y.double().square().sum()) if node.tensor.dtype.is_float else 0.0
            if signal > 0:
                shares += float((y.double() - z.double()).square().sum()) / signal
        return shares

    def _shift(self, layer: Node, weight: torch.Tensor) -> torch.Tensor:
        """float32, one per output channel: the mean that another weight adds to the outputs."""
        original = layer.inputs[1].op.value  # type: ignore[attr-defined]
        change = (weight.double() - original.double()).reshape(*weight.shape[:2], -1).sum(2)
        means = self.means[layer.inputs[0]]
        groups = getattr(layer.op, "groups", 1)
        # Output channels of a group read that part of the input channels.
        parts = means.reshape(groups, -1).repeat_interleave(len(change) // groups, 0)
        shift: torch.Tensor = (change * parts).sum(1).float()
        nchw = isinstance(layer.op, Conv2d) and not layer.op.channels_last
        return shift[:, None, None] if nchw else shift


def _axis(layer: Node) -> int:
    """Of the input channels in what the layer reads."""
    return 1 if isinstance(layer.op, Conv2d) and not layer.op.channels_last else -1
