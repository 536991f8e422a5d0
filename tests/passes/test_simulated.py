"""Simulated: what is predicted of choices against what the quantized graph then does."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.interpret import run
from qcompiler.passes.assign_codes import Choices, Search
from qcompiler.passes.assign_precision import search_of
from qcompiler.passes.integer_plan import noted, plan_of
from qcompiler.passes.units import Option, Unit
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import recipe_of
from qcompiler.targets import get
from tests import nets

V3 = get("x86-64-v3")
NAMES = [p.name for p in passes.QUANTIZE]
PLAN = NAMES.index("assign-precision")


def searched(graph: Graph) -> tuple[Search, Graph, Context]:
    data = nets.samples(graph)
    ctx = Context(V3, recipe_of("auto"), data, sample=data[0])
    calibrated = Pipeline(passes.QUANTIZE[:PLAN])(graph, ctx)
    return search_of(calibrated, ctx), calibrated, ctx


def made(
    calibrated: Graph, ctx: Context, units: Sequence[Unit], options: Sequence[Option]
) -> Graph:  # fmt: skip
    """The integer graph of these options."""
    pairs = zip(units, options, strict=True)
    floats = {layer.node.name for unit, option in pairs if option.floats for layer in unit.layers}
    wanted = {n: "wanted" for n in calibrated.nodes() if n.name in floats}
    planned, _ = noted(calibrated, plan_of(calibrated, ctx, wanted))
    chosen = Choices(units, options).of(planned, ctx).applied(planned, ctx)
    return Pipeline(passes.QUANTIZE[PLAN + 1 :])(replace(chosen, level=Level.PLANNED), ctx)


def decibels(graph: Graph, other: Graph, sample: Sequence[torch.Tensor]) -> float:
    power = 0.0
    for y, z in zip(run(graph, sample), run(other, sample), strict=True):
        power += float((y.double() - z.double()).square().sum() / y.double().square().sum())
    return -10 * math.log10(power)


@pytest.mark.parametrize(("build", "within"), [(nets.cnn, 3.0), (nets.encoder, 1.0)])
@pytest.mark.parametrize("kind", ["safe", "rule", "half in float32"])
def test_choices_do_what_is_predicted(build, within: float, kind: str) -> None:
    """In decibels: the first net has few outputs, on which chance tells."""
    graph = build()
    search, calibrated, ctx = searched(graph)
    options = [u.rule if kind == "rule" else u.safe for u in search.units]
    if kind == "half in float32":
        options = [
            u.in_float if u.layers and k % 2 else o
            for k, (u, o) in enumerate(zip(search.units, options, strict=True))
        ]
        assert any(o.floats for o in options)
    noise = search.simulation.noise(search.units, options)
    measured = decibels(graph, made(calibrated, ctx, search.units, options), ctx.sample)
    assert -10 * math.log10(noise) == pytest.approx(measured, abs=within)


def test_all_in_float32_makes_no_noise() -> None:
    search, _, _ = searched(nets.cnn())
    options = [u.in_float if u.layers else u.safe for u in search.units]
    assert search.simulation.noise(search.units, options) < 1e-10
