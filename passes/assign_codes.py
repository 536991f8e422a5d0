"""Assign codes: how many codes activations have, and how many products of them 16 bits add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Node, Note
from qcompiler.ops import Conv2d, Linear
from qcompiler.sensitivity import Sensitivity, sensitivities
from qcompiler.target import Sums
from qcompiler.types import DType, Scheme

from .choose_ranges import with_params
from .code_counts import (
    SHARES,
    layers_of,
    passes_on,
    per_row,
    readers_of_rows,
    share_of_codes,
)
from .intervals import intervals
from .picks import least_noise
from .schemes import ROWS
from .share_scales import shared_scales
from .weight_scales import Layer, Operand, choices, products

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Option:
    """What a unit may be: the share of its codes that are used, and each layer's sums."""

    share: float
    sums: tuple[Sums, ...]
    time: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Unit:
    """Tensors of one scale and the layers that read their codes.

    scheme: with all codes that the tensors may have. free: whether there may be fewer. rule: what
    the recipe's loss alone decides.
    """

    members: tuple[Node, ...]
    scheme: Scheme
    layers: tuple[Layer, ...]
    free: bool
    rule: Option = Option(1.0, ())

    def notes(self, option: Option) -> Iterator[tuple[Node, Note]]:
        """What the option means for the tensors and the weights."""
        fewer = codes_of(self.scheme, option.share)
        for node in self.members:
            yield node, replace(node.note, scheme=fewer)
        for layer, sums in zip(self.layers, option.sums, strict=True):
            weight = layer.node.inputs[1]
            scheme = weight.note.scheme
            if scheme is not None and scheme.group is None:
                proven = replace(scheme, products=products(sums))
                yield weight, replace(weight.note, scheme=proven)


def joined(notes: Sequence[tuple[Node, Note]]) -> dict[Node, Note]:
    """Of a weight that several layers read, the note with the most products: their scale proves
    fewer, too."""
    found: dict[Node, Note] = {}
    for node, note in notes:
        old = found[node].scheme if node in found else None
        if old is None or note.scheme is None or (note.scheme.products or 0) > (old.products or 0):
            found[node] = note
    return found


def with_codes(graph: Graph, ctx: Context, solve: bool) -> Graph:
    """The graph, PLANNED, in which tensors that layers alone read have fewer codes, rows scales of
    their own, and weights the number of products that their scale is to prove, where the recipe has
    decibels for it.

    Each layer may lose the recipe's `sums_loss`. With `solve`, layers whose products were measured
    with all sums are then chosen once more, together: what makes least noise at the outputs and
    takes no longer. The noise is estimated from gradients, of the sample that calibration kept.
    """
    if not ctx.recipe.sums_loss or ctx.target is None:
        return graph
    units = units_of(graph, ctx)
    chosen = [unit.rule for unit in units]
    if solve and ctx.sample is not None:
        times = [times_of(unit, ctx) for unit in units]
        if any(times):
            chosen = solved(units, times, sensitivities(graph, [ctx.sample]))
    pairs = zip(units, chosen, strict=True)
    return graph.noted(joined([note for unit, option in pairs for note in unit.notes(option)]))


def codes_of(scheme: Scheme, share: float) -> Scheme:
    """The scheme with that share of its codes, its parameters yet to be chosen."""
    qmax = round(share * scheme.qmax)
    return replace(scheme, qmin=-qmax if scheme.symmetric else scheme.qmin, qmax=qmax, params=None)


def units_of(graph: Graph, ctx: Context) -> list[Unit]:
    """Every set of tensors with one scale that a layer with constant weights reads as codes."""
    spans, users = intervals(graph), graph.users()
    found = []
    for members in shared_scales(graph, spans):
        scheme = members[0].note.scheme
        assert scheme is not None
        full = with_params(scheme, members, spans, ctx.recipe)
        alone = layers_of(members, graph, users)
        readers = alone or _readers(members, users)
        if not readers:
            continue
        unit = Unit(tuple(members), full, _layers(readers, full), bool(alone))
        if per_row(members, full, alone, ctx):
            unit = replace(unit, scheme=ROWS, layers=_layers(readers, ROWS))
            found.append(ruled(unit, lambda fewer: fewer, ctx))
        else:
            ranged = partial(with_params, members=members, spans=spans, recipe=ctx.recipe)
            found.append(ruled(unit, ranged, ctx))
    for node, readers in readers_of_rows(graph).items():
        assert node.note.scheme is not None
        unit = Unit((node,), node.note.scheme, _layers(readers, node.note.scheme), True)
        found.append(ruled(unit, lambda fewer: fewer, ctx))
    return found


def _layers(readers: Sequence[Node], scheme: Scheme) -> tuple[Layer, ...]:
    return tuple(Layer.of(reader, scheme) for reader in readers)


def _readers(members: Sequence[Node], users: Mapping[Node, Sequence[Node]]) -> list[Node]:
    return [
        u for node in members for u in users[node]
        if u.note.precision is DType.INT8 and isinstance(u.op, Conv2d | Linear)
    ]  # fmt: skip


def ruled(unit: Unit, ranged: Callable[[Scheme], Scheme], ctx: Context) -> Unit:
    """The unit with what the recipe's loss alone decides. ranged: a scheme with its parameters."""
    share = share_of_codes(unit.layers, unit.scheme, ctx) if unit.free else 1.0
    fewer = unit.layers
    if share < 1:
        scheme = ranged(codes_of(unit.scheme, share))
        fewer = tuple(Layer.of(layer.node, scheme) for layer in unit.layers)
    pairs = zip(unit.layers, fewer, strict=True)
    return replace(unit, rule=Option(share, tuple(_cheap(*pair, ctx) for pair in pairs)))


def _available(layer: Layer, ctx: Context) -> list[Sums]:
    """The sums for all codes, the fastest first."""
    x = layer.x
    assert x is not None
    fast, exact = choices(x.qmin, x.qmax, [layer], ctx)
    return [*fast, exact]


def _cheap(layer: Layer, fewer: Layer, ctx: Context) -> Sums:
    """The fastest sums of the layer that cost no more than the recipe allows where it reads the
    codes that `fewer` does."""
    *fast, exact = _available(fewer, ctx)
    cheap = (s for s in fast if fewer.loss(fewer.least(s)) <= ctx.recipe.sums_loss)
    wanted = next(cheap, exact)
    return next((s for s in _available(layer, ctx) if products(s) == products(wanted)), wanted)


Times = Mapping[Sums, float]
"""Microseconds of a layer with each of its sums, the fastest first."""


def times_of(unit: Unit, ctx: Context) -> list[Times]:
    """By layer; none where they were not all measured, or there is nothing to choose."""
    found: list[Times] = []
    for layer in unit.layers:
        available = _available(layer, ctx)
        assert ctx.target is not None
        times = ctx.target.microseconds(layer.node, available, unit.scheme.dtype)
        if times is None:
            return []
        found.append(dict(zip(available, times, strict=True)))
    return found if any(len(times) > 1 for times in found) else []


def solved(
    units: Sequence[Unit], times: Sequence[Sequence[Times]], sensitivity: Sensitivity
) -> list[Option]:
    """The options of least noise that take no longer than those of the rule; those themselves where
    there are no times."""
    options = []
    for unit, known in zip(units, times, strict=True):
        prices = Prices.of(unit, known, sensitivity)
        options.append([prices.rule, *prices.options()] if known else [unit.rule])
    costs = [[(o.time, o.noise) for o in row] for row in options]
    picks = least_noise(costs, [0] * len(units))
    return [row[k] for row, k in zip(options, picks, strict=True)]


@dataclass(frozen=True)
class Prices:
    """What the options of a unit cost. values: the noise that all its codes make at the outputs.
    weights: by layer, float64 [O]: the noise that each channel of weights makes there."""

    unit: Unit
    values: float
    weights: tuple[Tensor, ...]
    times: Sequence[Times]

    @staticmethod
    def of(unit: Unit, times: Sequence[Times], sensitivity: Sensitivity) -> Prices:
        inside = set(unit.members)
        values = sum(
            sensitivity.values.get(node, 0.0) * variance(node, unit.scheme)
            for node in unit.members
            if not (passes_on(node) and inside.intersection(node.inputs))
        )
        weights = tuple(weight_noise(layer, sensitivity) for layer in unit.layers)
        return Prices(unit, values, weights, times)

    @property
    def rule(self) -> Option:
        """The rule's option, with its costs."""
        rule = self.unit.rule
        return self._priced(rule.sums, rule.share, self._time(rule.sums))

    def options(self) -> list[Option]:
        """Of each number of products the share of the codes with the least noise."""
        found: dict[float, Option] = {}
        rows = [list(times) for times in self.times]
        for k in range(max(map(len, rows))):
            sums = tuple(row[min(k, len(row) - 1)] for row in rows)
            time = self._time(sums)
            shares = SHARES if self.unit.free else (1.0,)
            best = min((self._priced(sums, s, time) for s in shares), key=lambda o: o.noise)
            if time not in found or best.noise < found[time].noise:
                found[time] = best
        return list(found.values())

    def _time(self, sums: Sequence[Sums]) -> float:
        return sum(times[s] for times, s in zip(self.times, sums, strict=True))

    def _priced(self, sums: tuple[Sums, ...], share: float, time: float) -> Option:
        noise = self.values / share**2
        for layer, at_base, s in zip(self.unit.layers, self.weights, sums, strict=True):
            growth = (layer.least(s) * (share / layer.base)).clamp(min=1).square()
            noise += float((at_base * growth).sum())
        return Option(share, sums, time, noise)


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
