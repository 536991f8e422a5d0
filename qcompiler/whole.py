"""Whole programs: the names of their times in a kernel database, and how they are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qcompiler.graph import Graph, Node
from qcompiler.ops import Const
from qcompiler.recipe import Activations, Recipe
from qcompiler.timing import in_long_turns
from qcompiler.types import Sym

if TYPE_CHECKING:
    import torch

ROUNDS = 8
DIGITS = 16


TIMELESS = ("rounding", "scaling")
"""Fields of a recipe that change what a program's constants hold, and no time."""


def program_name(graph: Graph, recipe: Recipe) -> str:
    """The name of the program that the recipe makes of a graph: one for all weights, of which no
    time depends but by what is chosen. graph: computes in float, normalized."""
    text = structure(graph)
    plain = recipe.activations is Activations.NONE
    rows = recipe.to_toml().splitlines(keepends=True)
    chosen = "".join(row for row in rows if not row.startswith(TIMELESS))
    digest = hashlib.sha256((text if plain else f"{text}\n{chosen}").encode())
    return f"program {digest.hexdigest()[:DIGITS]} of {'float32' if plain else recipe.name}"


def structure(graph: Graph) -> str:
    """The graph's ops, their attributes, operands and types; of constants the types alone."""
    index: dict[Node, int] = {}
    rows = []
    for k, node in enumerate(graph.nodes()):
        index[node] = k
        op = "const" if isinstance(node.op, Const) else repr(node.op)
        rows.append(f"{op} {[index[i] for i in node.inputs]} {node.type!r}")
    return "\n".join([*rows, str([index[node] for node in graph.results])])


def microseconds(
    programs: Mapping[str, Callable[..., object]], inputs: Sequence[torch.Tensor]
) -> dict[str, float]:
    """The least time of a call of each, in turns: what else the machine does can only add to it."""
    calls = {name: partial(program, *inputs) for name, program in programs.items()}
    return {
        name: round(t.least * 1e3, 2) for name, t in in_long_turns(calls, ROUNDS).items()
    }  # fmt: skip


def made_up(graph: Graph) -> list[torch.Tensor] | None:
    """Values for its inputs where there is no sample: normal ones, and zeros for what are no real
    numbers. None where a shape is not known."""
    import torch

    generator = torch.Generator().manual_seed(0)
    values = []
    for t in (node.tensor for node in graph.inputs):
        sizes = [d for d in t.shape if not isinstance(d, Sym)]
        if len(sizes) < t.rank:
            return None
        real = t.dtype.is_float
        drawn = torch.randn(sizes, generator=generator) if real else torch.zeros(sizes)
        values.append(drawn.to(t.dtype.torch))
    return values
