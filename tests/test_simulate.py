"""Simulate: errors that are injected against those that quantization makes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.graph import Graph, Node
from qcompiler.ops import Conv2d, Linear
from qcompiler.simulate import Errors, Simulation


def layers(net: nn.Module, x: torch.Tensor) -> tuple[Graph, list[Node]]:
    graph = qc.trace(net.eval(), (x,))
    return graph, [n for n in graph.nodes() if isinstance(n.op, Conv2d | Linear)]


def test_noise_of_a_linear_net_is_that_of_its_matrix() -> None:
    torch.manual_seed(0)
    both = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 64))
    graph, (first, _) = layers(both, torch.randn(400, 256))
    sample = torch.randn(400, 256)
    power = float(both(sample).square().mean())
    at_first = 0.01 * float(both[1].weight.square().sum()) / 64 / power
    whole = both[1].weight @ both[0].weight
    at_input = 0.01 * float(whole.square().sum()) / 64 / power
    for node, expected in ((first, at_first), (graph.inputs[0], at_input)):
        noise = Simulation(graph, [sample]).noise(Errors({node: 0.01}))
        assert noise == pytest.approx(expected, rel=0.05)


def test_more_noise_makes_more_and_no_noise_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    x = torch.randn(1, 4, 9, 9)
    graph, (first, _) = layers(net, x)
    simulation = Simulation(graph, [x])
    found = [simulation.noise(Errors({first: v})) for v in (0.0, 1e-4, 1e-2, 1.0)]
    assert found[0] == 0 and all(a < b for a, b in pairwise(found))
    assert found[2] == simulation.noise(Errors({first: 1e-2}))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_what_weights_do_to_the_mean_is_taken_back(groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(8, 8, 1, groups=groups)
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 5, 5).contiguous()  # all of it is mean
    graph, (layer,) = layers(net, x)
    weight = layer.inputs[1]
    moved = net.weight.detach() + 0.1 * torch.randn_like(net.weight)
    assert Simulation(graph, [x]).noise(Errors({}, {weight: moved})) < 1e-10
    varied = torch.randn(1, 8, 5, 5)
    noise = Simulation(graph, [varied]).noise(Errors({}, {weight: moved}))
    assert 1e-4 < noise < math.inf
