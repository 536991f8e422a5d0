"""Units: tensors of one scale, the layers that read their codes, and what these may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from qcompiler.context import Context
from qcompiler.graph import Graph, Node, Note
from qcompiler.ops import Conv2d, Linear
from qcompiler.recipe import Activations
from qcompiler.target import Sums
from qcompiler.types import DType, Scheme

from .choose_ranges import with_params
from .code_counts import layers_of, per_row, readers_of_rows, share_of_codes
from .intervals import intervals
from .schemes import ROWS
from .share_scales import shared_scales
from .weight_scales import Layer, choices, products


@dataclass(frozen=True)
class Option:
    """What a unit may be: the share of its codes that are used, and how each layer adds products,
    None where it computes in float32."""

    share: float
    sums: tuple[Sums | None, ...]

    @property
    def floats(self) -> bool:
        """Whether its layers compute in float32: all of them do, or none."""
        return None in self.sums


@dataclass(frozen=True)
class Unit:
    """Tensors of one scale and the layers, if any, that read their codes.

    scheme: with all codes that the tensors may have. free: whether there may be fewer. safe: all
    codes, and sums that cost least of the layers' accuracy. rule: what the recipe's loss alone
    decides.
    """

    members: tuple[Node, ...]
    scheme: Scheme
    layers: tuple[Layer, ...]
    free: bool
    safe: Option
    rule: Option

    @property
    def in_float(self) -> Option:
        return Option(1.0, (None,) * len(self.layers))

    def notes(self, option: Option) -> Iterator[tuple[Node, Note]]:
        """What codes of that option mean for the tensors and the weights."""
        fewer = codes_of(self.scheme, option.share)
        for node in self.members:
            yield node, replace(node.note, scheme=fewer)
        for layer, sums in zip(self.layers, option.sums, strict=True):
            weight = layer.node.inputs[1]
            scheme = weight.note.scheme
            if sums is not None and scheme is not None and scheme.group is None:
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


def codes_of(scheme: Scheme, share: float) -> Scheme:
    """The scheme with that share of its codes, its parameters yet to be chosen."""
    qmax = round(share * scheme.qmax)
    return replace(scheme, qmin=-qmax if scheme.symmetric else scheme.qmin, qmax=qmax, params=None)


def units_of(graph: Graph, ctx: Context) -> list[Unit]:
    """Every set of tensors of codes with one scale; where scales decide nothing, only those that a
    layer with constant weights reads."""
    if ctx.recipe.activations not in (Activations.STATIC, Activations.DYNAMIC):
        return []
    spans, users = intervals(graph), graph.users()
    found = []
    for members in shared_scales(graph, spans):
        scheme = members[0].note.scheme
        assert scheme is not None
        alone = layers_of(members, graph, users)
        readers = alone or _readers(members, users)
        if not ctx.recipe.sums_loss:
            if readers:
                found.append(_unit(members, scheme, readers, False, lambda fewer: fewer, ctx))
            continue
        ranged = partial(with_params, members=members, spans=spans, recipe=ctx.recipe)
        full = ranged(scheme)
        if per_row(members, full, alone, ctx):
            found.append(_unit(members, ROWS, readers, True, lambda fewer: fewer, ctx))
        else:
            found.append(_unit(members, full, readers, bool(alone), ranged, ctx))
    for node, readers in readers_of_rows(graph).items():
        assert node.note.scheme is not None
        found.append(_unit([node], node.note.scheme, readers, True, lambda fewer: fewer, ctx))
    return found


def _readers(members: Sequence[Node], users: Mapping[Node, Sequence[Node]]) -> list[Node]:
    return [
        u for node in members for u in users[node]
        if u.note.precision is DType.INT8 and isinstance(u.op, Conv2d | Linear)
    ]  # fmt: skip


def _unit(
    members: Sequence[Node], scheme: Scheme, readers: Sequence[Node], free: bool,
    ranged: Callable[[Scheme], Scheme], ctx: Context,
) -> Unit:  # fmt: skip
    """ranged: a scheme with its parameters."""
    layers = tuple(Layer.of(reader, scheme) for reader in readers)
    safe = Option(1.0, tuple(_safe(layer, ctx) for layer in layers))
    if not ctx.recipe.sums_loss:
        return Unit(tuple(members), scheme, layers, free, safe, safe)
    share = share_of_codes(layers, scheme, ctx) if free else 1.0
    fewer = layers
    if share < 1:
        less = ranged(codes_of(scheme, share))
        fewer = tuple(Layer.of(layer.node, less) for layer in layers)
    pairs = zip(layers, fewer, strict=True)
    rule = Option(share, tuple(_cheap(*pair, ctx) for pair in pairs))
    return Unit(tuple(members), scheme, layers, free, safe, rule)


def _safe(layer: Layer, ctx: Context) -> Sums:
    """What the layer's sums are proven for where nothing else is said: the fewest products of the
    instructions that are faster than the exact one."""
    *fast, exact = available(layer, ctx)
    return min(fast, key=products, default=exact)


def available(layer: Layer, ctx: Context) -> list[Sums]:
    """The sums for the codes that the layer reads, the fastest first."""
    x = layer.x
    assert x is not None
    fast, exact = choices(x.qmin, x.qmax, [layer], ctx)
    return [*fast, exact]


def _cheap(layer: Layer, fewer: Layer, ctx: Context) -> Sums:
    """The fastest sums of the layer that cost no more than the recipe allows where it reads the
    codes that `fewer` does."""
    *fast, exact = available(fewer, ctx)
    cheap = (s for s in fast if fewer.loss(fewer.least(s)) <= ctx.recipe.sums_loss)
    wanted = next(cheap, exact)
    return next((s for s in available(layer, ctx) if products(s) == products(wanted)), wanted)
