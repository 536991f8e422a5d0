"""Read codes: a float graph in which what integer ops read of a tensor is a value of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qcompiler.graph import Graph, Node
from qcompiler.ops import Const, Permute
from qcompiler.sensitivity import Sensitivity

from .insert_qdq import integer


@dataclass(frozen=True)
class Reads:
    """A graph that computes the same as another one, and where the nodes of that one are in it.

    values: where the errors of a node's codes arise: float ops read what a float op made as it is,
    next to integer ops that read its codes.
    """

    graph: Graph
    nodes: Mapping[Node, Node]
    values: Mapping[Node, Node]

    @staticmethod
    def of(graph: Graph) -> Reads:
        nodes: dict[Node, Node] = {}
        values: dict[Node, Node] = {}
        for node in graph.nodes():
            read = values if integer(node) else nodes
            nodes[node] = node.with_inputs([read.get(i, nodes[i]) for i in node.inputs])
            values[node] = nodes[node]
            apart = node.note.scheme is not None and not integer(node)
            if apart and not isinstance(node.op, Const):
                values[node] = _copy(nodes[node])
        return Reads(graph.rebuilt(nodes), nodes, values)

    def sensitivity(self, found: Sensitivity) -> Sensitivity:
        """That of the new graph, by nodes of the old one."""
        values, powers = (
            {n: of[v] for n, v in self.values.items() if v in of}
            for of in (found.values, found.powers)
        )
        weights = {n: found.weights[v] for n, v in self.nodes.items() if v in found.weights}
        return Sensitivity(values, weights, powers)


def _copy(node: Node) -> Node:
    same = Permute(tuple(range(node.tensor.rank)))(node, name=f"{node.name}.read")
    return replace(same, note=replace(node.note, scheme=None))
