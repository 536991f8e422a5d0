"""Collect statistics: the interpreter over the calibration data, and a fold over the values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qcompiler.context import Context
from qcompiler.data import DataError, cut_items
from qcompiler.graph import Graph, Level, Node
from qcompiler.interpret import run
from qcompiler.ops import Const
from qcompiler.pipeline import Pass, declare
from qcompiler.recipe import Activations, Recipe
from qcompiler.stats import EMPTY, Stats
from qcompiler.types import DType, TensorType

from .share_scales import only_clamped

if TYPE_CHECKING:
    import torch


@declare("calibrate", Level.FLOAT, Level.CALIBRATED, exact=True)
@dataclass(frozen=True)
class Calibrate(Pass):
    """Statistics on every float32 value, from the calibration data; what only a clamp reads has
    none of its own, the clamp's decide.

    Each piece of the data starts from the initial state. Without data the graph only changes its
    level; DataError where the recipe needs it.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        if ctx.data is None and not ctx.recipe.needs_data:
            return replace(graph, level=Level.CALIBRATED)
        stats = collect(graph, ctx)
        notes = {node: replace(node.note, stats=found) for node, found in stats.items()}
        return replace(graph.noted(notes), level=Level.CALIBRATED)


def collect(graph: Graph, ctx: Context) -> dict[Node, Stats]:
    """Statistics of each float32 value that is no constant, and that more than a clamp reads.

    Emits `calibrated` with the SHA-256 of the data.
    """
    import torch

    if ctx.data is None:
        raise DataError(f"{_need(ctx.recipe)}: expected calibration data, got none; {_cure(ctx)}")
    users, results = graph.users(), set(graph.results)
    stats = {
        node: EMPTY for node in users if _is_value(node) and not only_clamped(node, users, results)
    }

    def see(node: Node, value: torch.Tensor | Any) -> None:
        if node in stats:
            stats[node] = stats[node].merge(Stats.of(value))

    digest = hashlib.sha256()
    total = len(ctx.data) if isinstance(ctx.data, Sized) else 0
    with torch.no_grad():
        for done, item in enumerate(cut_items(ctx.data, graph), 1):
            for piece in item:
                _run(graph, piece, see, f"calibration item {done - 1}")
                for value in piece:
                    digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            ctx.progress("calibrate", done, total)
    ctx.emit("calibrated", digest.hexdigest())
    return stats


def _need(recipe: Recipe) -> str:
    static = recipe.activations is Activations.STATIC
    what = "static activations" if static else "a rounding or scaling that goes by data"
    return f"recipe {recipe.name!r} has {what}"


def _cure(ctx: Context) -> str:
    static = ctx.recipe.activations is Activations.STATIC
    other = "choose the recipe 'int8-dynamic'" if static else "leave them out"
    return f"pass an iterable of inputs, or {other}"


def _run(graph: Graph, piece: Any, see: Callable[[Node, Any], None], where: str) -> None:
    """Raises DataError for ids that are outside of their table, naming the item."""
    try:
        run(graph, piece, see=see)
    except IndexError as e:
        raise DataError(f"{where}: {e}") from e


def _is_value(node: Node) -> bool:
    is_float = isinstance(node.type, TensorType) and node.type.dtype is DType.FLOAT32
    return is_float and not isinstance(node.op, Const)


calibrate = Calibrate()
