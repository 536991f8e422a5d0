"""simplify: each rule fires where it must, not where it must not, and changes no number."""

import pytest
import torch
from nets import value

from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.observers import difference
from qcompiler.ops import (
    Add,
    Cast,
    Clamp,
    Concat,
    Conv2d,
    Div,
    Expand,
    Linear,
    Matmul,
    Mul,
    Neg,
    Pad,
    Permute,
    Reshape,
    Slice,
    Sub,
    const,
)
from qcompiler.passes.simplify import simplify
from qcompiler.pipeline import Pipeline
from qcompiler.rewrite import named
from qcompiler.types import DType


def simplified(*outputs, x):
    """The graph before and after, with the numbers compared."""
    torch.manual_seed(0)
    before = named(Graph((x,), outputs))
    after = Pipeline((simplify,))(before, Context())
    sample = (torch.randn(x.tensor.ints),)
    assert difference(before, after, sample) is None
    return after


def kinds(graph):
    return [n.op.kind for n in graph.nodes() if n.op.kind not in ("input", "const")]


C3 = const(torch.tensor([1.0, -2.0, 3.0]))
UNCHANGED = {
    "add zero": lambda x: Add()(x, const(0.0)),
    "zero on the left": lambda x: Add()(const(0.0), x),
    "times one": lambda x: Mul()(const([1.0, 1.0, 1.0]), x),
    "minus zero": lambda x: Sub()(x, const(0.0)),
    "over one": lambda x: Div()(x, const(1.0)),
    "reshape to itself": lambda x: Reshape((2, 3))(x),
    "reshape there and back": lambda x: Reshape((2, 3))(Reshape((6,))(x)),
    "permute there and back": lambda x: Permute((1, 0))(Permute((1, 0))(x)),
    "whole slice": lambda x: Slice(1, 0, 3)(x),
    "no pad": lambda x: Pad(((0, 0), (0, 0)))(x),
    "expand to itself": lambda x: Expand((2, 3))(x),
    "cast to itself": lambda x: Cast(DType.FLOAT32)(x),
    "concat of one": lambda x: Concat(0)(x),
}


@pytest.mark.parametrize("make", UNCHANGED.values(), ids=UNCHANGED)
def test_nothing_is_left(make):
    x = value(2, 3)
    after = simplified(Neg()(make(x)), x=x)
    assert kinds(after) == ["neg"]


REAL = {
    "broadcasting add of zeros": lambda x: Add()(x, const(torch.zeros(4, 2, 3))),
    "add of a small number": lambda x: Add()(x, const(1e-30)),
    "strided slice": lambda x: Slice(1, 0, 3, 2)(x),
    "transpose": lambda x: Permute((1, 0))(x),
    "pad": lambda x: Pad(((0, 1), (0, 0)))(x),
}


@pytest.mark.parametrize("make", REAL.values(), ids=REAL)
def test_what_works_stays(make):
    x = value(2, 3)
    assert len(kinds(simplified(make(x), x=x))) == 1


def test_constants_move_right():
    x = value(2, 3)
    (out,) = simplified(Mul()(C3, x), x=x).outputs
    assert out.inputs[0].op.kind == "input"


def test_subtraction_and_division_by_constants():
    x = value(2, 3)
    assert kinds(simplified(Sub()(x, C3), x=x)) == ["add"]
    assert kinds(simplified(Div()(x, C3), x=x)) == ["mul"]
    assert kinds(simplified(Div()(x, const([0.0, 1.0, 2.0])), x=x)) == ["div"]
    assert kinds(simplified(Div()(C3, x), x=x)) == ["div"]


def test_clamps_that_meet_become_one():
    x = value(2, 3)
    both = Clamp(0.0, 6.0)(Clamp(-1.0, 3.0)(x))
    (out,) = simplified(both, x=x).outputs
    assert out.op == Clamp(0.0, 3.0)
    apart = Clamp(4.0, 6.0)(Clamp(-1.0, 3.0)(x))
    assert kinds(simplified(apart, x=x)) == ["clamp", "clamp"]


def test_permute_of_ones_is_a_reshape():
    x = value(2, 1, 1, 3)
    assert kinds(simplified(Permute((0, 3, 1, 2))(x), x=x)) == ["reshape"]


W = const(torch.randn(4, 3, 3, 3))


def test_pad_joins_the_convolution():
    x = value(1, 3, 5, 5)
    padded = Pad(((0, 0), (0, 0), (0, 1), (2, 0)))(x)
    (out,) = simplified(Conv2d(padding=((1, 1), (0, 0)))(padded, W), x=x).outputs
    assert out.op == Conv2d(padding=((1, 2), (2, 0)))


@pytest.mark.parametrize(
    "pad",
    [
        Pad(((0, 0), (0, 0), (1, 1), (1, 1)), 1.0),
        Pad(((0, 1), (0, 0), (1, 1), (1, 1))),
        Pad(((0, 0), (0, 0), (-1, 1), (0, 0))),
    ],
)
def test_other_pads_stay(pad):
    x = value(1, 3, 5, 5)
    assert "pad" in kinds(simplified(Conv2d()(pad(x), W), x=x))


@pytest.mark.parametrize("pads, left", [((0, 1, 2, 0), 1), ((0, 0, 0, 1), 2), ((0, 1, 0, 1), 2)])
def test_pad_joins_the_convolution_of_channels_last(pads, left):
    x = value(1, 5, 6, 3 - pads[3])
    padded = Pad(tuple((0, p) for p in pads))(x)
    assert len(kinds(simplified(Conv2d(channels_last=True)(padded, W), x=x))) == left


def test_matmul_by_a_matrix_is_linear():
    x = value(2, 4, 3)
    w, b = const(torch.randn(3, 5)), const(torch.randn(5))
    assert kinds(simplified(Add()(b, Matmul()(x, w)), x=x)) == ["linear"]
    batched = const(torch.randn(2, 3, 5))
    assert kinds(simplified(Matmul()(x, batched), x=x)) == ["matmul"]


@pytest.mark.parametrize("shape, left", [((4, 1, 1), 1), ((1, 4, 1, 1), 1), ((1,), 2), ((4,), 2)])
def test_bias_must_be_per_channel(shape, left):
    x = value(1, 3, 4, 6)
    y = Conv2d()(x, W)  # [1, 4, 2, 4]: a [4] constant broadcasts along the width
    assert len(kinds(simplified(Add()(y, const(torch.randn(shape))), x=x))) == left


@pytest.mark.parametrize("shape, left", [((4,), 1), ((1, 1, 1, 4), 1), ((4, 1, 1), 2)])
def test_bias_of_channels_last(shape, left):
    x = value(1, 6, 8, 3)
    y = Conv2d(channels_last=True)(x, W)  # [1, 4, 6, 4]: [4, 1, 1] broadcasts along the height
    assert len(kinds(simplified(Add()(y, const(torch.randn(shape))), x=x))) == left


def test_addend_of_higher_rank_is_no_bias():
    y = Linear()(value(2, 3, name="x"), const(torch.randn(4, 3)))
    assert len(kinds(simplified(Add()(y, const(torch.randn(1, 1, 4))), x=y.inputs[0]))) == 2


def test_shared_anchor_keeps_its_value():
    x = value(2, 3)
    y = Linear()(x, const(torch.randn(5, 3)))
    after = simplified(Add()(y, const(torch.randn(5))), y, x=x)
    assert kinds(after) == ["linear", "add"]


def test_equal_nodes_are_merged():
    x = value(2, 3)
    twice = [Neg()(Add()(x, const([1.0, 2.0, 3.0]))) for _ in range(2)]
    assert kinds(simplified(Mul()(*twice), x=x)) == ["add", "neg", "mul"]


def test_inputs_are_never_merged():
    a, b = value(2, name="a"), value(2, name="b")
    graph = Pipeline((simplify,))(named(Graph((a, b), (Sub()(a, b),))), Context())
    ones, twos = torch.ones(2), 2 * torch.ones(2)
    assert interpret(graph, ones, twos).tolist() == [-1, -1]


@pytest.mark.parametrize("divisor", [1e-39, 1e39, [2.0, 1e-40]])
def test_division_by_what_has_no_inverse_stays(divisor):
    x = value(2, dtype=DType.FLOAT32)
    graph = named(Graph((x,), (Div()(x, const(divisor)),)))
    done = Pipeline((simplify,))(graph)
    assert any(isinstance(n.op, Div) for n in done.nodes())
