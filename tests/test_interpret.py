"""What the interpreter says of inputs that do not fit the graph."""

import nets
import pytest
import torch
from nets import value

from qcompiler import passes
from qcompiler.errors import InputError
from qcompiler.graph import Graph, Level
from qcompiler.interpret import constant_values, interpret, run
from qcompiler.ops import Add, Clamp, Mul, const


def test_the_number_of_inputs_is_told() -> None:
    x, y = value(2), value(2)
    with pytest.raises(InputError, match=r"expected 1 input \(.*\), got 2"):
        interpret(Graph((x,), (Clamp(lo=0.0)(x),)), torch.ones(2), torch.ones(2))
    with pytest.raises(InputError, match=r"expected 2 inputs \(.*\), got 1"):
        interpret(Graph((x, y), (Add()(x, y),)), torch.ones(2))


def test_values_of_constants_are_computed_once_for_many_runs() -> None:
    graph = nets.encoder()
    quantized = list(passes.quantize.stages(graph, nets.context(graph)))
    qdq = next(g for g in quantized if g.level is Level.QDQ)
    known = constant_values(qdq)
    assert any(v is None for v in known.values()) and any(v is not None for v in known.values())
    (item,) = nets.samples(graph, 1)
    assert run(qdq, item, keep=known)[0].equal(run(qdq, item)[0])
    # With an input that only constants reach, and as a result.
    two = const(2.0)
    results = Graph((), (Mul()(two, two, name="y"),))
    assert constant_values(results)[results.outputs[0]] == 4.0
