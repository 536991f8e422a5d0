"""Round weights: other codes than the nearest where what a layer computes gains by it.

Scales stay as they are, so proofs that rest on them do too: codes that a 16-bit sum can no longer
take move toward zero, and a channel keeps the nearest codes where nothing better was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.moments import Moments
from qcompiler.ops import Const, Conv2d, Dequantize, DynamicQuantize, Get, Linear, Quantize, const
from qcompiler.rewrite import Miss
from qcompiler.target import Sums
from qcompiler.types import DType, QParams

from .correct_bias import Weight, proven
from .layer_moments import blocks, layer_moments
from .weight_scales import Layer

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Of the mean diagonal of the second moments, added to it (Frantar et al. 2022): directions that
the data did not show are not free."""


STILL = 1e-9
"""Share of the mean square below which a variance is the rounding of float64 sums."""


@dataclass(frozen=True)
class Rounding:
    """Weights to be rounded, in G groups of N output channels of K weights each.

    real: float64 [G, N, K], the weights in units of their scales. nearest: their codes by the law.
    scales: float64 [G, N, K].
    moments: float64 [G, K, K], symmetric and positive definite: errors e of a channel, not in units
    of scales, make the output error `e M e`. qmax: the largest code.
    """

    real: Tensor
    nearest: Tensor
    scales: Tensor
    moments: Tensor
    qmax: int

    def errors(self, codes: Tensor) -> Tensor:
        """float64 [G, N]: the mean squared error at the output of each channel."""
        e = (codes - self.real) * self.scales
        return (e @ self.moments * e).sum(-1)


Method = Callable[[Rounding], "Tensor"]
"""Codes float64 [G, N, K] for a rounding."""


def rounded(graph: Graph, ctx: Context, method: Method, what: str) -> Graph:
    """The QDQ graph with weights whose nearest codes are those that the method finds, and biases
    that take back what they do to the mean, where a layer has one or its sums are integers.

    Layers after one that was rounded see what it computes then, a block of them at a time.
    """
    first = coded_layers(graph)
    total, done = len(first), 0
    for block in blocks(first):
        layers = coded_layers(graph)[block.start : block.stop]
        moments = layer_moments(graph, ctx, layers)
        new: dict[Node, Node] = {}
        for node in layers:
            result = codes_into_better(node, moments.get(node), method, ctx)
            done += 1
            ctx.progress(what, done, total)
            if isinstance(result, Miss):
                ctx.emit("missed", codes_into_better, node, result.reason)
            else:
                ctx.emit("applied", codes_into_better, node, result)
                new[node] = result
        graph = with_layers(graph, new)
    return graph


def coded_layers(graph: Graph) -> list[Node]:
    """The layers whose weights are constants read through codes, that nothing else reads."""
    users = graph.users()
    return [
        node for node in users
        if type(node.op) in (Conv2d, Linear) and _coded(node.inputs[1])
        and len(users[node.inputs[1]]) == len(users[node.inputs[1].inputs[0]]) == 1
    ]  # fmt: skip


def _coded(weight: Node) -> bool:
    """Whether it is a constant read through codes."""
    match weight:
        case Node(Dequantize(), (Node(Quantize(), codes), *rest)):
            return all(isinstance(i.op, Const) for i in (*codes, *rest))
    return False


def with_layers(graph: Graph, new: Mapping[Node, Node]) -> Graph:
    """The graph with these layers' weights and biases."""
    made: dict[Node, Node] = {}
    for node in graph.nodes():
        made[node] = node.with_inputs([made.get(i, i) for i in new.get(node, node).inputs])
    return graph.rebuilt(made)


def codes_into_better(
    node: Node, moments: Moments | None, method: Method, ctx: Context
) -> Node | Miss:
    """layer(x, dq(q(W)), b) => layer(x, dq(q(W')), b - (dq(q(W')) - W) mean(x)).

    Condition: W and b are Const, data reached the layer, a channel's output error is less.
    """
    if moments is None or not moments.count:
        return Miss("no data reached it")
    x, coded, *biases = node.inputs
    if not all(isinstance(b.op, Const) for b in biases):
        return Miss("its bias is not constant")
    weight = Weight.of(coded)
    if weight is None:
        return Miss("its weight has no parameters")
    centred = bool(biases) or node.note.precision is DType.INT8
    problem = rounding_of(node, weight, moments, centred)
    codes = _fitting(node, problem, method(problem), weight, ctx)
    better = problem.errors(codes) < problem.errors(problem.nearest)
    if not bool(better.any()):
        return Miss("the nearest codes are the best found")
    chosen = codes.where(better.unsqueeze(-1), problem.nearest)
    real = (chosen * problem.scales).float().reshape(weight.codes.shape)
    value = coded.inputs[0].inputs[0]
    new = coded.with_inputs([coded.inputs[0].with_inputs(
        [replace(const(real), name=value.name, note=value.note), *coded.inputs[0].inputs[1:]]
    ), *coded.inputs[1:]])  # fmt: skip
    if not centred:
        return node.with_inputs([x, new])
    return _corrected(node, new, moments)


def _corrected(node: Node, coded: Node, moments: Moments) -> Node | Miss:
    """The layer with that weight, and with the bias that keeps the mean of its outputs."""
    x, old, *biases = node.inputs
    before, after = Weight.of(old), Weight.of(coded)
    assert before is not None and after is not None
    groups = moments.sums.shape[0]
    error = before.error + (after.real - before.real)
    rows = error.flatten(1).reshape(groups, -1, moments.sums.shape[1])
    shift = (rows @ moments.mean.unsqueeze(2)).reshape(-1)
    bias = -shift
    for b in biases:
        assert isinstance(b.op, Const)
        bias = bias + b.op.value.double()
    read = x.inputs[0].tensor.quant if isinstance(x.op, Dequantize) else None
    if not proven(after, read, bias):
        return Miss("with the corrected bias int32 sums are not proven")
    name = f"{biases[0].name if biases else node.name}.corrected"
    return node.with_inputs([x, coded, const(bias.float(), name=name)])


def rounding_of(node: Node, weight: Weight, moments: Moments, centred: bool) -> Rounding:
    """What there is to decide for a layer. centred: its bias takes back what errors do to the
    mean."""
    import torch

    groups, size = moments.sums.shape
    moment = moments.covariance if centred else moments.second
    level, whole = (m.diagonal(dim1=1, dim2=2).mean(1) for m in (moment, moments.second))
    # A group that was always the same says nothing: every weight is on its own.
    still = level <= STILL * whole
    damping = torch.where(still, 1.0, DAMPING * level)[:, None, None]
    kept = torch.where(still[:, None, None], 0.0, shrunk(moment, moments.count))
    damped = kept + damping * torch.eye(size, dtype=torch.float64)
    quantize = node.inputs[1].inputs[0].op
    assert isinstance(quantize, Quantize)
    scales = weight.spread.reshape(groups, -1, size)
    real = (weight.real.double() - weight.error).reshape(groups, -1, size) / scales
    nearest = weight.codes.double().reshape(real.shape)
    return Rounding(real, nearest, scales, damped, quantize.qmax)


def shrunk(moments: Tensor, count: int) -> Tensor:
    """Second moments [G, K, K] of so many rows, with correlations made smaller by as much as those
    of rows without any are by chance (oracle approximating shrinkage, Chen et al. 2010)."""
    import torch

    size = moments.shape[1]
    if size == 1:
        return moments
    diagonal = moments.diagonal(dim1=1, dim2=2)
    least = (STILL * diagonal.mean(1, keepdim=True)).clamp(min=torch.finfo(torch.float32).tiny)
    deviations = diagonal.maximum(least).sqrt()
    correlations = moments / (deviations.unsqueeze(2) * deviations.unsqueeze(1))
    squares = correlations.square().sum((1, 2))
    chance = (1 - 2 / size) * squares + size**2
    share = chance / ((count + 1 - 2 / size) * (squares - size).clamp(min=1e-9))
    kept = (1 - share.clamp(max=1))[:, None, None]
    return torch.diag_embed(diagonal) * (1 - kept) + moments * kept


def _fitting(
    node: Node, problem: Rounding, codes: Tensor, weight: Weight, ctx: Context
) -> Tensor:  # fmt: skip
    """The codes with some moved toward zero until every sum fits that the nearest codes fit."""
    low, high = _code_range(node)
    if ctx.target is None or (low, high) == (0, 0):
        return codes
    layer = Layer(node, None, weight.real, None)
    shape = weight.codes.shape
    found = codes.reshape(shape).to(weight.codes.dtype)
    for sums in ctx.target.sums(low, high):
        if _fits(layer, weight.codes, sums):
            found = _moved(layer, found, problem.real.reshape(shape), sums)
    return found.double().reshape(codes.shape)


def _fits(layer: Layer, codes: Tensor, sums: Sums) -> bool:
    rows = layer.rows(codes, sums.rule)
    return bool(arith.fits(rows, sums.low, sums.high, sums.rule).all())


def _moved(layer: Layer, codes: Tensor, real: Tensor, sums: Sums) -> Tensor:
    """The same in the order in which weights are kept; `layer.rows` says where each goes."""
    import torch

    if _fits(layer, codes, sums):
        return codes
    size = codes[0].numel()
    place = torch.arange(1, size + 1).reshape(1, *codes.shape[1:])
    order = layer.rows(place, sums.rule)[0]  # 0: a padding zero
    there = order > 0
    rows = arith.toward_zero(
        layer.rows(codes, sums.rule), layer.rows(real, sums.rule), sums.low, sums.high, sums.rule
    )
    flat = torch.empty(codes.shape[0], size, dtype=codes.dtype)
    flat[:, order[there] - 1] = rows[:, there]
    return flat.reshape(codes.shape)


def _code_range(node: Node) -> tuple[int, int]:
    """(least, largest) code of the layer's activation; (0, 0) where it is float."""
    match node.inputs[0]:
        case Node(Dequantize(), (Node(Get(), (Node(DynamicQuantize(qmax)),)), *_)):
            return -qmax, qmax
        case Node(Dequantize(), (codes, *_)):
            quant: QParams | None = codes.tensor.quant
            return (quant.qmin, quant.qmax) if quant is not None else (0, 0)
    return 0, 0


def group_order(moments: Tensor) -> Tensor:
    """int64 [G, K]: what varies most first; equal ones in order."""
    return moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """[G, N, K] with the last axis in that order [G, K]."""
    return x.gather(2, order.unsqueeze(1).expand(-1, x.shape[1], -1))
