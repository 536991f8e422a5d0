"""Sensitivity: how much of a small error in a value or a weight arrives at the outputs.

To first order errors d of a value become `J d` at the outputs. For independent errors of one
variance its expected power is that variance times the sum of squares of J, which is estimated
without J: for random signs v the squared gradient of `v . outputs` has that sum as its mean
(Hutchinson 1990; of the Hessian, for the same purpose, Dong et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Graph, Node
from qcompiler.interpret import run
from qcompiler.ops import Const, Conv2d, Linear
from qcompiler.types import TensorType

if TYPE_CHECKING:
    import torch

PROBES = 4
"""Random sign vectors: what one misses, the many elements of a tensor average out."""
SEED = 7


@dataclass(frozen=True)
class Sensitivity:
    """Noise power at the outputs, as a share of their signal power, for errors of variance 1.

    values: by node, float64 [C]: of independent errors in every element of a channel of its value.
    weights: by layer, float64 [O]: in every weight of an output channel, less what their mean
    effect is, which a corrected bias takes back. powers: by node, float64 [C]: the mean square of
    each channel. Channels are those of axis 1 of rank 4, else of the last one.
    """

    values: Mapping[Node, torch.Tensor]
    weights: Mapping[Node, torch.Tensor]
    powers: Mapping[Node, torch.Tensor]

    def noise(self, node: Node, variance: float) -> float:
        """What rounding to steps makes whose errors have that variance: a channel far below the
        step rounds to 0, and loses its own power."""
        gain = self.values.get(node)
        if gain is None:
            return 0.0
        return float((gain * self.powers[node].clamp(max=variance)).sum())


NONE = Sensitivity({}, {}, {})
"""Where errors do not matter."""


@dataclass
class _Sums:
    """Squared gradients while they are added up."""

    values: dict[Node, torch.Tensor] = field(default_factory=dict)
    weights: dict[Node, torch.Tensor] = field(default_factory=dict)
    powers: dict[Node, torch.Tensor] = field(default_factory=dict)
    outputs: dict[Node, torch.Tensor] = field(default_factory=dict)  # summed gradients, one probe

    def see(self, node: Node, value: Any) -> None:
        """Listens to the gradient of a value."""
        if getattr(value, "requires_grad", False) and not isinstance(node.op, Const):
            power = _by_channel(value.detach().double().square())
            self.powers[node] = power * (len(power) / max(value.numel(), 1))
            value.register_hook(partial(self._add, node))

    def _add(self, node: Node, gradient: torch.Tensor) -> None:
        power = _by_channel(gradient.double().square())
        self.values[node] = self.values[node] + power if node in self.values else power
        if isinstance(node.op, Conv2d | Linear):
            axis = 1 if isinstance(node.op, Conv2d) and not node.op.channels_last else -1
            self.outputs[node] = _by_channel(gradient.double(), axis)


def _by_channel(x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """The sums over all other axes."""
    if not x.ndim:
        return x.reshape(1)
    kept = (1 if x.ndim == 4 else -1) if axis is None else axis
    rest = [k for k in range(x.ndim) if k != kept % x.ndim]
    return x.sum(rest) if rest else x


def sensitivities(graph: Graph, sample: Sequence[torch.Tensor]) -> Sensitivity:
    """Those for a sample, values of the graph's inputs. graph: computes in float.

    The same graph, sample and build of torch give the same numbers.
    """
    import torch

    layers = _layers(graph)
    weights = dict.fromkeys(n.inputs[1] for n in layers)
    leaves = {w: w.op.value.detach().clone().requires_grad_() for w in weights
              if isinstance(w.op, Const)}  # fmt: skip
    sums = _Sums()
    generator = torch.Generator().manual_seed(SEED)
    inputs = [_leaf(x) for x in sample]
    with torch.enable_grad():
        results = run(graph, inputs, see=sums.see, keep=leaves)
    outputs = [y for y in results[: len(graph.outputs)] if _tracked(y)]
    for probe in range(PROBES if outputs else 0):
        signs = [_signs(y, generator) for y in outputs]
        torch.autograd.backward(outputs, signs, retain_graph=probe + 1 < PROBES)
        for node in layers:
            _add_weight(node, leaves[node.inputs[1]], sums)
        for leaf in leaves.values():
            leaf.grad = None
        sums.outputs.clear()
    values = {n: v / PROBES for n, v in sums.values.items()}
    weighed = {n: w / PROBES for n, w in sums.weights.items()}
    return Sensitivity(values, weighed, sums.powers)


def _layers(graph: Graph) -> list[Node]:
    return [
        n for n in graph.nodes()
        if isinstance(n.op, Conv2d | Linear) and isinstance(n.inputs[1].op, Const)
    ]  # fmt: skip


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def _tracked(y: Any) -> bool:
    return bool(getattr(y, "requires_grad", False))


def _signs(y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random signs of a size at which noise at this output counts as a share of its signal."""
    import torch

    power = float(y.detach().double().square().sum())
    signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
    return signs.to(y.dtype) / (math.sqrt(power) if power > 0 else 1.0)


def _add_weight(node: Node, leaf: torch.Tensor, sums: _Sums) -> None:
    """Adds the squared gradients of each output channel, those of centred inputs."""
    gradient, total = leaf.grad, sums.outputs.get(node)
    if gradient is None or total is None:
        return
    g = gradient.double()
    means = _means(node)
    if means is not None:
        g = g - total.reshape(-1, *[1] * (g.ndim - 1)) * means
    power = g.square().flatten(1).sum(1)
    sums.weights[node] = sums.weights[node] + power if node in sums.weights else power


def _means(node: Node) -> torch.Tensor | None:
    """The means of the input channels, as they meet each weight; None where they are not known."""
    import torch

    stats = node.inputs[0].note.stats
    conv = isinstance(node.op, Conv2d)
    rank = node.inputs[0].type.rank if isinstance(node.inputs[0].type, TensorType) else 0
    if stats is None or stats.channels is None or (rank == 4) != conv:
        return None
    means = torch.from_numpy(stats.channels.means).nan_to_num(0.0)
    out, inner = node.inputs[1].tensor.ints[:2]
    if not isinstance(node.op, Conv2d):
        return means if len(means) == inner else None
    groups = node.op.groups
    if len(means) != groups * inner:
        return None
    return means.reshape(groups, inner).repeat_interleave(out // groups, 0)[:, :, None, None]
