"""Batched matrix product of two activations on a GPU: the tiles of tiled.py, b gathered by column.

Codes of 8 bits are multiplied as int8: those of 0..255 moved by -128, as their zero points are. The
sums of rows and columns that zero points need come from the same instruction, times ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .build import Buffer, Epilogue, Expr, Operand, View, function, keep, local, store
from .direct import as_conv
from .dot import Dot
from .geometry import Linear, Matmul
from .grid import Grid, counted, guarded
from .tiled import Block, Centre, Cut, Finish, Kernel, Source, cut, elements

UNSIGNED = {"uint8": -128}
"""What is added to codes of a type so that they are int8."""


def tiled_matmul(
    g: Matmul, dot: Dot, *, a_dtype: str, b_dtype: str, out_dtype: str, grid: Grid, za: int = 0,
    zb: int = 0, epilogue: Epilogue = keep, operands: Sequence[Operand] = (), name: str = "matmul",
) -> Any:  # fmt: skip
    """PrimFunc (a, b, *operands, out): as batched.batch_matmul, b [*lead, K, N]."""
    rows = Linear((*g.lead, g.m), g.k, g.n)
    size = cut(Linear((g.m,), g.k, g.n), dot, grid)
    moves = UNSIGNED.get(a_dtype, 0), UNSIGNED.get(b_dtype, 0)
    made: list[Any] = []
    with function(name, made, grid) as params:
        ends = Operand("a", g.a_shape, a_dtype), Operand("b", g.b_shape, b_dtype)
        a, b, *rest, out = params.flat(*ends, *operands, Operand("out", g.out_shape, out_dtype))
        views = [View(o, r, g.out_shape) for o, r in zip(operands, rest, strict=True)]
        lead = [params.symbols.dim(d) for d in g.out_shape[:-1]]
        images, blocks = counted(params.symbols.product(g.lead)), -(-g.m // size.rows)
        across = T.launch_thread("blockIdx.x", images * blocks)
        down = T.launch_thread("blockIdx.y", -(-g.n // size.columns))
        with across as x_block, down as panel, T.launch_thread("threadIdx.x", size.threads) as t:
            image = x_block // blocks
            end = (image + 1) * g.m
            # What lies beyond a row must be 0 as it is multiplied: sums of rows have it, too.
            source = Source(as_conv(rows), dot, size, a, a_dtype, -moves[0], moves[0], end)
            finish = Finish(out, None, epilogue, views, end, g.n, lead)
            place = Block(t, image * g.m + x_block % blocks * size.rows, panel)
            second = Columns(g, dot, size, b, moves[1], image)
            steps = -(-g.k // (size.words * elements(dot)))
            centre = Centre(za + moves[0], zb + moves[1], g.k) if dot.acc_dtype == "int32" else None
            Kernel(dot, size, source, second, place, finish, steps, centre).emit()
    return made[0]


@dataclass(frozen=True)
class Columns:
    """The columns of b [K, N]; neighbouring threads read neighbouring columns."""

    g: Matmul
    dot: Dot
    cut: Cut
    b: Buffer
    shift: int
    image: Expr

    def load(self, tiles: Buffer, to: Expr, step: Expr, block: Block) -> None:
        g, size, per, dtype = self.g, self.cut, elements(self.dot), self.dot.acc_dtype
        words = size.columns * size.words
        with T.unroll(0, -(-words // size.threads)) as s:
            index = block.thread + s * size.threads
            column, word = index % size.columns, index // size.columns
            n, k = block.panel * size.columns + column, (step * size.words + word) * per
            found = local(1, dtype)
            store(found, 0, T.Cast(dtype, 0), 1)
            for e in range(per):
                with guarded(n < g.n, k + e < g.k):
                    value = self.b[(self.image * g.k + k + e) * g.n + n]
                    if dtype == "int32":
                        code = (T.Cast("int32", value) + self.shift) & 0xFF
                        value = found[0] | (code << (8 * e))
                    store(found, 0, value, 1)
            with guarded(*([index < words] if words % size.threads else [])):
                store(tiles, to + column * size.pitch + word, found[0], 1)
