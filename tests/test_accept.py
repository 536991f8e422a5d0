"""Accept: a user's own metric decides how much is lost."""

import math

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.accept import AccuracyError
from qcompiler.graph import Graph


def classifier() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(32 * 36, 10)).eval()
    return net, [torch.randn(1, 3, 10, 10) for _ in range(8)]


def traced() -> tuple[Graph, list[torch.Tensor]]:
    net, data = classifier()
    return qc.trace(net, (data[0],)), data


def test_the_first_that_the_metric_takes_is_returned() -> None:
    graph, data = traced()
    exact = [qc.interpret(graph, x) for x in data]

    def fidelity(model) -> float:  # minus the noise: 0 for the float model
        return -sum(float((model(x) - y).square().sum()) for x, y in zip(data, exact, strict=True))

    made, lost = [], []
    for allowed in (math.inf, 2e-4, 1e-6):
        found = qc.quantize(graph, data, recipe="auto", evaluate=fidelity, max_drop=allowed)
        made.append(str(found))
        lost.append(-fidelity(lambda x, g=found: qc.interpret(g, x)))
        assert lost[-1] <= allowed
    assert lost[0] > lost[1] > lost[2] and len(set(made)) == 3  # float32 alone loses so little


def test_a_metric_that_nothing_meets_is_told_what_was_reached() -> None:
    graph, data = traced()
    calls: list[float] = []

    def worse(model) -> float:
        calls.append(0.9 - 0.1 * min(len(calls), 1))
        return calls[-1]

    with pytest.raises(AccuracyError, match=r"0\.9 of .* less 0\.05 at most, got 0\.8"):
        qc.quantize(graph, data, recipe="auto", evaluate=worse, max_drop=0.05)
    assert len(calls) > 2
    with pytest.raises(AccuracyError, match="expected a number, got nan of the float model"):
        qc.quantize(graph, data, recipe="auto", evaluate=lambda _: math.nan)


def test_a_recipe_without_choices_is_refused() -> None:
    graph, data = traced()
    for options in ({"max_drop": 1.0}, {"evaluate": lambda _: 0.0}):
        with pytest.raises(ValueError, match="recipe 'int8' has nothing to choose"):
            qc.quantize(graph, data, recipe="int8", **options)
