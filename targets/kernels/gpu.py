"""Which templates compute products on a GPU."""

from __future__ import annotations

from typing import Any

from qcompiler.ops import Packing

from .direct import direct_packing, direct_product
from .dot import Dot
from .geometry import Conv, Linear
from .grid import Grid
from .launch import Templates


def templates(grid: Grid) -> Templates:
    """The templates of a GPU with this memory shape."""

    def takes(g: Conv | Linear, dot: Dot) -> bool:
        return dot.depth == 1

    def packing(g: Conv | Linear, dot: Dot, in_dtype: str) -> Packing:
        return direct_packing(g)

    def weighted(g: Conv | Linear, dot: Dot, **options: Any) -> Any:
        return direct_product(g, dot, grid, **options)

    return Templates(takes, packing, weighted, None)
