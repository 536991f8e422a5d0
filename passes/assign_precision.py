"""Assign precision: each op its precision or why it stays float, each code tensor its scheme."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.pipeline import Pass, declare
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.whole import program_name

from .assign_codes import Search, choices_of
from .integer_plan import goes_by, is_anchor, noted, plan_of
from .units import units_of

SHOWN = 5  # names that a message offers instead of an unknown one


class RecipeError(ValueError):
    """The recipe does not fit the graph."""


def require_known(graph: Graph, recipe: Recipe) -> None:
    """Raises RecipeError for a name in keep_float that nothing in the graph has."""
    nodes = graph.nodes()
    for path in recipe.keep_float:
        if not any(goes_by(node, path) for node in nodes):
            layers = [node.name for node in nodes if is_anchor(node)]
            near = difflib.get_close_matches(path, layers, SHOWN, cutoff=0.0)
            raise RecipeError(
                f"recipe {recipe.name!r}: keep_float: no node has the name {path!r} or lies below "
                f"it; layers with names like it: {', '.join(near) or 'none'}"
            )


@declare("assign-precision", Level.CALIBRATED, Level.PLANNED)
@dataclass(frozen=True)
class AssignPrecision(Pass):
    """Give each op its precision or the reason it stays float, each code tensor its scheme.

    With float activations only the weights of linear layers get a scheme.

    Layers (matmul, linear, convolution) are integer wherever the recipe and target allow it; what
    lies between them is integer where an integer op reads it and integer ops feed it. Where the
    recipe has decibels for it, fewer codes and more products a sum follow, see assign_codes.

    solve: whether these are chosen for all layers together, and float32 where it is faster, by
    the times that are known of them. Where the whole program was measured and is faster in float32,
    nothing is integer.
    """

    solve: bool = True

    def run(self, graph: Graph, ctx: Context) -> Graph:
        require_known(graph, ctx.recipe)
        slower = slower_as_a_whole(graph, ctx) if self.solve else None
        if slower is not None:
            anchors = {node: slower for node in graph.nodes() if is_anchor(node)}
            return noted(graph, plan_of(graph, ctx, anchors))[0]
        made, new = noted(graph, plan_of(graph, ctx))
        choices = choices_of(made, ctx, self.solve)
        if choices.floats:
            old = {node: source for source, node in new.items()}
            floats = {old[node]: reason for node, reason in choices.floats.items()}
            made, _ = noted(graph, plan_of(graph, ctx, floats))
            choices = choices.of(made, ctx)
        return choices.applied(made, ctx)


def slower_as_a_whole(graph: Graph, ctx: Context) -> str | None:
    """Why the program is to compute in float32; None where it was not measured, or is faster."""
    if ctx.target is None:
        return None
    integer, plain = (
        ctx.target.least(program_name(graph, r)) for r in (ctx.recipe, recipe_of("float32"))
    )
    if integer is None or plain is None or integer <= plain:
        return None
    times = f"{plain:.3g} us in float32, {integer:.3g} by recipe {ctx.recipe.name}"
    return f"the program is faster in float32 (measured as a whole: {times})"


def search_of(graph: Graph, ctx: Context) -> Search:
    """What there is to choose for a graph, CALIBRATED, and what it costs."""
    made, _ = noted(graph, plan_of(graph, ctx))
    return Search.of(made, units_of(made, ctx), ctx)


assign_precision = AssignPrecision()
