"""Sensitivity: the noise that small errors make at the outputs, against errors that were made."""

import math

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.interpret import run
from qcompiler.ops import Const, Conv2d, Linear
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import recipe_of
from qcompiler.sensitivity import sensitivities

TINY = 1e-4  # of a value's deviation: where the net is linear
REPEATS = 24
DECIBELS = 1.5  # 4 probes of some hundred elements, and as many errors, are that exact


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, groups=4), nn.SiLU(),
        nn.Flatten(), nn.Linear(16 * 36, 24), nn.LayerNorm(24), nn.Linear(24, 40),
    ).eval()  # fmt: skip


def calibrated() -> tuple[Graph, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(1, 3, 8, 8) + 0.5
    graph = qc.trace(net(), (x,))
    ctx = Context(recipe=recipe_of("int8"), data=[x])
    return Pipeline((*passes.NORMALIZE, passes.calibrate))(graph, ctx), x


def noise(graph: Graph, x: torch.Tensor, node: Node, std: float) -> float:
    """Measured, as a share of the signal's power."""
    values: dict[Node, torch.Tensor] = {}
    (y,) = run(graph, (x,), see=lambda n, v: values.__setitem__(n, v))
    total = 0.0
    for k in range(REPEATS):
        torch.manual_seed(k)
        error = torch.randn_like(values[node]) * std
        (z,) = run(graph, (x,), keep={node: values[node] + error})
        total += float((z - y).double().square().sum() / y.double().square().sum())
    return total / REPEATS


def test_errors_of_every_value_and_weight_arrive_as_predicted() -> None:
    graph, x = calibrated()
    found = sensitivities(graph, (x,))
    checked = 0
    for node in graph.nodes():
        if node not in found.values:
            continue
        std = TINY
        measured = 10 * math.log10(noise(graph, x, node, std))
        assert measured == pytest.approx(
            10 * math.log10(float(found.values[node].sum()) * std**2), abs=DECIBELS
        ), node.name
        checked += 1
    assert checked >= 9


def test_weights_count_what_a_corrected_bias_does_not_take_back() -> None:
    graph, x = calibrated()
    found = sensitivities(graph, (x,))
    layers = [n for n in graph.nodes() if isinstance(n.op, Conv2d | Linear)]
    assert set(found.weights) == set(layers)
    for node in layers:
        whole = noise(graph, x, node.inputs[1], TINY)
        ours = float(found.weights[node].sum()) * TINY**2
        assert ours < whole * 1.4 and len(found.weights[node]) == node.inputs[1].tensor.ints[0]
    last = layers[-1]  # of one row all is mean: an error there is only a bias's
    assert float(found.weights[last].sum()) < 1e-6 * float(found.values[last].sum())


def test_equal_calls_give_equal_numbers_and_weights_stay_as_they_were() -> None:
    graph, x = calibrated()
    a, b = (sensitivities(graph, (x,)) for _ in range(2))
    for one, two in ((a.values, b.values), (a.weights, b.weights), (a.powers, b.powers)):
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    constants = [n.op.value for n in graph.nodes() if isinstance(n.op, Const)]
    assert not any(c.requires_grad or c.grad is not None for c in constants)


def test_a_channel_far_below_the_step_loses_no_more_than_itself() -> None:
    """Rounded to 0 it is lost, which is less than errors that are even over a step."""
    net = nn.Conv2d(4, 4, 1, groups=4, bias=False).eval()
    nn.init.ones_(net.weight).requires_grad_(False)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 32, 32) * torch.tensor([1.0, 1.0, 1e-3, 1e-3])[:, None, None]
    graph = qc.trace(net, (x,))
    found = sensitivities(graph, (x,))
    (node,) = graph.inputs
    step = 0.1
    rounded = (x / step).round() * step
    true = float((net(rounded) - net(x)).square().sum() / net(x).square().sum())
    assert found.noise(node, step**2 / 12) == pytest.approx(true, rel=0.1)
    assert float(found.values[node].sum()) * step**2 / 12 > 1.8 * true


def test_a_graph_without_float_outputs_has_none() -> None:
    class Argmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(-1)

    graph = qc.trace(Argmax().eval(), (torch.randn(2, 5),))
    found = sensitivities(graph, (torch.randn(2, 5),))
    assert not found.values and not found.weights
