"""Channel sites: values whose channels may be scaled, for what makes them can divide exactly by
what all that read them multiply with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qcompiler.graph import EMPTY, Graph, Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Const,
    Conv2d,
    Expand,
    LayerNorm,
    LeakyRelu,
    Linear,
    Matmul,
    MaxPool2d,
    Mul,
    Permute,
    Prelu,
    Reshape,
    RmsNorm,
    Slice,
    const,
)  # fmt: skip
from qcompiler.rewrite import Miss
from qcompiler.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor

MADE_BY = (Conv2d, Linear, LayerNorm, RmsNorm)
MOVES = (Reshape, Permute, Slice, Expand, MaxPool2d)
"""What moves or selects elements, each with its channel."""

FACTOR_MAX = 2.0**12
"""Largest factor, and 1 over the least: beyond, a channel as good as dead would decide."""


@dataclass(frozen=True)
class Reader:
    """A layer, and which channel of the site each of its input channels holds: int64 [C]."""

    layer: Node
    channels: Tensor


@dataclass(frozen=True)
class Site:
    """maker: a layer or norm with constant operands, of so many output channels, or a product with
    a constant for each."""

    maker: Node
    channels: int
    readers: tuple[Reader, ...]


def sites(graph: Graph) -> Iterator[Site | tuple[Node, Miss]]:
    """Every site of a graph that computes in float, in its order; of other layers and norms why
    their channels cannot be scaled.

    On the way from maker to readers are only ops under which a factor of a channel stays one:
    movement, `relu`, a product with another value, the sum over the keys of attention.
    """
    users, results = graph.users(), set(graph.results)
    order = list(users)
    place = {node: k for k, node in enumerate(order)}
    until = {node: max((place[u] for u in users[node]), default=0) for node in order}
    for k, node in enumerate(order):
        if _makes(node):
            found = _site(order, k, until, results)
            yield (node, found) if isinstance(found, Miss) else found


def _makes(node: Node) -> bool:
    """Whether constants of the node, one a channel, can divide by factors: a layer's or norm's, or
    those that a norm written out multiplies with."""
    if not all(isinstance(i.op, Const) for i in node.inputs[1:]):
        return False
    if isinstance(node.op, Mul):
        y = node.tensor.shape
        return len(node.inputs) == 2 and len(y) > 1 and node.inputs[1].tensor.shape == y[-1:]
    return isinstance(node.op, MADE_BY)


def _site(
    order: Sequence[Node], start: int, until: Mapping[Node, int], results: set[Node]
) -> Site | Miss:
    """The site of the node at `start`. until: where the last user of a value is."""
    import torch

    maker = order[start]
    if not isinstance(maker.type, TensorType) or not maker.type.static:
        return Miss("its shape is symbolic")
    shape = maker.type.ints
    axis = 1 if isinstance(maker.op, Conv2d) else len(shape) - 1
    count = shape[axis]
    index = torch.arange(count, dtype=torch.float32).reshape(-1, *[1] * (len(shape) - axis - 1))
    labels = {maker: index.expand(shape)}
    readers: list[Reader] = []
    if maker in results:
        return Miss("it is a result")
    place, end = start, until[maker]
    while place < end:
        place += 1
        node = order[place]
        if not any(i in labels for i in node.inputs):
            continue
        found = _reader(node, labels)
        if isinstance(found, Reader):
            readers.append(found)
            continue
        through = found or _passed(node, labels)
        if isinstance(through, Miss):
            return through
        if node in results:
            return Miss(f"%{node.name} is a result")
        labels[node], end = through, max(end, until[node])
    return Site(maker, count, tuple(readers)) if readers else Miss("no layer reads it")


def _reader(user: Node, labels: Mapping[Node, Tensor]) -> Reader | Miss | None:
    if not isinstance(user.op, Conv2d | Linear):
        return None
    if not all(isinstance(i.op, Const) for i in user.inputs[1:]):
        return Miss(f"%{user.name} has a weight that is not constant")
    found = labels[user.inputs[0]]
    axis = 1 if isinstance(user.op, Conv2d) else found.ndim - 1
    rows = found.movedim(axis, 0).reshape(found.shape[axis], -1)
    if not bool((rows == rows[:, :1]).all()):
        return Miss(f"an input channel of %{user.name} mixes channels")
    return Reader(user, rows[:, 0].long())


def _passed(user: Node, labels: Mapping[Node, Tensor]) -> Tensor | Miss:
    """The channel that each element of the user's value belongs to."""
    op, known = user.op, [labels.get(i) for i in user.inputs]
    first = known[0] if known else None
    blocked = Miss(f"%{user.name} = {op.kind} does not keep a factor of a channel")
    if not isinstance(user.type, TensorType) or not user.type.static:
        return Miss(f"the shape of %{user.name} is symbolic")
    scaled = [k for k in known if k is not None]
    match op:
        case Clamp(lo, hi) if {lo, hi} <= {0.0, float("inf"), -float("inf")}:
            return scaled[0]
        case LeakyRelu():
            return scaled[0]
        case Prelu() if first is not None and len(scaled) == 1:
            return first
        case Mul() if len(scaled) == 1:
            return scaled[0].broadcast_to(user.type.ints)
        case Add() if len(scaled) == 2 and scaled[0].equal(scaled[1]):
            return scaled[0]
        case AvgPool2d() if first is not None and first.equal(first[:, :, :1, :1].expand_as(first)):
            height, width = user.type.ints[2:]
            return first[:, :, :1, :1].expand(-1, -1, height, width)
        case MaxPool2d() if first is not None and not op.eval(first).equal(-op.eval(-first)):
            return Miss(f"the windows of %{user.name} mix channels")
        case Matmul() if len(scaled) == 1:
            summed = _summed(user, known[1])
            return blocked if summed is None else summed
    return op.eval(scaled[0]) if isinstance(op, MOVES) else blocked


def _summed(product: Node, labels: Tensor | None) -> Tensor | None:
    """Of `a @ b`, where every column of b holds one channel: it is that column's."""
    if labels is None or not bool((labels == labels[..., :1, :]).all()):
        return None
    assert isinstance(product.type, TensorType)
    found: Tensor = labels[..., :1, :].broadcast_to(product.type.ints)
    return found


@dataclass(frozen=True)
class Weights:
    """The constants of a graph's layers and norms while their channels are scaled, in float64."""

    values: dict[Node, list[Tensor]] = field(default_factory=dict)
    readers: set[Node] = field(default_factory=set)

    def columns_moved(self, layer: Node) -> bool:
        """Whether what the layer reads was scaled before: what was measured of it is no more."""
        return layer in self.readers

    def of(self, node: Node) -> list[Tensor]:
        """Weight and bias as they are by now."""
        if node not in self.values:
            self.values[node] = [i.op.value.double() for i in node.inputs[1:]
                                 if isinstance(i.op, Const)]  # fmt: skip
        return self.values[node]

    def scale(self, site: Site, factors: Tensor) -> None:
        """Divides what makes the site's channels by the factors [C], multiplies what reads them."""
        made = self.of(site.maker)
        self.values[site.maker] = [v / factors.reshape(-1, *[1] * (v.ndim - 1)) for v in made]
        for reader in site.readers:
            weight, *bias = self.of(reader.layer)
            wide = columns(reader.layer, weight, factors[reader.channels])
            self.values[reader.layer] = [weight * wide, *bias]
            self.readers.add(reader.layer)

    def put(self, graph: Graph) -> Graph:
        """The graph with them, without what was known of its values."""
        new: dict[Node, Node] = {}
        for node in graph.nodes():
            inputs = [new[i] for i in node.inputs]
            for k, value in enumerate(self.values.get(node, ()), 1):
                old = node.inputs[k]
                inputs[k] = replace(const(value.float(), name=old.name), note=old.note)
            made = node.with_inputs(inputs)
            new[node] = made if made.note is EMPTY else made.with_note(stats=None)
        return graph.rebuilt(new)


def columns(layer: Node, weight: Tensor, factors: Tensor) -> Tensor:
    """The factors of a layer's input channels [C], shaped as they meet its weight [O, C / groups,
    ...]."""
    if not isinstance(layer.op, Conv2d):
        return factors
    groups = layer.op.groups
    rows = factors.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return rows[:, :, None, None]


def largest_columns(layer: Node, weight: Tensor) -> Tensor:
    """float64 [C]: the largest magnitude that each input channel is multiplied with."""
    top = weight.abs().flatten(2).amax(2) if weight.ndim > 2 else weight.abs()
    groups = layer.op.groups if isinstance(layer.op, Conv2d) else 1
    return top.reshape(groups, -1, top.shape[1]).amax(1).reshape(-1)


def by_channel(site: Site, per_reader: Sequence[Tensor]) -> Tensor:
    """float64 [C]: per channel of the site the largest of what its readers' input channels have."""
    import torch

    found = torch.zeros(site.channels, dtype=torch.float64)
    for reader, values in zip(site.readers, per_reader, strict=True):
        found.scatter_reduce_(0, reader.channels, values.double(), "amax")
    return found


def balanced(above: Tensor, below: Tensor) -> Tensor:
    """`above / below` within FACTOR_MAX, 1 where either is 0 (the channel is dead)."""
    import torch

    usable = (above > 0) & (below > 0)
    ratio = torch.where(usable, above, 1.0) / torch.where(usable, below, 1.0)
    return ratio.clamp(1 / FACTOR_MAX, FACTOR_MAX)
