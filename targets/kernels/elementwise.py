"""Elementwise regions: any chain or DAG of formulas in one pass over the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.types import Dim as GraphDim

from .algebra import TIR, Primitives, Value, dtype_bits
from .build import function
from .formula import Use, evaluate, supported, uses
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import UNROLL, broadcast_steps, collapsed, nest, offset, points, read, write

# Formulas of more steps than this are done one vector at a time: more would not fit the registers.
LIGHT_STEPS = 4


def vector_lanes(nodes: Sequence[Node], primitives: Primitives, steps: int) -> int:
    """How many elements are handled together: full registers of the widest type."""
    widest = max((dtype_bits(n.tensor.dtype.value) for n in nodes), default=8)
    # Codes become int32 or float32 on their way through a formula.
    widest = max(widest, 32) if steps else widest
    return primitives.lanes(widest) * (UNROLL if steps <= LIGHT_STEPS else 1)


def lower(site: Site, machine: Machine) -> Answer:
    """Any graph of elementwise ops; operands broadcast as in numpy."""
    if not all(isinstance(b.op, Elementwise) for b in site.body):
        return None
    found = uses(site.body)
    leaves = list(dict.fromkeys(leaf for leaf, _ in found))
    problem = supported([*site.body, *leaves])
    if problem:
        return Miss(problem)
    key = ("elementwise", site.key, machine.primitives)
    return Launch(key, lambda: _function(site.body, found, leaves, machine.primitives), leaves)


def _function(body: Sequence[Node], found: Sequence[Use], leaves: Sequence[Node],
              primitives: Primitives):  # fmt: skip
    out = body[-1].tensor
    views = [(leaf, shape) for leaf, shape in found if shape is not None]
    result = operand("out", out)
    operands = [operand(f"x{k}", leaf.tensor) for k, leaf in enumerate(leaves)]
    steps = [broadcast_steps(dims(shape), result.shape) for _, shape in views]
    axes = collapsed(result.shape, [*steps, broadcast_steps(result.shape, result.shape)])
    lanes = vector_lanes([*body, *(leaf for leaf, _ in views)], primitives, len(body))
    loops = nest(axes, lanes, len(body), primitives.grid)
    made: list[Any] = []
    with function("elementwise", made, primitives.grid) as params:
        *buffers, target = params.flat(*operands, result)
        of = dict(zip(leaves, buffers, strict=True))
        with points(loops, params.symbols.dim) as (index, at):

            def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Value:
                k = views.index((leaf, shape))
                start = offset(axes, k, index, at)
                return read(of[leaf], start, loops.inner.steps[k], loops.lanes)

            values = evaluate(body, TIR(primitives), load, of.__getitem__)
            write(target, offset(axes, len(views), index, at), 1, values[body[-1]], loops.lanes)
    return made[0]
