"""Intervals: where every value lies, from what ops promise and what calibration saw."""

from __future__ import annotations

import math

from qcompiler.graph import Graph, Node
from qcompiler.ops import Const
from qcompiler.types import TensorType

Range = tuple[float, float]

UNKNOWN: Range = (-math.inf, math.inf)


def intervals(graph: Graph) -> dict[Node, Range]:
    """An interval for every node: `op.bounds` of its operands' intervals, within the extremes
    that calibration saw (values left out of statistics are left out here, too)."""
    found: dict[Node, Range] = {}
    for node in graph.nodes():
        promised = _promised(node, [found[i] for i in node.inputs])
        stats = node.note.stats
        measured = (stats.low, stats.high) if stats is not None and stats.count else UNKNOWN
        found[node] = within(measured, promised)
    return found


def within(span: Range, limits: Range) -> Range:
    """The part of `span` inside `limits`, at least the nearest limit."""
    low, high = (min(max(end, limits[0]), limits[1]) for end in span)
    return low, high


def hull(*spans: Range) -> Range:
    """The smallest interval that holds all."""
    return min(low for low, _ in spans), max(high for _, high in spans)


def width(span: Range) -> float:
    """Of the interval, widened to hold 0: what a scale is proportional to."""
    return max(span[1], 0.0) - min(span[0], 0.0)


def _promised(node: Node, operands: list[Range]) -> Range:
    if isinstance(node.op, Const):
        return _of_const(node.op)
    if not isinstance(node.type, TensorType) or not node.type.dtype.is_float:
        return UNKNOWN
    bounds = node.op.bounds(*operands)
    # inf - inf: nothing is known
    return UNKNOWN if bounds is None or any(map(math.isnan, bounds)) else bounds


def _of_const(op: Const) -> Range:
    floats = op.value.is_floating_point() and op.value.numel()
    return op.finite_range or UNKNOWN if floats else UNKNOWN
