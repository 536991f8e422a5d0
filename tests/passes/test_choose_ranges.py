"""Chosen ranges: by the recipe's method, by what ops promise, valid in every corner."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import cnn, context
from plans import (
    CTX,
    MINMAX,
    ROWS,
    U8,
    chosen,
    graph_of,
    held,
    layer,
    params,
    random_weights,
    source,
    span,
)

from qcompiler import arith, passes
from qcompiler.graph import Level, Node, Note
from qcompiler.ops import Clamp, Input, Matmul, Reshape, Sigmoid, Tanh
from qcompiler.passes.choose_ranges import RangeError, choose_ranges
from qcompiler.recipe import RangeMethod, recipe_of
from qcompiler.stats import Stats
from qcompiler.types import DType, TensorType, symbol


def test_a_range_that_ops_promise_needs_no_statistics() -> None:
    x = Input(TensorType((1, 4), DType.FLOAT32))(name="x")
    y = Clamp(0.0, 6.0)(x, name="y").with_note(scheme=U8)
    q = params(chosen(y)["y"])
    assert span(q) == pytest.approx((0.0, 6.0)) and q.zero_point == 0


def test_a_fixed_range_is_taken_whatever_was_seen() -> None:
    x = source("x", -1.0, 3.0)
    found = chosen(held(Sigmoid()(x, name="s"), 0.3, 0.6), held(Tanh()(x, name="t"), 0.3, 0.6))
    assert span(params(found["s"])) == pytest.approx((0.0, 1.0))
    assert span(params(found["t"])) == pytest.approx((-1.0, 1.0), abs=0.005)


def test_nothing_known_is_an_error() -> None:
    x = Input(TensorType((1, 4), DType.FLOAT32))(name="x").with_note(scheme=U8)
    message = r"%x \(input\): expected statistics, got none.*run calibrate with data first"
    with pytest.raises(RangeError, match=message):
        choose_ranges.run(graph_of(x), CTX)


@pytest.mark.parametrize(
    ("low", "high", "zero_point"),
    [(0.0, 5.1, 0), (2.0, 5.1, 0), (-5.1, 0.0, 255), (-5.1, -1.0, 255), (-1.0, 4.1, 50)],
)
def test_zero_is_always_a_code(low: float, high: float, zero_point: int) -> None:
    q = params(chosen(source("x", low, high))["x"])
    assert q.zero_point == zero_point and 0 <= q.zero_point <= 255
    assert q.scale[0] == pytest.approx(max(high, -low, high - low) / 255)


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 2.5, -3.0, 1e20])
def test_a_constant_tensor_gets_valid_parameters(value: float) -> None:
    x = Input(TensorType((1, 4), DType.FLOAT32))(name="x")
    x = x.with_note(stats=Stats.of(torch.full((4,), value)), scheme=U8)
    q = params(chosen(x)["x"])
    assert arith.SCALE_MIN <= q.scale[0] <= arith.SCALE_MAX
    back = arith.dequantize(
        arith.TORCH,
        arith.quantize(
            arith.TORCH, torch.tensor([value]), arith.inverse(q.scale[0]), q.zero_point, 0, 255,
            "uint8",
        ),
        q.scale[0],
        q.zero_point,
    )  # fmt: skip
    assert float(back) == pytest.approx(value, rel=1e-6, abs=255 * arith.SCALE_MIN)


def test_a_tensor_of_masks_only_and_one_of_zeros_keep_ordinary_values() -> None:
    x = Input(TensorType((1, 4), DType.FLOAT32))(name="x")
    for value in (0.0, -float("inf")):
        node = x.with_note(stats=Stats.of(torch.full((4,), value)), scheme=U8)
        assert span(params(chosen(node)["x"])) == pytest.approx((-1.0, 1.0), abs=0.005)


@pytest.mark.parametrize("method", RangeMethod)
def test_the_method_is_the_recipes(method: RangeMethod) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(500_000, generator=g), torch.tensor([30.0])])
    x = Input(TensorType((1, 4), DType.FLOAT32))(name="x")
    x = x.with_note(stats=Stats.of(values), scheme=U8)
    ctx = replace(CTX, recipe=replace(MINMAX, range=method, percentile=99.9))
    high = span(params(chosen(x, ctx=ctx)["x"]))[1]
    expected = {
        RangeMethod.MINMAX: (29.9, 30.1),
        RangeMethod.PERCENTILE: (3.0, 3.6),
        RangeMethod.MSE: (4.0, 25.0),
        RangeMethod.ENTROPY: (3.0, 8.0),
    }
    low_end, high_end = expected[method]
    assert low_end < high < high_end


def test_dynamic_schemes_stay_without_parameters() -> None:
    x = source("x", -1.0, 3.0, scheme=ROWS)
    node = chosen(x)["x"]
    assert node.note.scheme == ROWS


def product(depth: Any) -> dict[str, Node]:
    a = Input(TensorType((2, depth), DType.FLOAT32))(name="a")
    b = Input(TensorType((depth, 2), DType.FLOAT32))(name="b")
    a, b = held(a, -1.0, 1.0), held(b, -1.0, 1.0)
    return chosen(Matmul()(a, b, name="y").with_note(precision=DType.INT8))


def test_products_of_activations_are_proven_or_float() -> None:
    assert product(512)["y"].note.precision is DType.INT8
    assert product(symbol("n", 1, 512))["y"].note.precision is DType.INT8
    beyond, unbounded = product(100_000)["y"], product(symbol("n"))["y"]
    assert beyond.note.precision is DType.FLOAT32 and "beyond int32" in beyond.note.reason
    assert unbounded.note.reason.startswith("its inner dimension n has no upper bound")


def test_the_same_graph_gives_the_same_bits() -> None:
    def once() -> list[Note]:
        w = random_weights(8, 8, 4, 3, 3)
        y = layer(w, random_weights(9, 8, 1).reshape(-1), (-2.0, 6.0))
        relu = held(Clamp(0.0)(y, name="relu"), 0.0, 9.0)
        flat = held(Reshape((1, 288))(relu, name="flat"), 0.0, 9.0)
        return [n.note for n in chosen(flat, ctx=replace(CTX, recipe=recipe_of("int8"))).values()]

    assert once() == once()


def test_only_notes_change() -> None:
    graph = graph_of(layer(random_weights(10, 4, 8)))
    done = choose_ranges.run(graph, CTX)
    assert done.level is Level.PLANNED
    for before, after in zip(graph.nodes(), done.nodes(), strict=True):
        assert (before.name, before.op, before.type) == (after.name, after.op, after.type)
        assert before.note.stats is after.note.stats
    assert all(n.note.scheme is None or n.note.scheme.params is None for n in graph.nodes())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("operand", ["w", "b"])
def test_weights_that_are_no_numbers_are_refused_by_layer(value, operand):
    graph = cnn()
    layer = next(n for n in graph.nodes() if n.name == "project")
    broken = layer.inputs["wb".index(operand) + 1]
    broken.op.value.reshape(-1)[0] = value
    expected = rf"%project = conv2d: expected finite weights, got NaN or inf in %project\.{operand}"
    with pytest.raises(RangeError, match=expected):
        passes.quantize(graph, context(graph))


def test_weights_too_small_for_any_scale_stay_float():
    graph = cnn()
    layer = next(n for n in graph.nodes() if n.name == "project")
    layer.inputs[1].op.value.mul_(1e-22)
    done = passes.quantize(graph, context(graph))
    (kept,) = [n for n in done.nodes() if n.name == "project"]
    assert kept.note.precision is DType.FLOAT32
    assert "too little for a scale of 2^-60" in kept.note.reason
