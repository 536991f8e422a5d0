"""Running sums along an axis, one element after the other."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.ops import Cumsum

from .algebra import TIR, Primitives, dtype_bits, number
from .build import function, local, vector
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import collapsed, contiguous, nest, offset, points, read, write

# What torch accumulates in.
ACCUMULATORS = {"float32": "float64", "float64": "float64", "int32": "int64", "int64": "int64"}


def lower(site: Site, machine: Machine) -> Answer:
    """cumsum: other axes are loops and lanes, the axis itself is walked in order."""
    node = site.body[-1]
    if len(site.body) != 1 or not isinstance(node.op, Cumsum):
        return None
    if node.tensor.dtype.value not in ACCUMULATORS:
        return Miss(f"no running sum is defined for {node.tensor.dtype.value}")
    key = ("cumsum", site.key, machine.primitives)
    return Launch(key, lambda: _function(node, machine.primitives), node.inputs)


def _function(node: Node, primitives: Primitives) -> Any:
    x, result = operand("x", node.inputs[0].tensor), operand("out", node.tensor)
    shape, dtype = dims(node.tensor.shape), ACCUMULATORS[result.dtype]
    assert isinstance(node.op, Cumsum)
    axis = node.op.axis % len(shape)
    along = contiguous(shape)[axis]
    others = tuple(1 if k == axis else d for k, d in enumerate(shape))
    steps = tuple(0 if k == axis else s for k, s in enumerate(contiguous(shape)))
    axes = collapsed(others, [steps])
    lanes = primitives.lanes(dtype_bits(dtype)) if axes[-1].steps[0] == 1 else 1
    work = shape[axis] if isinstance(shape[axis], int) else 1
    loops = nest(axes, lanes, work, primitives.grid)  # type: ignore[arg-type]
    made: list[Any] = []
    with function("cumsum", made, primitives.grid) as params:
        source, target = params.flat(x, result)
        n = TIR(primitives)
        with points(loops, params.symbols.dim) as (index, at):
            total = local(loops.lanes, dtype)
            write(total, 0, 1, number(0, dtype), loops.lanes)
            start = offset(axes, 0, index, at)
            with T.serial(0, params.symbols.dim(shape[axis])) as k:
                here = start + k * along
                value = n.cast(read(source, here, 1, loops.lanes), dtype)
                write(total, 0, 1, n.add(vector(total, 0, loops.lanes), value), loops.lanes)
                done = n.cast(vector(total, 0, loops.lanes), result.dtype)
                write(target, here, 1, done, loops.lanes)
    return made[0]


