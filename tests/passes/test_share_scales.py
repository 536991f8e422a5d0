"""Which tensors share a scale, and which are cut apart."""

from itertools import pairwise

import pytest
import torch
from plans import U8, chosen, held, params, source, span

from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Flip,
    MaxPool2d,
    Pad,
    Permute,
    Reshape,
    Sigmoid,
    Slice,
    Tanh,
    Window,
)
from qcompiler.stats import Stats
from qcompiler.types import DType, Scheme


def same(*nodes: Node) -> bool:
    return all(params(a) == params(b) for a, b in pairwise(nodes))


def test_movement_shares_its_operands_scale_and_the_source_decides() -> None:
    x = source("x", -4.0, 4.0, 1, 2, 4, 4)
    pool = held(MaxPool2d(Window((2, 2), (2, 2)))(x, name="pool"), -1.5, 4.0)
    flat = held(Reshape((1, 8))(pool, name="flat"), -1.5, 4.0)
    found = chosen(held(Permute((1, 0))(flat, name="turned"), -1.5, 4.0))
    assert same(found["x"], found["pool"], found["flat"], found["turned"])
    assert span(params(found["x"])) == pytest.approx((-4.0, 4.0), abs=0.04)


def test_compute_has_a_scale_of_its_own() -> None:
    x = source("x", -4.0, 4.0, 1, 2, 4, 4)
    found = chosen(held(AvgPool2d(Window((2, 2)))(x, name="mean"), -2.0, 2.0))
    assert not same(found["x"], found["mean"])


def test_ranges_far_apart_are_cut() -> None:
    x = source("x", -100.0, 100.0)
    part = held(Slice(1, 0, 2)(x, name="part"), -2.0, 2.0)
    found = chosen(held(Flip((1,))(part, name="flip"), -2.0, 2.0))
    assert not same(found["x"], found["part"])
    assert same(found["part"], found["flip"])
    assert span(params(found["part"])) == pytest.approx((-2.0, 2.0), abs=0.02)


def test_a_class_does_not_creep_apart() -> None:
    """Each step is within the ratio; all steps together are not."""
    x = source("x", 0.0, 27.0)
    steps = [x]
    for k, high in enumerate((9.0, 3.0, 1.0)):
        steps.append(held(Slice(1, 0, 4)(steps[-1], name=f"s{k}"), 0.0, high))
    found = chosen(steps[-1])
    assert same(found["x"], found["s0"]) and same(found["s1"], found["s2"])
    assert span(params(found["s1"])) == pytest.approx((0.0, 3.0))


def test_zeros_share_with_anything() -> None:
    x = source("x", -4.0, 4.0)
    zeros = Slice(1, 0, 2)(x, name="zeros").with_note(stats=Stats.of(torch.zeros(4)), scheme=U8)
    found = chosen(zeros)
    assert same(found["x"], found["zeros"])


def test_a_border_value_counts() -> None:
    x = source("x", 0.0, 4.0)
    pad = held(Pad(((0, 0), (1, 1)), -2.0)(x, name="pad"), -2.0, 4.0)
    found = chosen(pad)
    assert same(found["x"], found["pad"])
    assert span(params(found["pad"])) == pytest.approx((-2.0, 4.0), abs=0.03)


def test_what_is_fixed_decides_its_class() -> None:
    x = source("x", -4.0, 4.0)
    gate = held(Sigmoid()(x, name="gate"), 0.4, 0.9)
    found = chosen(held(Reshape((4, 1))(gate, name="view"), 0.4, 0.9))
    assert same(found["gate"], found["view"])
    assert span(params(found["view"])) == pytest.approx((0.0, 1.0))


def test_concat_lends_its_scale_to_what_only_it_reads() -> None:
    a, b = source("a", -1.0, 2.0), source("b", -3.0, 1.0)
    both = held(Concat(0)(a, b, name="both"), -3.0, 2.0)
    found = chosen(both)
    assert same(found["a"], found["b"], found["both"])
    assert span(params(found["both"])) == pytest.approx((-3.0, 2.0), abs=0.02)


def test_concat_forces_nothing_on_others() -> None:
    a, b, c = source("a", -1.0, 2.0), source("b", -3.0, 1.0), source("c", -0.1, 0.1)
    both = held(Concat(0)(a, b, c, name="both"), -3.0, 2.0)
    other = held(Clamp(0.0)(a, name="other"), 0.0, 2.0)
    found = chosen(both, other)
    assert span(params(found["a"])) == pytest.approx((-1.0, 2.0), abs=0.02)  # two users
    assert span(params(found["c"])) == pytest.approx((-0.1, 0.1), abs=0.01)  # far narrower
    assert same(found["b"], found["both"])
    assert span(params(found["both"])) == pytest.approx((-3.0, 2.0), abs=0.02)


def test_a_clamp_lends_its_scale_to_what_only_it_reads() -> None:
    x = source("x", -4.0, 4.0)
    raw = Add()(x, x, name="raw").with_note(scheme=U8)  # not measured
    relu = held(Clamp(0.0)(raw, name="relu"), 0.0, 8.0)
    found = chosen(held(Reshape((4, 1))(relu, name="view"), 0.0, 8.0))
    assert same(found["raw"], found["relu"], found["view"])
    assert span(params(found["raw"])) == pytest.approx((0.0, 8.0), abs=0.04)
    assert not same(found["x"], found["raw"])


def test_a_clamp_does_not_narrow_what_others_read_or_what_was_moved() -> None:
    x = source("x", -4.0, 4.0)
    both = held(Add()(x, x, name="both"), -8.0, 8.0)
    relu = held(Clamp(0.0)(both, name="relu"), 0.0, 8.0)
    view = held(Reshape((4, 1))(x, name="view"), -4.0, 4.0)
    low = held(Clamp(0.0)(view, name="low"), 0.0, 4.0)
    found = chosen(relu, low, held(Reshape((4, 1))(both, name="other"), -8.0, 8.0))
    assert span(params(found["both"])) == pytest.approx((-8.0, 8.0), abs=0.07)
    assert span(params(found["relu"])) == pytest.approx((0.0, 8.0), abs=0.04)
    assert same(found["x"], found["view"]) and not same(found["view"], found["low"])


def test_an_operand_that_is_also_an_output_keeps_its_scale() -> None:
    a, b = source("a", -1.0, 2.0), source("b", -3.0, 1.0)
    found = chosen(held(Concat(0)(a, b, name="both"), -3.0, 2.0), a)
    assert not same(found["a"], found["both"])


def test_a_class_with_two_fixed_ranges_is_cut() -> None:
    x = source("x", -4.0, 4.0)
    s, t = held(Sigmoid()(x, name="s"), 0.1, 0.9), held(Tanh()(x, name="t"), -0.9, 0.9)
    found = chosen(held(Concat(0)(s, t, name="both"), -0.9, 0.9))
    assert same(found["both"], found["s"]) and not same(found["both"], found["t"])
    assert span(params(found["t"])) == pytest.approx((-1.0, 1.0), abs=0.005)
    assert span(params(found["both"])) == pytest.approx((-0.9, 1.0), abs=0.005)


def test_equal_fixed_ranges_share() -> None:
    x = source("x", -4.0, 4.0)
    s, t = held(Sigmoid()(x, name="s"), 0.1, 0.9), held(Sigmoid()(x, name="t"), 0.2, 0.8)
    found = chosen(held(Concat(0)(s, t, name="both"), 0.1, 0.9))
    assert same(found["s"], found["t"], found["both"])


def test_schemes_that_differ_do_not_share() -> None:
    x = source("x", -4.0, 4.0)
    narrow = Scheme(DType.UINT8, 0, 127)
    found = chosen(held(Reshape((4, 1))(x, name="view"), -4.0, 4.0, narrow))
    assert params(found["view"]).qmax == 127 and params(found["x"]).qmax == 255
