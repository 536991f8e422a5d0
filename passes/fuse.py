"""Fuse: an anchor and its epilogue, an elementwise chain, or a row reduction become one region."""

from __future__ import annotations

from dataclasses import dataclass, field

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.op import Elementwise, RowOp
from qcompiler.ops import (
    AvgPool2d,
    Conv2d,
    GroupedIntLinear,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntSumPool2d,
    Linear,
    Matmul,
    MaxPool2d,
    Reduce,
    Region,
    Step,
    WeightOnlyLinear,
)  # fmt: skip
from qcompiler.pipeline import Pass, declare
from qcompiler.types import Dim, TensorType

ANCHORS = (
    Conv2d, IntConv2d, Linear, IntLinear, WeightOnlyLinear, GroupedIntLinear, Matmul, IntMatmul,
    MaxPool2d, AvgPool2d, IntSumPool2d,
)  # fmt: skip


@dataclass
class _Group:
    """Nodes that become one region, in order; the last one is its value."""

    nodes: list[Node] = field(default_factory=list)
    anchor: Node | None = None

    @property
    def value(self) -> Node:
        return self.nodes[-1]


def shape(node: Node) -> tuple[Dim, ...]:
    return node.type.shape if isinstance(node.type, TensorType) else ()


def starts(node: Node) -> bool:
    """Whether the node can begin a region."""
    return isinstance(node.op, (*ANCHORS, Elementwise, RowOp))


def may_join(node: Node, group: _Group, sole: bool) -> bool:
    """Whether an elementwise node or row op may be computed where its operand is."""
    if not sole or group.value not in node.inputs or shape(group.value) == ():
        return False
    if isinstance(node.op, RowOp):
        first = group.value is node.inputs[0] and group.anchor is None
        return first and node.inputs.count(group.value) == 1
    if not isinstance(node.op, Elementwise) or isinstance(_op(group), Reduce):
        return False
    return shape(node) == shape(group.value)


def _op(group: _Group) -> object:
    return group.anchor.op if group.anchor else None


def grouped(graph: Graph) -> dict[Node, _Group]:
    """The group of every node that is computed in a region."""
    users = graph.users()
    results = set(graph.results)
    of: dict[Node, _Group] = {}
    for node in users:
        if not starts(node):
            continue
        sole = [
            of[i] for i in dict.fromkeys(node.inputs)
            if i in of and set(users[i]) == {node} and i not in results
        ]  # fmt: skip
        joined = [g for g in sole if may_join(node, g, True)]
        group = _merged(node, joined)
        group.nodes.append(node)
        if isinstance(node.op, (*ANCHORS, RowOp)):
            group.anchor = node
        for member in group.nodes:
            of[member] = group
    return of


def _merged(node: Node, groups: list[_Group]) -> _Group:
    """One group from those a node may join; at most one of them has an anchor."""
    if isinstance(node.op, ANCHORS) or not groups:
        return _Group()
    anchored = [g for g in groups if g.anchor is not None]
    keep = anchored[-1:] + [g for g in groups if g.anchor is None]
    merged = _Group([], anchored[-1].anchor if anchored else None)
    for group in keep:
        merged.nodes += [n for n in group.nodes if n not in merged.nodes]
    return merged


def region(group: _Group, new: dict[Node, Node]) -> Node:
    """The group as one node over the rebuilt operands."""
    inside = set(group.nodes)
    outer = dict.fromkeys(i for n in group.nodes for i in n.inputs if i not in inside)
    index = {node: k for k, node in enumerate([*outer, *group.nodes])}
    steps = tuple(Step(n.op, tuple(index[i] for i in n.inputs)) for n in group.nodes)
    last = group.value
    return Region(steps)(*(new[i] for i in outer), name=last.name, note=last.note)


def without_stats(node: Node) -> Node:
    """A program needs no statistics; what was decided and why stays."""
    return node if node.note.stats is None else node.with_note(stats=None)


@declare("fuse", Level.INTEGER, Level.FUSED, exact=True)
@dataclass(frozen=True)
class Fuse(Pass):
    """anchor, elementwise... => region(anchor, elementwise...), where nothing else reads within."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        groups = grouped(graph)
        new: dict[Node, Node] = {}
        for node in graph.nodes():
            group = groups.get(node)
            if group is None or len(group.nodes) == 1:
                new[node] = without_stats(node.with_inputs([new[i] for i in node.inputs]))
            elif node is group.value:
                new[node] = without_stats(region(group, new))
        target = ctx.target.name if ctx.target else graph.target
        return graph.rebuilt(new, target=target)


fuse = Fuse()
