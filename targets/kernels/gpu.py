"""Which templates compute products on a GPU."""

from __future__ import annotations

from typing import Any

from qcompiler.ops import Packing

from .direct import direct_packing, direct_product
from .dot import Dot
from .geometry import Conv, Linear, Matmul
from .grid import Grid
from .launch import Templates
from .tiled import known_pixels, tiled_packing, tiled_product
from .tiled_matmul import tiled_matmul


def grouped(g: Conv | Linear) -> bool:
    return isinstance(g, Conv) and g.groups > 1


def takes(g: Conv | Linear, dot: Dot) -> bool:
    """Groups are summed element by element; an instruction of many rows wants as many pixels."""
    pixels = known_pixels(g)
    return dot.depth == 1 if grouped(g) else pixels is None or pixels >= dot.rows


def in_tiles(g: Conv | Linear, dot: Dot) -> bool:
    return not grouped(g) and dot.a_dtype == dot.b_dtype


def templates(grid: Grid) -> Templates:
    """The templates of a GPU with this memory shape."""

    def packing(g: Conv | Linear, dot: Dot, in_dtype: str) -> Packing:
        return tiled_packing(g, dot, grid) if in_tiles(g, dot) else direct_packing(g)

    def weighted(g: Conv | Linear, dot: Dot, **options: Any) -> Any:
        template = tiled_product if in_tiles(g, dot) else direct_product
        return template(g, dot, grid=grid, **options)

    def matmul(g: Matmul, dot: Dot, **options: Any) -> Any:
        return tiled_matmul(g, dot, grid=grid, **options)

    return Templates(takes, packing, weighted, matmul, "int8")
