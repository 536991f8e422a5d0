"""What became of each tensor: weights before and after, activation ranges seen and covered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.graph import Graph, Level, Node
from qcompiler.names import layer_name, value_name
from qcompiler.ops import Const, Conv2d, Dequantize, IntConv2d, IntLinear, Linear
from qcompiler.report.quality import sqnr
from qcompiler.report.survey import FAMILIAR, macs
from qcompiler.traits import described
from qcompiler.types import QParams, TensorType

BINS = 81
"""Bins of a histogram: odd, so that one of them is centred on zero; about what a small
plot can show."""

CODES = ".q"
"""What insert_qdq appends to the name of a value for that of its codes."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Counts:
    """Histograms over common `edges` [BINS + 1]: of float values, None where they are not known,
    and of what their codes stand for."""

    edges: Array
    before: Array | None
    after: Array


@dataclass(frozen=True, eq=False)
class Weight:
    """The weights of a layer. counts: before are the folded float32 weights. sqnr_db: after against
    before. used: how many different codes occur."""

    layer: str
    op: str
    macs: int
    count: int
    counts: Counts
    sqnr_db: float | None
    used: int


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor held as codes. seen: smallest and largest value in calibration. covered: what the
    codes can express. clipped: share of the values seen that lie outside of it, None: unknown.
    words: what makes its values hard to hold, see traits. counts: of the values seen; None where
    there were none, or no two different."""

    name: str
    seen: tuple[float, float] | None
    covered: tuple[float, float]
    clipped: float | None
    scale: float
    zero_point: int
    words: str = ""
    counts: Counts | None = None


def weights(graph: Graph, float_graph: Graph | None = None) -> list[Weight]:
    """The weights of integer layers, those with most multiply-adds first; shared ones once.

    float_graph: what `graph` was made from, for the values before.
    """
    known = folded_constants(float_graph) if float_graph is not None else {}
    first = {layer_name(node): node for node in reversed(list(_layers(graph)))}
    found = [_weight(node, known) for node in reversed(first.values())]
    return sorted(found, key=lambda w: -w.macs)


def _layers(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes():
        if isinstance(node.op, IntConv2d | IntLinear) and isinstance(node.inputs[1].op, Const):
            yield node


def folded_constants(graph: Graph) -> dict[str, Array]:
    """Float weights of layers by name, with batch norms and scales folded in as quantize folds."""
    from qcompiler import passes
    from qcompiler.pipeline import Pipeline

    if graph.level is Level.FLOAT:
        graph = Pipeline(passes.NORMALIZE)(graph)
    layers = [n for n in graph.nodes() if type(n.op) in (Conv2d, Linear)]
    return {w.name: w.op.value.numpy() for w in _second(layers) if isinstance(w.op, Const)}


def _second(layers: list[Node]) -> Iterator[Node]:
    return (node.inputs[1] for node in layers)


def _weight(node: Node, known: dict[str, Array]) -> Weight:
    source = node.inputs[1]
    assert isinstance(source.op, Const)
    codes, quant = source.op.value.numpy(), source.tensor.quant
    assert quant is not None
    real = codes.astype(np.float64) * _broadcast(quant, codes.ndim)
    before = known.get(source.name.removesuffix(CODES))
    values = real if before is None or before.shape != real.shape else before
    top = float(np.abs(values).max(initial=0.0)) or 1.0
    return Weight(
        layer=layer_name(node),
        op=FAMILIAR[type(node.op)],
        macs=macs(node),
        count=codes.size,
        counts=Counts(
            edges=np.linspace(-top, top, BINS + 1),
            before=None if values is real else _counts(values, top),
            after=_counts(real.clip(-top, top), top),
        ),
        sqnr_db=None if values is real else sqnr(values, real),
        used=int(np.count_nonzero(np.bincount(codes.view(np.uint8).reshape(-1)))),
    )


def _counts(values: Array, top: float) -> Array:
    counts: Array = np.histogram(values, BINS, (-top, top))[0]
    return counts


def _broadcast(quant: QParams, rank: int) -> Array:
    scale = np.array(quant.scale)
    return scale if quant.axis is None else scale.reshape(-1, *[1] * (rank - quant.axis - 1))


def activations(graph: Graph) -> list[Activation]:
    """Every tensor of 8- or 16-bit codes that is made from values, in the order of the graph."""
    return [
        _activation(node, node.type.quant)
        for node in graph.nodes()
        if isinstance(node.type, TensorType)
        and node.type.dtype.is_code
        and node.type.quant is not None
        and node.type.quant.per_tensor
        and not isinstance(node.op, Const | Dequantize)
        and node.name.endswith(CODES)
    ]


def _activation(node: Node, quant: QParams) -> Activation:
    scale, zero = quant.scale[0], quant.zero_point
    covered = ((quant.qmin - zero) * scale, (quant.qmax - zero) * scale)
    stats = node.note.stats
    seen = (stats.low, stats.high) if stats is not None and stats.count else None
    clipped = _outside(stats, covered, scale / 2) if stats is not None and seen else None
    words = described(stats) if stats is not None else ""
    counts = _values(stats, quant) if stats is not None and seen else None
    return Activation(value_name(node), seen, covered, clipped, scale, zero, words, counts)


def _values(stats: Any, quant: QParams) -> Counts | None:
    """Of the values that were seen, and of their codes: those outside have the outermost."""
    scale, zero = quant.scale[0], quant.zero_point
    codes = np.arange(quant.qmin, quant.qmax + 1) - zero
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    edges = np.linspace(low, high, BINS + 1)
    if not (np.diff(edges) > 0).all():
        return None
    h = stats.histogram()
    between = h.below((codes[:-1] + 0.5) * scale)
    held = np.diff(between, prepend=0, append=h.counts.sum())
    values = (codes * scale).clip(low, high)
    after = np.histogram(values, edges, weights=held)[0]
    return Counts(edges, np.diff(h.below(edges)), after)


def _outside(stats: Any, covered: tuple[float, float], slack: float) -> float:
    """Share of the values more than half a code outside; a cell counts where its middle is."""
    h = stats.histogram()
    middle = (h.lower + h.upper) / 2
    out = (middle < covered[0] - slack) | (middle > covered[1] + slack)
    return float(h.counts[out].sum() / h.counts.sum())
