"""Batched matrix product of two activations: b is packed by the kernel, then the same tiles.

Both operands become what the Dot takes, zero points subtracted: [M, K] rows of a, and panels of b
as packed weights would lie, [panel, step, lane, depth].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .build import (
    Buffer,
    Epilogue,
    Expr,
    Operand,
    View,
    cast,
    copy,
    fill,
    function,
    keep,
    scratch,
    splat,
    store,
    tasks,
    unravel,
    vector,
)
from .dot import Dot
from .geometry import Matmul
from .plan import Plan, Tile, plan_matmul
from .product import Product, Row, panels_of, split_depth

# Words of 32 bits in a vector, and rows of a block that is transposed in registers.
WORDS = 8


def batch_matmul(g: Matmul, dot: Dot, *, a_dtype: str, b_dtype: str, out_dtype: str,
                 za: int = 0, zb: int = 0, epilogue: Epilogue = keep,
                 operands: Sequence[Operand] = (), name: str = "matmul") -> Any:  # fmt: skip
    """PrimFunc (a, b, *operands, out): sum((a - za) * (b - zb)) and its epilogue.

    a `a_dtype` [*lead, M, K]; b `b_dtype` [*lead, K, N], or [*lead, N, K] when transposed; out
    `out_dtype` [*lead, M, N]. dot: MADDWD_WIDE for codes, FMA for float32.
    """
    plan = plan_matmul(g, dot)
    made: list[Any] = []
    with function(name, made) as params:
        ends = Operand("a", g.a_shape, a_dtype), Operand("b", g.b_shape, b_dtype)
        a, b, *rest, out = params.flat(*ends, *operands, Operand("out", g.out_shape, out_dtype))
        views = [View(o, r, g.out_shape) for o, r in zip(operands, rest, strict=True)]
        dims = [params.symbols.dim(d) for d in g.out_shape[:-1]]
        images = params.symbols.product(g.lead)
        kernel = Batch(g, dot, plan, a, b, (za, zb), a_dtype == dot.a_dtype and za == 0)
        kernel.emit(images, dims, out, epilogue, views)
    return made[0]


@dataclass(frozen=True)
class Batch:
    """The products of all pairs of matrices."""

    g: Matmul
    dot: Dot
    plan: Plan
    a: Buffer
    b: Buffer
    zero_points: tuple[int, int]
    direct: bool

    @property
    def steps(self) -> int:
        return -(-self.g.k // self.dot.depth)

    @property
    def panel(self) -> int:
        """Elements of a packed panel."""
        return self.steps * self.plan.lanes * self.dot.depth

    def emit(self, images: Expr, dims: Sequence[Expr], out: Buffer, epilogue: Epilogue,
             views: Sequence[View]) -> None:  # fmt: skip
        g, plan, dot = self.g, self.plan, self.dot
        with tasks(images * plan.blocks, plan.parallel) as task:
            block, image = task % plan.blocks, task // plan.blocks
            first = T.bind(image * g.m + T.min(block * plan.block, g.m - plan.block))
            packed = scratch(plan.panels * self.panel, dot.b_dtype)
            self._pack(packed, image * (g.k * g.n))
            source, base = self.a, first * g.k
            if not self.direct:
                source, base = scratch(plan.block * g.k + dot.depth, dot.a_dtype), 0
                with T.serial(0, plan.block) as r:
                    copy(source, r * g.k, self.a, (first + r) * g.k, g.k, self._centred(0))
            taps, steps, blocked = split_depth(dot, plan, (), self.steps, self.steps)
            product = Product(dot, plan, taps, steps, self.steps, g.n, packed, None, out, g.n,
                              epilogue, views, blocked)  # fmt: skip

            def part(tile: Tile, panel: Expr, channel: Expr, width: int) -> None:
                def rows(count: int, m: Expr) -> list[Row]:
                    return [
                        Row(base + (m + i) * g.k, first + m + i, unravel(first + m + i, dims))
                        for i in range(count)
                    ]

                product.block(tile, source, panel, channel, width, plan.block, rows)

            panels_of(product, part, 0)

    def _centred(self, which: int) -> Any:
        """Elements as the dot takes them, the zero point of operand `which` subtracted."""
        dtype = (self.dot.a_dtype, self.dot.b_dtype)[which]
        zero = self.zero_points[which]

        def change(value: Expr, lanes: int) -> Expr:
            wide = cast(value, dtype, lanes)
            return wide - splat(T.Cast(dtype, zero), lanes) if zero else wide

        return change

    def _pack(self, packed: Buffer, at: Expr) -> None:
        """All panels of the matrix that starts at element `at` of b."""
        plan = self.plan
        if plan.full:
            with T.serial(0, plan.full) as p:
                self._pack_panel(packed, p * self.panel, at, p * plan.lanes, plan.lanes)
        if plan.rest:
            begin = plan.full * self.panel
            self._pack_panel(packed, begin, at, plan.full * plan.lanes, plan.rest)

    def _pack_panel(self, packed: Buffer, to: Expr, at: Expr, channel: Expr, width: int) -> None:
        lanes = math.gcd(self.dot.lanes, WORDS) if self.g.transposed else self.dot.lanes
        if width < self.plan.lanes:
            fill(packed, to, T.Cast(self.dot.b_dtype, 0), self.panel)
        for start in range(0, width, lanes):
            inside = min(width - start, lanes)
            if self.g.transposed:
                self._columns(packed, to + start * self.dot.depth, at, channel + start, inside)
            else:
                self._lines(packed, to + start * self.dot.depth, at, channel + start, inside)

    def _lines(self, packed: Buffer, to: Expr, at: Expr, channel: Expr, inside: int) -> None:
        """`inside` channels of b [K, N]: `depth` rows are interleaved into each step."""
        g, depth = self.g, self.dot.depth
        whole, left = divmod(g.k, depth)
        size = self.plan.lanes * depth
        with T.serial(0, whole) as s:
            self._interleave(packed, to + s * size, at + s * depth * g.n + channel, inside, depth)
        if left:
            here = at + whole * depth * g.n + channel
            self._interleave(packed, to + whole * size, here, inside, left)

    def _interleave(self, packed: Buffer, to: Expr, at: Expr, inside: int, rows: int) -> None:
        g, depth, change = self.g, self.dot.depth, self._centred(1)
        if inside == self.dot.lanes:
            lines = [change(vector(self.b, at + j * g.n, inside), inside) for j in range(rows)]
            zero = T.broadcast(T.Cast(self.dot.b_dtype, 0), inside)
            lines += [zero] * (depth - rows)
            order = [j * inside + c for c in range(inside) for j in range(depth)]
            mixed = T.Shuffle(lines, order) if depth > 1 else lines[0]
            store(packed, to, mixed, inside * depth)
            return
        for j in range(depth):
            with T.serial(0, inside) as c:
                value = change(self.b[at + j * g.n + c], 1) if j < rows else self._zero()
                store(packed, to + c * depth + j, value, 1)

    def _zero(self) -> Expr:
        return T.Cast(self.dot.b_dtype, 0)

    def _columns(self, packed: Buffer, to: Expr, at: Expr, channel: Expr, inside: int) -> None:
        """`inside` channels of b [N, K]: blocks of 8 x 8 words are transposed in registers."""
        g, depth, change = self.g, self.dot.depth, self._centred(1)
        step = self.plan.lanes * depth
        whole = g.k // (WORDS * depth) if inside == WORDS else 0
        if whole:
            with T.serial(0, whole) as s:
                here = at + channel * g.k + s * (WORDS * depth)
                lines = [
                    change(vector(self.b, here + c * g.k, WORDS * depth), WORDS * depth)
                    for c in range(inside)
                ]
                for i, line in enumerate(_transposed(lines)):
                    store(packed, to + (s * WORDS + i) * step, line, WORDS * depth)
        done = whole * WORDS
        with T.serial(0, inside) as c:
            begin = at + (channel + c) * g.k
            for s in range(done, self.steps) if self.steps - done <= WORDS else ():
                self._word(packed, to + s * step + c * depth, begin + s * depth, g.k - s * depth)
            if self.steps - done > WORDS:
                with T.serial(0, g.k // depth) as s:
                    self._word(packed, to + s * step + c * depth, begin + s * depth, depth)
                if g.k % depth:
                    s = g.k // depth
                    self._word(packed, to + s * step + c * depth, begin + s * depth, g.k % depth)

    def _word(self, packed: Buffer, to: Expr, at: Expr, left: int) -> None:
        """The elements of one lane and step, `left` of which exist."""
        for j in range(self.dot.depth):
            value = self._centred(1)(self.b[at + j], 1) if j < left else self._zero()
            store(packed, to + j, value, 1)


def _transposed(lines: Sequence[Expr]) -> list[Expr]:
    """8 vectors of 8 words of 32 bits, transposed; in place of 64 lane moves, 24 shuffles."""
    dtype = lines[0].ty.dtype
    rows = [T.bind(T.reinterpret(v, dtype="int32x8")) for v in lines]
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    rows = [T.bind(T.Shuffle([rows[i], rows[i + 1]], p)) for i in (0, 2, 4, 6) for p in (low, high)]
    low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    rows = [T.bind(T.Shuffle([rows[i], rows[i + 2]], p)) for i in (0, 1, 4, 5) for p in (low, high)]
    low, high = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    halves = [[T.Shuffle([rows[i], rows[i + 4]], p) for i in range(4)] for p in (low, high)]
    return [T.reinterpret(v, dtype=str(dtype)) for half in halves for v in half]
