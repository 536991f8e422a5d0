"""Random inputs that a graph accepts: ids stay within the tables they index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qcompiler.graph import Graph, Node
from qcompiler.ops import Gather, GatherElements, Region
from qcompiler.types import Dim, DType, Sym, TensorType

if TYPE_CHECKING:
    import torch

SYMBOLIC = 2
"""The size that symbolic dimensions get, where their bounds allow it: not 1, which broadcasts."""


def random_inputs(graph: Graph, seed: int = 0) -> list[torch.Tensor]:
    """One tensor per graph input. Floats are standard normal; integers that index a table lie in
    its range, all others are 0 or 1, as masks are."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    symbols = _symbols(graph)
    limits = index_limits(graph)
    values: list[torch.Tensor] = []
    for node in graph.inputs:
        t = node.tensor
        shape = [_size(d, symbols) for d in t.shape]
        if t.dtype.is_float:
            values.append(torch.randn(shape, generator=generator).to(t.dtype.torch))
        else:
            high = 2 if t.dtype is DType.BOOL else limits.get(node, 2)
            made = torch.randint(0, high, shape, generator=generator)
            values.append(made.to(t.dtype.torch))
    return values


def _symbols(graph: Graph) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.inputs:
        for dim in node.tensor.shape:
            if isinstance(dim, Sym):
                high = SYMBOLIC if dim.max is None else min(SYMBOLIC, dim.max)
                low = dim.min if dim.expr.is_Symbol else 1
                for name in map(str, dim.expr.free_symbols):
                    found[name] = max(high, low, found.get(name, 1))
    return found


def _size(dim: Dim, symbols: dict[str, int]) -> int:
    return dim.at(symbols) if isinstance(dim, Sym) else dim


def index_limits(graph: Graph) -> dict[Node, int]:
    """Per input that reaches the indices of a gather, the size of the smallest such table."""
    limits: dict[Node, int] = {}
    for index, size in _gathers(graph):
        stack, seen = [index], {index}
        while stack:
            node = stack.pop()
            if node in graph.inputs:
                limits[node] = min(limits.get(node, size), size)
            fresh = [i for i in node.inputs if i not in seen and _is_integer(i)]
            seen.update(fresh)
            stack.extend(fresh)
    return limits


def _gathers(graph: Graph) -> Iterator[tuple[Node, int]]:
    """(indices, size of the axis they index) of every gather, also within regions."""
    for node in graph.nodes():
        body = node.op.body(node.inputs) if isinstance(node.op, Region) else [node]
        for step in body:
            if isinstance(step.op, Gather | GatherElements):
                table, index = step.inputs
                size = table.tensor.shape[step.op.axis]
                yield index, size if isinstance(size, int) else size.min


def _is_integer(node: Node) -> bool:
    is_tensor = isinstance(node.type, TensorType)
    return is_tensor and not node.tensor.dtype.is_float and node.tensor.dtype is not DType.BOOL
