"""Products that no template takes: matrices that broadcast, weights known only at run time, and
coded weights where no template decodes them.

Plain loops over the reduction, one vector of results at a time: right for every shape, slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.ops import (
    GroupedIntLinear,
    IntLinear,
    IntMatmul,
    Linear,
    Matmul,
    WeightOnlyLinear,
)
from qcompiler.types import Dim as GraphDim

from .algebra import TIR, Primitives, Value, dtype_bits, number
from .build import Buffer, Expr, function, local, vector
from .formula import evaluate, supported, uses
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import UNROLL, Axis, broadcast_steps, contiguous, nest, offset, points, read, write

CODED = (WeightOnlyLinear, GroupedIntLinear)
LINEAR = (Linear, IntLinear, *CODED)
KINDS = (Matmul, IntMatmul, *LINEAR)


def lower(site: Site, machine: Machine) -> Answer:
    """product elementwise*, of any operands."""
    anchors = [b for b in site.body if isinstance(b.op, KINDS)]
    rest = [b for b in site.body if b not in anchors]
    if len(anchors) != 1 or not all(isinstance(b.op, Elementwise) for b in rest):
        return None
    (anchor,) = anchors
    problem = supported(site.body)
    if problem:
        return Miss(problem)
    if set(anchor.inputs) & set(rest):
        return Miss("steps before a product are computed in a kernel of their own")
    if not isinstance(anchor.inputs[0].tensor.shape[-1], int):
        return Miss(f"the length of the sums must be known, got {anchor.inputs[0].type!r}")
    region = _Region(site, anchor, machine.primitives)
    return Launch(("products", site.key, machine.primitives), region.function, region.leaves)


@dataclass(frozen=True, eq=False)
class _Region:
    site: Site
    anchor: Node
    primitives: Primitives

    @property
    def steps(self) -> list[Node]:
        return [b for b in self.site.body if b is not self.anchor]

    @property
    def views(self) -> list[tuple[Node, tuple[GraphDim, ...]]]:
        return [(n, s) for n, s in uses(self.steps) if s is not None and n is not self.anchor]

    @property
    def leaves(self) -> list[Node]:
        read_by_steps = [n for n, _ in uses(self.steps) if n is not self.anchor]
        return list(dict.fromkeys([*self.anchor.inputs, *read_by_steps]))

    @property
    def reduced(self) -> tuple[int, tuple[int, int]]:
        """(products in a sum, steps of the two operands from one to the next)."""
        a, b = (dims(i.tensor.shape) for i in self.anchor.inputs[:2])
        size = a[-1]
        assert isinstance(size, int)
        return size, (1, contiguous(b)[-1 if self.linear else -2])

    @property
    def linear(self) -> bool:
        return isinstance(self.anchor.op, LINEAR)

    @property
    def operands(self) -> tuple[Node, Node, Node | None, list[Node]]:
        """a, b, the scales of b where it is codes, and the bias if any."""
        a, b, *rest = self.anchor.inputs
        coded = isinstance(self.anchor.op, CODED)
        return (a, b, rest[0], rest[1:]) if coded else (a, b, None, rest)

    def walks(self) -> list[tuple[int, ...]]:
        """Steps of a, b, the scales of b and the bias along the axes of the result."""
        out = dims(self.anchor.tensor.shape)
        *both, scale, biases = self.operands
        a, b, *bias = (dims(i.tensor.shape) for i in (*both, *biases))
        rows = (*broadcast_steps(a[:-1], out[:-1]), 0)
        # Those steps were counted without the reduced axis.
        rows = tuple(s * int(a[-1]) for s in rows)
        if self.linear:
            columns = (*[0] * (len(out) - 1), contiguous(b)[0])
        else:
            whole = broadcast_steps((*b[:-2], 1, b[-1]), out)
            columns = (*(s * int(b[-2]) for s in whole[:-2]), 0, contiguous(b)[-1])
        first = [rows, columns]
        if scale is not None:
            first.append((*[0] * (len(out) - 1), contiguous(dims(scale.tensor.shape))[0]))
        return [*first, *(broadcast_steps(s, out) for s in bias)]

    def function(self) -> Any:
        out = dims(self.anchor.tensor.shape)
        operands = [operand(f"x{k}", leaf.tensor) for k, leaf in enumerate(self.leaves)]
        result = operand("out", self.site.body[-1].tensor)
        views = [broadcast_steps(dims(s), out) for _, s in self.views]
        walks = [*self.walks(), contiguous(out), *views]
        axes = [Axis(d, tuple(w[k] for w in walks)) for k, d in enumerate(out)]
        if not axes:
            axes = [Axis(1, tuple(0 for _ in walks))]
        nodes = [*self.site.body, *self.leaves]
        widest = max(dtype_bits(n.tensor.dtype.value) for n in nodes)
        loops = nest(axes, self.primitives.lanes(widest) * UNROLL, self.reduced[0],
                     self.primitives.grid)  # fmt: skip
        made: list[Any] = []
        with function("product", made, self.primitives.grid) as params:
            *flat, target = params.flat(*operands, result)
            of = dict(zip(self.leaves, flat, strict=True))
            with points(loops, params.symbols.dim) as (index, at):
                starts = [offset(axes, k, index, at) for k in range(len(walks))]
                inner = loops.inner.steps
                first = len(walks) - len(views)

                def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Value:
                    k = first + self.views.index((leaf, shape))
                    return read(of[leaf], starts[k], inner[k], loops.lanes)

                total = self._sum(of, starts, inner, loops.lanes)
                known = {self.anchor: total}
                n = TIR(self.primitives)
                values = evaluate(self.steps, n, load, of.__getitem__, known)
                write(target, starts[first - 1], 1, values[self.site.body[-1]], loops.lanes)
        return made[0]

    def _sum(self, of: dict[Node, Buffer], starts: Sequence[Expr], inner: Sequence[int],
             lanes: int) -> Value:  # fmt: skip
        n, (size, walk) = TIR(self.primitives), self.reduced
        a, b, scale, bias = self.operands
        op, dtype = self.anchor.op, self.anchor.tensor.dtype.value
        group = op.group if isinstance(op, CODED) else None
        total = local(lanes, dtype)
        write(total, 0, 1, number(0, dtype), lanes)
        with T.serial(0, size) as k:
            x, y = (
                self._centred(n, j, read(of[i], starts[j] + k * walk[j], inner[j], lanes))
                for j, i in enumerate((a, b))
            )
            if scale is not None:
                at = starts[2] + (0 if group is None else k // group)
                y = n.mul(n.cast(y, dtype), n.cast(read(of[scale], at, inner[2], lanes), dtype))
            write(total, 0, 1, n.add(vector(total, 0, lanes), n.mul(x, y)), lanes)
        result = vector(total, 0, lanes)
        for i in bias:
            place = 2 if scale is None else 3
            result = n.add(result, read(of[i], starts[place], inner[place], lanes))
        return result

    def _centred(self, n: TIR, which: int, value: Value) -> Value:
        """The operand as it is multiplied: codes without their zero point."""
        op = self.anchor.op
        if isinstance(op, IntMatmul):
            zero = (op.za, op.zb)[which]
        elif isinstance(op, IntLinear):
            zero = (op.zero_point, 0)[which]
        else:
            return n.cast(value, self.anchor.tensor.dtype.value) if isinstance(op, CODED) else value
        return n.sub(n.cast(value, "int32"), number(zero, "int32"))
