"""Explain: which quantizer makes the error at the outputs, why, and what helps, tried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.data import pieces
from qcompiler.graph import Graph, Level, Node
from qcompiler.ledger import Entry, Ledger, Remedy, decibels
from qcompiler.names import layer_name
from qcompiler.ops import Conv2d, Linear, const
from qcompiler.pipeline import Observer, Pass, Pipeline
from qcompiler.recipe import RangeMethod
from qcompiler.rewrite import Miss
from qcompiler.stats import Stats
from qcompiler.traits import described
from qcompiler.types import QParams

from .attribution import Attribution, Change
from .coded_values import Coded, grown
from .correct_bias import Weight
from .gptq import compensated
from .layer_moments import layer_moments
from .prices import unrounded
from .propagate import propagate
from .range_methods import Codes, choose_range
from .round_weights import codes_into_better
from .units import available
from .weight_scales import Layer

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 4
"""Pieces of the calibration data that are looked at: outputs have many elements each."""

WORST = 5
"""Entries for which remedies are tried, some passes over a sample each."""

LEAST_GAIN = 0.05
"""Decibels below which a remedy is not told."""

WIDE = 2.0
"""Times the scale that its values need from which on a scale is called too wide."""

SHIFTED = 0.1
"""Share of the codes that lie idle at one end while values are clipped at the other, from which on
a zero point is called off."""


@dataclass
class Stages(Observer):
    """Keeps the graph at PLANNED and, as it is when integers are about to be made of it, QDQ."""

    planned: Graph | None = None
    qdq: Graph | None = None

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        if new.level is Level.PLANNED:
            self.planned = new
        if new.level is Level.QDQ and pass_ is not propagate:
            self.qdq = new


def explained(
    graph: Graph, ctx: Context, pipeline: Pipeline, data: Iterable[Any]
) -> Ledger:  # fmt: skip
    """The ledger of a FLOAT graph that the pipeline quantizes, over some of the data."""
    samples = list(islice(pieces(data, graph), SAMPLES))
    stages = Stages()
    integer = pipeline(graph, ctx, (stages,))
    assert stages.planned is not None and stages.qdq is not None
    return ledger_of(stages.planned, stages.qdq, integer, samples, ctx)


def ledger_of(
    planned: Graph, qdq: Graph, integer: Graph, samples: Sequence[Sequence[Tensor]], ctx: Context
) -> Ledger:  # fmt: skip
    """What each quantizer of the QDQ graph adds to the error of the INTEGER graph at the outputs,
    over the samples. planned: what both were made from, which computes in float."""
    fine = {node.name for node in unrounded(planned)}
    within = Attribution.of(planned, qdq, integer, fine)
    shares = within.shares(samples)
    costs = _costs(planned, ctx)
    entries = {
        c: Entry(
            name=_name(c), kind="activation" if c.exact is None else "weights",
            origin=(c.layer or c.source).note.origin, parts=shares.of(c),
            microseconds=_cost(c, qdq, costs), step=_step(c),
        )
        for c in within.coded
    }  # fmt: skip
    ranked = Ledger(shares.total, len(samples), shares.integers, tuple(entries.values())).ranked()
    worst = [c for entry in ranked[:WORST] for c, e in entries.items() if e is entry]
    now = within.noise(samples)
    for done, c in enumerate(worst, 1):
        entry = entries[c]
        tried = _tries(c, within, samples, ctx)
        gains = [Remedy(what, decibels(n) - decibels(now)) for what, n in tried if n > 0]
        best = sorted((r for r in gains if r.gain_db >= LEAST_GAIN), key=lambda r: -r.gain_db)
        entries[c] = replace(
            entry, alone=within.alone(c, samples), cause=cause(c, entry), remedies=tuple(best)
        )
        ctx.progress("explain", done, len(worst))
    return Ledger(shares.total, len(samples), shares.integers, tuple(entries.values()))


def cause(c: Coded, entry: Entry) -> str:
    """Why the quantizer makes so much of the error, in words."""
    if c.exact is not None:
        return _weights_cause(c, entry)
    stats, quant = c.source.note.stats, c.read.inputs[0].tensor.quant
    traits = described(stats) if stats is not None else ""
    if quant is None or stats is None or not stats.count:
        return traits or "rounding of its rows"
    low, high = ((q - quant.zero_point) * quant.scale[0] for q in (quant.qmin, quant.qmax))
    needed = (max(stats.high, 0.0) - min(stats.low, 0.0)) / (quant.qmax - quant.qmin)
    seen = f"values lie in [{stats.low:.3g}, {stats.high:.3g}]"
    covered = f"its codes cover [{low:.3g}, {high:.3g}]"
    if entry.largest_part == "clipping":
        idle = max(stats.low - low, high - stats.high)
        shifted = idle > SHIFTED * (high - low)
        why = "its zero point is off" if shifted else "the rest is clipped"
        return f"{seen}, {covered}: {why}" + (f"; {traits}" if traits else "")
    if needed > 0 and quant.scale[0] > WIDE * needed:
        return f"its scale is {quant.scale[0] / needed:.3g} times what its values need: {seen}"
    return traits or "rounding"


def _weights_cause(c: Coded, entry: Entry) -> str:
    assert c.exact is not None
    if entry.largest_part != "proof":
        return "rounding of its weights"
    op, scale = c.quantize, c.read.inputs[1].op
    assert op is not None
    base = arith.weight_scales(c.exact, 0, qmax=op.qmax).double()
    middle = float((scale.eval().double() / base).median())
    return f"its scales are {middle:.3g} times what its weights need (proofs, or a large bias)"


def _tries(
    c: Coded, within: Attribution, samples: Sequence[Sequence[Tensor]], ctx: Context
) -> Iterator[tuple[str, float]]:
    """(what to do, noise at the outputs where it is done)."""

    def noise(change: Change) -> float:
        return within.noise(samples, {c: change})

    yield _in_float(c, within.qdq), noise(lambda x: x)
    if c.exact is not None:
        yield from _weight_tries(c, within, samples, ctx, noise)
        return
    stats, quant = c.source.note.stats, c.read.inputs[0].tensor.quant
    if stats is None or not stats.count or quant is None or c.quantize is None:
        return
    ranges: dict[str, float] = {}
    for method in RangeMethod:
        params = _params(stats, method, ctx.recipe.percentile, quant)
        ranges[f"range={method.value!r}"] = noise(lambda x, p=params: _coded(x, p, quant))  # type: ignore[misc]
    yield min(ranges.items(), key=lambda row: row[1])
    apart = _per_channel(c, stats, quant)
    if apart is not None:
        yield "one scale a channel: scaling='smooth', or a wider layer", noise(apart)


def _weight_tries(
    c: Coded, within: Attribution, samples: Sequence[Sequence[Tensor]], ctx: Context,
    noise: Callable[[Change], float],
) -> Iterator[tuple[str, float]]:  # fmt: skip
    if bool(grown(c).any()):
        exact = c.exact
        assert exact is not None and c.quantize is not None
        qmax = c.quantize.qmax
        base = arith.weight_scales(exact, 0, qmax=qmax)
        codes = arith.quantize_weight(exact, base, 0, qmax).double()
        real = (codes * base.double().reshape(-1, *[1] * (exact.ndim - 1))).float()
        yield "scales that prove no 16-bit sums (a target with 32-bit sums)", noise(lambda x: real)
    better = _rounded(c, within, samples, ctx)
    if better is not None:
        real, biases = better
        what = "rounding='gptq' or 'adaround'"
        yield what, within.noise(samples, {c: lambda x: real}, biases)


def _rounded(
    c: Coded, within: Attribution, samples: Sequence[Sequence[Tensor]], ctx: Context
) -> tuple[Tensor, dict[Node, Tensor]] | None:
    """This layer's weights rounded by the data, and its bias then; None where nothing is gained."""
    layer = c.layer
    assert layer is not None
    bias = next((b for b in within.biased if b.layer is layer), None)
    plain = layer
    if bias is not None:
        x, w, b = layer.inputs
        plain = layer.with_inputs([x, w, const(bias.exact, name=b.name)])
    here = replace(ctx, data=list(samples), listen=())
    moments = layer_moments(within.qdq, here, [layer]).get(layer)
    better = codes_into_better(plain, moments, compensated, here)
    if isinstance(better, Miss):
        return None
    weight = Weight.of(better.inputs[1])
    assert weight is not None
    new = better.inputs[2:]
    biases = {b: n.op.eval() for b, n in zip(layer.inputs[2:], new, strict=False)}
    return weight.real, biases


def _in_float(c: Coded, qdq: Graph) -> str:
    names = [layer_name(u) for u in _layers(c, qdq)]
    return f"keep_float={names!r}" if names else "its value in float"


def _layers(c: Coded, qdq: Graph) -> list[Node]:
    """The layers that read it."""
    if c.layer is not None:
        return [c.layer]
    return [u for u in qdq.users()[c.read] if isinstance(u.op, Conv2d | Linear)]


def _params(
    stats: Stats, method: RangeMethod, percentile: float, quant: QParams
) -> tuple[float, int]:
    codes = Codes(quant.qmin, quant.qmax)
    return codes.params(choose_range(stats, method, percentile, codes))


def _coded(x: Tensor, params: tuple[float, int], quant: QParams) -> Tensor:
    scale, zero = params
    codes = (x / scale).round() + zero
    return (codes.clamp(quant.qmin, quant.qmax) - zero) * scale


def _per_channel(c: Coded, stats: Stats, quant: QParams) -> Callable[[Tensor], Tensor] | None:
    """x => x through codes of a scale for each channel; None where they were not measured."""
    import torch

    channels = stats.channels
    rank = c.source.tensor.rank
    axis = 1 if rank == 4 else rank - 1
    if channels is None or c.source.tensor.shape[axis] != len(channels.low):
        return None
    low = torch.from_numpy(channels.low).clamp(max=0.0)
    high = torch.from_numpy(channels.high).clamp(min=0.0)
    shape = [-1, *[1] * (rank - axis - 1)]
    scale = ((high - low) / (quant.qmax - quant.qmin)).clamp(min=arith.SCALE_MIN).reshape(shape)
    zero = quant.qmin - (low.reshape(shape) / scale).round()

    def value(x: Tensor) -> Tensor:
        codes = (x / scale).round() + zero
        return (codes.clamp(quant.qmin, quant.qmax) - zero) * scale

    return value


def _name(c: Coded) -> str:
    return c.source.name if c.layer is None else layer_name(c.layer)


def _step(c: Coded) -> float:
    quant = c.read.inputs[0].tensor.quant
    return max(quant.scale) if quant is not None and c.quantize is not None else 0.0


def _costs(planned: Graph, ctx: Context) -> dict[str, float | None]:
    """By layer, how many microseconds longer it is estimated to take in float."""
    return {
        node.name: _more(node, ctx) for node in planned.nodes()
        if isinstance(node.op, Conv2d | Linear) and node.inputs[1].note.scheme is not None
    }  # fmt: skip


def _more(node: Node, ctx: Context) -> float | None:
    scheme = node.inputs[0].note.scheme
    if ctx.target is None or scheme is None:
        return None
    choices = [*available(Layer.of(node, scheme), ctx), None]
    times = ctx.target.microseconds(node, choices, scheme.dtype)
    return None if times is None else times.us[-1] - min(times.us[:-1])


def _cost(c: Coded, qdq: Graph, costs: dict[str, float | None]) -> float | None:
    found = [costs.get(layer.name) for layer in _layers(c, qdq)]
    known = [us for us in found if us is not None]
    return sum(known) if known and len(known) == len(found) else None
