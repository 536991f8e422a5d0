"""Shared scales: which tensors of codes get one scale, by union-find before any is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from networkx.utils import UnionFind

from qcompiler.graph import Graph, Node
from qcompiler.op import Compute, Fixed, Same
from qcompiler.ops import Clamp, Concat

from .intervals import Range, hull, width

SHARE_RATIO = 4.0
"""How much wider than its narrowest member a class may be: two bits of that member's codes."""


@dataclass(frozen=True)
class Family:
    """What decides whether two classes may become one."""

    narrowest: float  # width of the narrowest member that is not constant zero
    widest: float
    fixed: frozenset[Range]

    def joined(self, other: Family) -> Family | None:
        """The union, or None: two ranges that are fixed, or widths too far apart."""
        narrowest, widest = min(self.narrowest, other.narrowest), max(self.widest, other.widest)
        fixed = self.fixed | other.fixed
        apart = widest > SHARE_RATIO * narrowest
        return None if apart or len(fixed) > 1 else Family(narrowest, widest, fixed)


def shared_scales(graph: Graph, spans: Mapping[Node, Range]) -> list[list[Node]]:
    """The tensors with a static per-tensor scheme, in classes of one scale each.

    An op that moves codes shares its operand's scale. What only a concat or a clamp reads takes
    the reader's: its codes end on that grid anyway. A class that would hold two fixed ranges, or
    ranges wider than SHARE_RATIO apart, is not formed; a requantize joins the parts.
    """
    members = [node for node in graph.nodes() if is_static(node)]
    union = UnionFind(members)
    families = {node: _family(node, spans[node]) for node in members}
    for source, user in _edges(graph):
        a, b = union[source], union[user]
        joined = families[a].joined(families[b])
        if a is not b and joined is not None:
            union.union(a, b)
            families[union[a]] = joined
    classes: dict[Node, list[Node]] = {}
    for node in members:
        classes.setdefault(union[node], []).append(node)
    return list(classes.values())


def is_static(node: Node) -> bool:
    """Whether one scale, known at compile time, is wanted for the node's value."""
    scheme = node.note.scheme
    return scheme is not None and scheme.axis is None and not scheme.dynamic


def deciders(members: list[Node], spans: Mapping[Node, Range]) -> list[Node]:
    """The members whose values decide the range: they hold some that no operand in the class has.

    What is merely moved does not count twice; what was not measured decides only if nothing was.
    """
    measured = [node for node in members if is_measured(node)] or members[:1]
    inside = set(measured)
    chosen = []
    for node in measured:
        sources = [spans[i] for i in node.inputs if i in inside]
        low, high = hull(*sources, (0.0, 0.0))
        if not sources or spans[node][0] < low or spans[node][1] > high:
            chosen.append(node)
    return chosen


def is_measured(node: Node) -> bool:
    return node.note.stats is not None and node.note.stats.seen > 0


def only_clamped(node: Node, users: Mapping[Node, list[Node]], results: Collection[Node]) -> bool:
    """Whether the node's value is computed, and a clamp is all that reads it: the clamp's range is
    all that matters of its own."""
    readers = users[node]
    alone = len(readers) == 1 and node not in results
    return alone and isinstance(node.op.quant, Compute) and isinstance(readers[0].op, Clamp)


def _family(node: Node, span: Range) -> Family:
    rule = node.op.quant
    if not is_measured(node) and not isinstance(rule, Fixed):
        return Family(math.inf, 0.0, frozenset())
    fixed = frozenset([(rule.lo, rule.hi)]) if isinstance(rule, Fixed) else frozenset[Range]()
    size = width(hull(span, *fixed))
    return Family(size if size > 0 else math.inf, size, fixed)


def _edges(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Pairs (operand, user) of nodes with equal static schemes that want one scale."""
    users = graph.users()
    results = set(graph.results)
    for node in users:
        sources: Sequence[Node] = ()
        if isinstance(node.op, Concat):
            sources = [i for i in node.inputs if users[i] == [node] and i not in results]
        elif isinstance(node.op, Clamp):
            sources = [i for i in node.inputs if only_clamped(i, users, results)]
        elif isinstance(node.op.quant, Same):
            sources = node.inputs[:1]
        yield from ((source, node) for source in sources if _alike(source, node))


def _alike(a: Node, b: Node) -> bool:
    if a.note.scheme is None or b.note.scheme is None or not (is_static(a) and is_static(b)):
        return False
    return replace(a.note.scheme, params=None) == replace(b.note.scheme, params=None)
