"""Calibrate: statistics on every value, gathered over the calibration data or brought along."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler.context import Context
from qcompiler.data import DataError
from qcompiler.graph import Graph, Level, Node
from qcompiler.pipeline import Pass, declare
from qcompiler.recipe import Activations, Recipe
from qcompiler.statistics import Statistics
from qcompiler.stats import Stats

from .gather_statistics import counted, gathered_once


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
    """Statistics of each float32 value that is no constant, and that more than a clamp reads; none
    where nothing is decided by them.

    Emits `calibrated` with the SHA-256 of the data.
    """
    if ctx.data is None:
        raise DataError(f"{_need(ctx.recipe)}: expected calibration data, got none; {_cure(ctx)}")
    if isinstance(ctx.data, Statistics):
        values, digest = ctx.data.of(graph).values, ctx.data.digest
        stats = {node: values[node.name] for node in counted(graph)}
    else:
        wanted = counted(graph) if ctx.recipe.needs_statistics else []
        stats, digest = gathered_once(graph, ctx, wanted)
    ctx.emit("calibrated", digest)
    return stats


def _need(recipe: Recipe) -> str:
    static = recipe.activations is Activations.STATIC
    what = "static activations" if static else "a rounding or scaling that goes by data"
    return f"recipe {recipe.name!r} has {what}"


def _cure(ctx: Context) -> str:
    static = ctx.recipe.activations is Activations.STATIC
    other = "choose the recipe 'int8-dynamic'" if static else "leave them out"
    return f"pass an iterable of inputs, or {other}"


calibrate = Calibrate()
