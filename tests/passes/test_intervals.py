"""Intervals through ops, and cut to what was seen."""

from collections.abc import Callable

import pytest
import torch
from plans import graph_of, held, source

from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    Clamp,
    Concat,
    Gather,
    Gelu,
    Input,
    Pad,
    Reshape,
    Sigmoid,
    Softmax,
    Tanh,
    const,
)
from qcompiler.passes.intervals import intervals
from qcompiler.types import DType, TensorType


def known(node: Node) -> tuple[float, float]:
    graph = graph_of(node)
    return intervals(graph)[graph.outputs[0]]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: Clamp(0.0)(x), (0.0, 3.0)),
        (lambda x: Clamp(0.0, 2.0)(x), (0.0, 2.0)),
        (lambda x: Clamp(4.0, 6.0)(x), (4.0, 4.0)),
        (lambda x: Sigmoid()(x), (0.0, 1.0)),
        (lambda x: Tanh()(x), (-1.0, 1.0)),
        (lambda x: Softmax()(x), (0.0, 1.0)),
        (lambda x: Add()(x, x), (-2.0, 6.0)),
        (lambda x: Reshape((4, 1))(x), (-1.0, 3.0)),
        (lambda x: Pad(((0, 0), (1, 1)), 5.0)(x), (-1.0, 5.0)),
        (lambda x: Concat(0)(x, const(torch.full((1, 4), -7.0))), (-7.0, 3.0)),
        (lambda x: Gather(0)(x, const([0, 0])), (-1.0, 3.0)),
        (lambda x: Gelu()(x), (-float("inf"), float("inf"))),
    ],
)
def test_intervals_through_ops(make: Callable[[Node], Node], expected: tuple[float, float]) -> None:
    assert known(make(source("x", -1.0, 3.0))) == expected


def test_intervals_are_cut_to_what_was_seen() -> None:
    x = source("x", -1.0, 3.0)
    assert known(held(Clamp(0.0, 6.0)(x), 0.0, 2.5)) == (0.0, 2.5)
    unseen = Input(TensorType((1, 4), DType.FLOAT32))(name="y")
    assert known(Clamp(0.0, 6.0)(unseen)) == (0.0, 6.0)
    assert known(Add()(unseen, unseen)) == (-float("inf"), float("inf"))
