"""Prices: what the options of a unit cost, in time on the target and in noise at the outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.ops import Add, Conv2d, Linear, Matmul
from qcompiler.sensitivity import Sensitivity
from qcompiler.target import Sums
from qcompiler.types import DType, Scheme

from .code_counts import SHARES, passes_on
from .units import Option, Unit, available
from .weight_scales import Layer, Operand

if TYPE_CHECKING:
    from torch import Tensor

DOUBT = 0.8
"""Of estimates, which are off by up to 30 %: float32 is taken to be that much slower than it is
estimated to be."""


@dataclass(frozen=True)
class Offer:
    """An option of a unit, in microseconds of its layers on one core, and its noise power at the
    outputs, as a share of their signal power."""

    option: Option
    time: float
    noise: float


Spent = Mapping[Sums | None, float]
"""Microseconds of a layer with each of its sums, the fastest first, and in float32 (None)."""


@dataclass(frozen=True)
class Prices:
    """What decides the costs of a unit's options. values: the noise that all its codes make at the
    outputs. weights: by layer, float64 [O]: the noise that each channel of weights makes there.
    times: by layer; none where nothing is known of one. measured: all of them were. on_the_way: the
    noise of codes of other units that there are only where its layers read codes."""

    unit: Unit
    values: float
    weights: tuple[Tensor, ...]
    times: tuple[Spent, ...]
    measured: bool
    on_the_way: float = 0.0

    @staticmethod
    def of(
        unit: Unit, sensitivity: Sensitivity, unrounded: Collection[Node], ctx: Context
    ) -> Prices:  # fmt: skip
        rounded = (n for n in made(unit) if n not in unrounded)
        values = sum(sensitivity.noise(node, variance(node, unit.scheme)) for node in rounded)
        weights = tuple(weight_noise(layer, sensitivity) for layer in unit.layers)
        times, measured = times_of(unit, ctx)
        return Prices(unit, values, weights, times, measured)

    def offer(self, option: Option) -> Offer:
        noise = 0.0 if option.floats else self.values / option.share**2 + self.on_the_way
        for layer, at_base, s in zip(self.unit.layers, self.weights, option.sums, strict=True):
            if s is not None and bool(at_base.any()):
                growth = (layer.least(s) * (option.share / layer.base)).clamp(min=1).square()
                noise += float((at_base * growth).sum())
        pairs = zip(self.times, option.sums, strict=True) if self.times else ()
        return Offer(option, sum(times[s] for times, s in pairs), noise)

    def plain(self) -> list[Offer]:
        """What the recipe's rule decides, and float32."""
        return [self.offer(self.unit.rule), *self.in_float()]

    def in_float(self) -> list[Offer]:
        """Float32, where its time is known."""
        if not self.times:
            return []
        offer = self.offer(self.unit.in_float)
        return [offer if self.measured else replace(offer, time=offer.time / DOUBT)]

    def all(self) -> list[Offer]:
        """The same, all codes with the safest sums, and of each number of products the share of
        the codes with the least noise."""
        offers = [*self.plain(), self.offer(self.unit.safe)]
        rows = [[s for s in times if s is not None] for times in self.times]
        for k in range(max(map(len, rows), default=0)):
            sums = tuple(row[min(k, len(row) - 1)] for row in rows)
            shares = SHARES if self.unit.free else (1.0,)
            offers.append(min((self.offer(Option(s, sums)) for s in shares), key=lambda o: o.noise))
        return offers


def prices_of(
    graph: Graph, units: Sequence[Unit], sensitivity: Sensitivity, ctx: Context
) -> list[Prices]:
    """Those of each unit. Codes that no layer reads are there because of the layers that what is
    computed from them goes to: their noise is these layers', in equal parts."""
    finer, users = unrounded(graph), graph.users()
    prices = [Prices.of(unit, sensitivity, finer, ctx) for unit in units]
    owner = {layer.node: k for k, unit in enumerate(units) for layer in unit.layers}
    for k, unit in enumerate(units):
        reached = [] if unit.layers else _reached(unit.members, owner, users)
        for near in reached:
            more = prices[near].on_the_way + prices[k].values / len(reached)
            prices[near] = replace(prices[near], on_the_way=more)
        if reached:
            prices[k] = replace(prices[k], values=0.0)
    return prices


def _reached(
    nodes: Sequence[Node], owner: Mapping[Node, int], users: Mapping[Node, Sequence[Node]]
) -> list[int]:
    """The units of the layers that the nodes' values go to in integers; none where they also go to
    integers that are no choice."""
    found: set[int] = set()
    seen, stack = set(nodes), list(nodes)
    while stack:
        node = stack.pop()
        for user in users[node]:
            if user in owner:
                found.add(owner[user])
            elif isinstance(user.op, Conv2d | Linear | Matmul):
                if user.note.precision is DType.INT8:
                    return []
            elif user.note.precision is DType.INT8 and user not in seen:
                seen.add(user)
                stack.append(user)
    return sorted(found)


def times_of(unit: Unit, ctx: Context) -> tuple[tuple[Spent, ...], bool]:
    """(by layer, none where nothing is known of one; whether all were measured)."""
    found: list[Spent] = []
    measured = True
    for layer in unit.layers:
        choices = [*available(layer, ctx), None]
        assert ctx.target is not None
        times = ctx.target.microseconds(layer.node, choices, unit.scheme.dtype)
        if times is None:
            return (), False
        found.append(dict(zip(choices, times.us, strict=True)))
        measured = measured and times.measured
    return tuple(found), measured


def variance(node: Node, scheme: Scheme) -> float:
    """Of the error that rounding the tensor to all codes of the scheme makes."""
    if scheme.params is not None:
        return scheme.params.scale[0] ** 2 / 12
    stats = node.note.stats
    power = stats.variance + stats.mean**2 if stats is not None and stats.count else 0.0
    return Operand.of(node, scheme).noise * power


def weight_noise(layer: Layer, sensitivity: Sensitivity) -> Tensor:
    """float64 [O]: noise at the outputs that rounding each channel of weights makes, at the scales
    that no proof constrains."""
    import torch

    gain = sensitivity.weights.get(layer.node)
    if gain is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64)
    power = layer.weight.double().square().sum() / layer.weight[0].numel()
    return gain * layer.rounding * power


def unrounded(graph: Graph) -> set[Node]:
    """The layers whose sums an addition takes as they are, nearly: with 8 bits more than codes have
    (see integerize). Of two it is the second."""
    users, results, found = graph.users(), set(graph.results), set()
    for node in users:
        if not (isinstance(node.op, Add) and node.note.precision is DType.INT8):
            continue
        for operand in reversed(node.inputs):
            layer = isinstance(operand.op, Conv2d | Linear | Matmul)
            alone = len(users[operand]) == 1 and operand not in results
            if layer and alone and operand.note.precision is DType.INT8:
                found.add(operand)
                break
    return found


def made(unit: Unit) -> Iterator[Node]:
    """The tensors that are not made of the codes of another one of the unit."""
    inside = set(unit.members)
    for node in unit.members:
        if not (passes_on(node) and inside.intersection(node.inputs)):
            yield node
