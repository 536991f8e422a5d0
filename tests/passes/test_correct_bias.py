"""Bias correction: the mean of a layer's output is the float layer's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from plans import CTX, ROWS, graph_of, layer, random_weights, source, weighted

from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.interpret import interpret
from qcompiler.ops import Const, Conv2d, Input, Linear, const
from qcompiler.passes.choose_ranges import choose_ranges
from qcompiler.passes.correct_bias import correct_bias
from qcompiler.passes.insert_qdq import insert_qdq
from qcompiler.pipeline import Pipeline
from qcompiler.stats import Stats
from qcompiler.types import DType

PLAN = Pipeline((choose_ranges, insert_qdq))


def values(seed: int, *shape: int) -> torch.Tensor:
    """Positive values whose channels have different means."""
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(shape[1], generator=g) * 4
    return torch.rand(*shape, generator=g) * means.reshape(-1, *[1] * (len(shape) - 2))


def measured(node: Node, x: torch.Tensor) -> Graph:
    """The layer's graph with its input's statistics taken from x."""
    data = node.inputs[0].with_note(stats=Stats.of(x))
    return graph_of(replace(node, inputs=(data, *node.inputs[1:])))


def mean_error(graph: Graph, x: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|mean over samples and positions| of each output channel's error."""
    y = torch.cat([interpret(graph, part) for part in x.split(1)])
    rest = [k for k in range(y.ndim) if k != 1]
    return (y - exact).double().mean(rest).abs()


CASES = {
    "linear": (layer(random_weights(0, 6, 24), torch.ones(6)), values(1, 64, 24)),
    "conv": (layer(random_weights(2, 6, 4, 3, 3), torch.ones(6)), values(3, 16, 4, 8, 8)),
    "grouped": (layer(random_weights(4, 6, 2, 3, 3), None, groups=3), values(5, 16, 6, 8, 8)),
    "depthwise": (layer(random_weights(6, 8, 1, 3, 3), None, groups=8), values(7, 16, 8, 8, 8)),
    "rows": (layer(random_weights(8, 6, 24), torch.ones(6), scheme=ROWS), values(9, 64, 24)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_error_of_each_channel_vanishes(name: str) -> None:
    node, x = CASES[name]
    graph = measured(node, x)
    exact = torch.cat([interpret(graph, part) for part in x.split(1)])
    before = PLAN(graph, CTX)
    after = Pipeline((correct_bias,))(before, CTX)
    old, new = mean_error(before, x, exact), mean_error(after, x, exact)
    assert float(new.sum()) < 0.35 * float(old.sum())


def test_the_correction_is_what_the_equation_says() -> None:
    """One weight of 0.6 codes next to one of 127: it rounds to 1 code, 0.4 too much."""
    scale = 1.0
    w = torch.tensor([[127.0 * scale, 0.6 * scale]])
    x = torch.tensor([[2.0, 5.0], [2.0, 7.0]])
    ctx = replace(CTX, target=None)
    graph = Pipeline((correct_bias,))(PLAN(measured(layer(w, torch.tensor([10.0])), x), ctx), ctx)
    bias = graph.outputs[0].inputs[2].op
    assert isinstance(bias, Const)
    assert float(bias.value) == pytest.approx(10.0 - 0.4 * 6.0, rel=1e-6)


def seen(graph: Graph) -> tuple[Graph, list[tuple[Any, ...]]]:
    events: list[tuple[Any, ...]] = []
    ctx = Context(listen=(lambda *event: events.append(event),))
    return correct_bias.run(graph, ctx), events


def test_only_the_bias_changes_and_the_layer_keeps_its_note() -> None:
    node, x = CASES["conv"]
    before = PLAN(measured(node, x), CTX)
    after, events = seen(before)
    (a,), (b,) = before.outputs, after.outputs
    assert (a.name, a.op, a.type, a.note) == (b.name, b.op, b.type, b.note)
    assert a.inputs[:2] == b.inputs[:2] and b.inputs[2].name == "b.corrected"
    assert after.level is Level.QDQ and [e[0] for e in events] == ["applied"]


def test_a_layer_without_bias_gets_one() -> None:
    node, x = CASES["depthwise"]
    after, _ = seen(PLAN(measured(node, x), CTX))
    assert len(after.outputs[0].inputs) == 3 and after.outputs[0].inputs[2].name == "y.corrected"


def unchanged(graph: Graph) -> list[str]:
    """The reasons given; the graph must be the same."""
    after, events = seen(graph)
    assert after.outputs == graph.outputs
    return [e[3] for e in events]


def test_without_statistics_nothing_is_corrected() -> None:
    node, _ = CASES["rows"]
    x = node.inputs[0].with_note(stats=None)
    graph = PLAN(graph_of(replace(node, inputs=(x, *node.inputs[1:]))), CTX)
    assert unchanged(graph) == ["no means of %x.dq were measured"]


def test_a_linear_layer_over_rank_4_is_left_alone() -> None:
    """Its statistics are along axis 1, even where the last axis has as many elements."""
    x = source("x", 0.0, 1.0, 1, 4, 2, 4)
    x = x.with_note(stats=Stats.of(values(0, 2, 4, 2, 4)))
    y = Linear()(x, weighted("w", random_weights(1, 3, 4)), name="y")
    graph = PLAN(graph_of(y.with_note(precision=DType.INT8)), CTX)
    assert unchanged(graph) == ["no means of %x.dq were measured"]


def test_float_layers_are_not_touched() -> None:
    x = source("x", 0.0, 1.0, 1, 4, 4, 4, scheme=None)
    y = Conv2d()(x, const(random_weights(2, 3, 4, 1, 1), name="w"), name="y")
    graph = replace(graph_of(y.with_note(precision=DType.FLOAT32)), level=Level.QDQ)
    assert unchanged(graph) == []


def test_a_bias_that_is_computed_stays() -> None:
    node, x = CASES["linear"]
    graph = PLAN(measured(node, x), CTX)
    (y,) = graph.outputs
    bias = Input(y.inputs[2].tensor)(name="given")
    graph = replace(graph, outputs=(replace(y, inputs=(*y.inputs[:2], bias)),))
    assert unchanged(graph) == ["its weight or bias is not constant"]


def test_a_correction_that_would_leave_int32_is_not_made() -> None:
    """The bias is 1 code, the correction huge: means that statistics of other data claim."""
    node, x = CASES["linear"]
    graph = PLAN(measured(node, x), CTX)
    wild = Stats.of(torch.full_like(x, 1e12))
    quantize = graph.outputs[0].inputs[0].inputs[0]
    claimed = graph.noted({quantize.inputs[0]: replace(quantize.inputs[0].note, stats=wild)})
    assert unchanged(claimed) == ["with the corrected bias int32 sums are not proven"]
