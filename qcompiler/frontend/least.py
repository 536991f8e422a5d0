"""Whether a traced graph still is the module at the smallest sizes its symbols allow.

torch.export traces with the example's sizes and takes 1 for a special case: code that asks for it
(`if x.shape[0] > 1`, squeeze) is traced as it goes for larger ones. So the module has the word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.observers import apart, unequal
from qcompiler.types import Sym

SPECIAL = 1
"""The size that torch.export takes for a special case (it has no symbols for 0)."""


def specialised(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: Graph
) -> bool:
    """Whether the graph differs from the module when every symbol that may be 1 is 1."""
    symbols = {
        str(d.expr): d.min
        for node in graph.inputs
        for d in node.tensor.shape
        if isinstance(d, Sym) and d.expr.is_Symbol
    }
    if SPECIAL not in symbols.values():
        return False
    leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
    inputs = iter(graph.inputs)
    try:
        small = [
            _cut(leaf, next(inputs).tensor.shape, symbols)
            if isinstance(leaf, torch.Tensor)
            else leaf
            for leaf in leaves
        ]
        # A module that updates its buffers is left as it was.
        called = copy.deepcopy(module) if graph.state else module
        positional, named = pytree.tree_unflatten(small, tree)
        with torch.no_grad():
            wanted = pytree.tree_leaves(called(*positional, **named))
            found = interpret(graph, *(x for x in small if isinstance(x, torch.Tensor)))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, StopIteration):
        return True
    results = found if isinstance(found, tuple) else (found,)
    tensors = [w for w in wanted if isinstance(w, torch.Tensor)]
    return len(tensors) != len(results) or any(map(_differ, results, tensors))


def _cut(x: torch.Tensor, shape: tuple[Any, ...], symbols: Mapping[str, int]) -> torch.Tensor:
    sizes = [d.at(dict(symbols)) if isinstance(d, Sym) else d for d in shape]
    return x[tuple(slice(0, s) for s in sizes)].contiguous()


def _differ(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return True
    compare = apart if ours.is_floating_point() else unequal
    return compare(theirs, ours) is not None
