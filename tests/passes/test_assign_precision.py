"""What is to stay float: by the recipe's names, and because nothing integer is next to it."""

import importlib
from dataclasses import replace

import nets
import pytest
import torch

from qcompiler import passes
from qcompiler.graph import Graph, Node
from qcompiler.ops import BatchNorm, Clamp, Linear, const
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import Recipe
from qcompiler.rewrite import named
from qcompiler.types import DType

assign = importlib.import_module("qcompiler.passes.integer_plan")
PLAN = Pipeline(
    (*passes.NORMALIZE, *map(passes.by_name, ("calibrate", "assign-precision"))),
)


def layer(x: Node, name: str) -> Node:
    w = const(torch.randn(8, 8), name=f"{name}.weight")
    return Linear()(x, w, const(torch.randn(8), name=f"{name}.bias"), name=name)


def stack() -> Graph:
    """enc.1, whose batch norm is bn, enc.10 and head."""
    x = nets.value(4, 8)
    stats = [const(torch.rand(8) + 0.5) for _ in range(4)]
    y = BatchNorm(1e-5)(layer(x, "enc.1"), *stats, name="bn")
    return named(Graph((x,), (layer(layer(y, "enc.10"), "head"),)))


def kept(*names: str) -> list[str]:
    """The layers of the stack that stay float, by the names of their weights."""
    graph = stack()
    recipe = Recipe("mine", "static", keep_float=names)
    planned = PLAN(graph, replace(nets.context(graph), recipe=recipe))
    layers = [n for n in planned.nodes() if isinstance(n.op, Linear)]
    floats = [n for n in layers if n.note.precision is DType.FLOAT32]
    assert {n.note.reason for n in floats} <= {"kept in float by the recipe"}
    return [n.inputs[1].name.removesuffix(".weight") for n in floats]


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        ((), []),
        (("head",), ["head"]),
        (("enc",), ["enc.1", "enc.10"]),
        (("enc.1",), ["enc.1"]),
        (("bn",), ["enc.1"]),
        (("enc.10", "head"), ["enc.10", "head"]),
    ],
)
def test_kept_layers_go_by_whole_names_also_of_what_was_folded(names, layers) -> None:
    assert kept(*names) == layers


@pytest.mark.parametrize("name", ["enc.2", "hea", "c.1", "Head"])
def test_a_name_that_nothing_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"keep_float: no node has the name '{name}'") as caught:
        kept("head", name)
    assert "enc.10" in str(caught.value)


def by_sweeps(plan) -> None:
    """What drop_stranded is held to: whole sweeps until nothing changes."""
    before = -1
    while before != len(plan.reasons):
        before = len(plan.reasons)
        for node in plan.users:
            reason = None if node in plan.reasons else assign.stranded(node, plan)
            if reason is not None:
                plan.reasons[node] = reason


@pytest.mark.parametrize("make", [nets.cnn, nets.encoder])
def test_dropping_neighbours_is_dropping_by_sweeps(make, monkeypatch) -> None:
    graph = Pipeline(passes.NORMALIZE)(make())
    reasons = set()
    for node in filter(assign.is_anchor, graph.nodes()):
        recipe = Recipe("mine", "static", keep_float=(node.name,))
        ctx = replace(nets.context(graph), recipe=recipe)
        found = assign.plan_of(graph, ctx).reasons
        with monkeypatch.context() as patch:
            patch.setattr(assign, "drop_stranded", by_sweeps)
            assert assign.plan_of(graph, ctx).reasons == found
        reasons |= set(found.values())
    assert {assign.NO_READER, assign.FLOAT_OPERAND} <= reasons


def test_a_long_tail_is_dropped_in_linear_time(monkeypatch) -> None:
    x = nets.value(4, 8)
    y = layer(x, "first")
    for k in range(300):
        y = Clamp(0.0, 6.0 + k)(y)
    graph = named(Graph((x,), (y,)))
    asked = []
    stranded = assign.stranded
    monkeypatch.setattr(assign, "stranded", lambda n, p: asked.append(n) or stranded(n, p))
    plan = assign.plan_of(graph, nets.context(graph))
    assert sum(plan.integer(n) for n in graph.nodes()) == 1
    assert len(asked) < 4 * 300
