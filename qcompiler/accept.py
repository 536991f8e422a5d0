"""Accept: the fastest of several quantized graphs that a user's own metric takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Graph
from qcompiler.interpret import interpret

if TYPE_CHECKING:
    from qcompiler.recipe import Recipe

Model = Callable[..., Any]
"""Tensors, one per input, to a tensor, or a tuple of several."""
Evaluate = Callable[[Model], float]
"""A metric of a model, higher is better."""

DROPS = (6.0, 3.0, 1.5, 0.0, -1.5, -3.0, -6.0, -12.0, -100.0)
"""Decibels against int8 that are tried, the fastest first; with the last nothing may be lost."""


class AccuracyError(ValueError):
    """Nothing that the recipe can choose is accepted."""


def accepted(
    graph: Graph, recipe: Recipe, quantized: Callable[[Recipe], Graph], evaluate: Evaluate,
    max_drop: float,
) -> Graph:  # fmt: skip
    """The first of the recipe's graphs whose metric is at most `max_drop` below that of `graph`.

    quantized: makes one, of a recipe with another `max_drop`. Raises AccuracyError.
    """
    recipe.dropping(0.0)  # before the metric, which may take long
    wanted = _metric(evaluate, graph, "the float model")
    tried: dict[str, float] = {}
    for drop in DROPS:
        made = quantized(recipe.dropping(drop))
        text = str(made)
        if text in tried:
            continue
        tried[text] = _metric(evaluate, made, f"{drop:+g} dB")
        if wanted - tried[text] <= max_drop:
            return made
    best = max(tried.values())
    raise AccuracyError(
        f"evaluate: expected {wanted:.6g} of the float model less {max_drop:g} at most, got "
        f"{best:.6g} at best of {len(tried)} graphs of recipe {recipe.name!r}; allow a larger "
        "max_drop, or keep layers in float by a recipe with keep_float"
    )


def _metric(evaluate: Evaluate, graph: Graph, what: str) -> float:
    value = float(evaluate(lambda *inputs: interpret(graph, *inputs)))
    if math.isnan(value):
        raise AccuracyError(f"evaluate: expected a number, got nan of {what}")
    return value
