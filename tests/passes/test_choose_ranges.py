"""Chosen ranges: intervals, shared scales, and weight scales proven by brute force."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node, Note
from qcompiler.ops import (
    Add, AvgPool2d, Clamp, Concat, Const, Conv2d, Flip, Gather, Gelu, Input, Linear, Matmul,
    MaxPool2d, Packing, Pad, Permute, Reshape, Sigmoid, Slice, Softmax, Tanh, Window, const,
)  # fmt: skip
from qcompiler.passes.choose_ranges import RangeError, choose_ranges
from qcompiler.passes.intervals import intervals
from qcompiler.recipe import RangeMethod, recipe_of
from qcompiler.rewrite import named
from qcompiler.stats import Stats
from qcompiler.types import DType, QParams, Scheme, TensorType, symbol

U8 = Scheme(DType.UINT8, 0, 255)
ROWS = Scheme(DType.INT8, -127, 127, symmetric=True, dynamic=True)
WEIGHT = Scheme(DType.INT8, -127, 127, symmetric=True, axis=0)
MINMAX = replace(recipe_of("int8"), range=RangeMethod.MINMAX)


@dataclass(frozen=True)
class Toy:
    """A machine that adds two products of u8 x s8 in 16 bits, four of them in a lane."""

    rule: arith.SumRule | None = arith.SumRule(2)  # noqa: RUF009  (frozen)
    name: str = "toy"

    def refuses(self, node: Node) -> str | None:
        return None

    def refuses_integer(self, node: Node) -> str | None:
        return None

    def sum_rule(self, a: DType, b: DType) -> arith.SumRule | None:
        return self.rule if a is DType.UINT8 else None

    def depth(self, a: DType, b: DType) -> int:
        return 4

    def packing(self, node: Node) -> Packing | None:
        return Packing(1, 4)


CTX = Context(target=Toy(), recipe=MINMAX)


def spread(low: float, high: float) -> Stats:
    return Stats.of(torch.linspace(low, high, 101))


def source(name: str, low: float, high: float, *shape: int, scheme: Scheme | None = U8) -> Node:
    node = Input(TensorType(shape or (1, 4), DType.FLOAT32))(name=name)
    return replace(node, note=Note(stats=spread(low, high), scheme=scheme))


def held(node: Node, low: float, high: float, scheme: Scheme | None = U8) -> Node:
    return node.with_note(stats=spread(low, high), scheme=scheme)


def graph_of(*outputs: Node) -> Graph:
    """The graph that computes the outputs, at the level ranges are chosen."""
    whole = Graph((), outputs)
    inputs = tuple(n for n in whole.nodes() if isinstance(n.op, Input))
    return named(replace(whole, inputs=inputs, level=Level.PLANNED))


def chosen(*outputs: Node, ctx: Context = CTX) -> dict[str, Node]:
    return {n.name: n for n in choose_ranges.run(graph_of(*outputs), ctx).nodes()}


def params(node: Node) -> QParams:
    assert node.note.scheme is not None and node.note.scheme.params is not None
    return node.note.scheme.params


def span(q: QParams) -> tuple[float, float]:
    return q.scale[0] * (q.qmin - q.zero_point), q.scale[0] * (q.qmax - q.zero_point)


# Intervals -------------------------------------------------------------------------------------


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


# Shared scales ---------------------------------------------------------------------------------


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


# Weights ---------------------------------------------------------------------------------------


def weighted(name: str, value: torch.Tensor) -> Node:
    return const(value, name=name).with_note(scheme=WEIGHT)


def layer(
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    x: tuple[float, float] = (0.0, 6.0),
    scheme: Scheme = U8,
    groups: int = 1,
) -> Node:
    biases = [const(bias, name="b")] if bias is not None else []
    if w.ndim == 2:
        data = source("x", *x, 1, w.shape[1], scheme=scheme)
        made = Linear()(data, weighted("w", w), *biases, name="y")
    else:
        data = source("x", *x, 1, w.shape[1] * groups, 8, 8, scheme=scheme)
        made = Conv2d(groups=groups)(data, weighted("w", w), *biases, name="y")
    return made.with_note(precision=DType.INT8)


def codes_of(found: dict[str, Node]) -> torch.Tensor:
    w = found["w"].op
    assert isinstance(w, Const)
    return arith.quantize_weight(w.value, torch.tensor(params(found["w"]).scale), 0, 127)


def every_pair_fits(codes: torch.Tensor, depth: int = 4) -> bool:
    """By brute force: adjacent products in memory order, at each end of the code range."""
    rows = codes.int().reshape(*codes.shape, *[1] * (4 - codes.ndim)).permute(0, 2, 3, 1)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % depth)).flatten(1)
    a, b = rows[:, ::2], rows[:, 1::2]
    sums = [p * a + q * b for p in (0, 255) for q in (0, 255)]
    return all(bool(((s >= -(2**15)) & (s < 2**15)).all()) for s in sums)


def random_weights(seed: int, *shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=g) * torch.exp(
        torch.randn(shape[0], *[1] * (len(shape) - 1), generator=g) * 2
    )
    return w


@given(
    st.integers(0, 10_000),
    st.sampled_from([(7, 3, 3, 3), (5, 6, 1, 1), (9, 4, 2, 3), (6, 13), (8, 32), (3, 1)]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_channel_is_proven_by_brute_force(
    seed: int, shape: tuple[int, ...], with_bias: bool
) -> None:
    w = random_weights(seed, *shape)
    if seed % 3 == 0:
        w[0] = w[0].abs().max()  # every pair at its extreme
    bias = random_weights(seed + 1, shape[0], 1).reshape(-1) if with_bias else None
    found = chosen(layer(w, bias))
    assert every_pair_fits(codes_of(found))
    scales = torch.tensor(params(found["w"]).scale)
    assert bool((scales >= (w.flatten(1).abs().amax(1) / 127).float() * (1 - 1e-6)).all())


def test_absmax_alone_would_not_be_proven_and_the_proof_costs_no_more_than_it_must() -> None:
    w = torch.ones(1, 2)
    found = chosen(layer(w))
    assert codes_of(found).tolist() == [[64, 64]]  # 255 * (64 + 64) fits int16, 65 + 64 does not
    plain = arith.quantize_weight(w, arith.weight_scales(w, 0), 0)
    assert not every_pair_fits(plain)


def test_no_rule_means_absmax() -> None:
    w = random_weights(1, 6, 12)
    found = chosen(layer(w), ctx=replace(CTX, target=Toy(None)))
    expected = (w.abs().amax(1).double() / 127).float()
    assert torch.equal(torch.tensor(params(found["w"]).scale), expected)
    assert chosen(layer(w), ctx=replace(CTX, target=None))["w"].note == found["w"].note


def test_depthwise_weights_need_no_constraint() -> None:
    w = random_weights(2, 8, 1, 3, 3)
    found = chosen(layer(w, groups=8))
    expected = (w.flatten(1).abs().amax(1).double() / 127).float()
    assert torch.equal(torch.tensor(params(found["w"]).scale), expected)


def test_grouped_weights_are_proven() -> None:
    assert every_pair_fits(codes_of(chosen(layer(random_weights(3, 8, 3, 3, 3), groups=4))))


def test_pairs_are_of_adjacent_input_channels_not_of_kernel_columns() -> None:
    """Channels (100, 100) at one tap pair up; at two taps of one channel each they do not."""
    tap, channel = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    tap[0, :, 0, 0] = 1.0
    channel[0, 0, 0, :] = 1.0
    assert codes_of(chosen(layer(tap))).abs().max() == 64
    assert codes_of(chosen(layer(channel))).abs().max() == 127


def test_dead_channels_and_huge_folded_biases() -> None:
    w = random_weights(4, 6, 16)
    w[1], w[2] = 0.0, 1e-30
    bias = torch.tensor([0.1, 5.0, -3.0, 1e4, -1e6, 0.0])
    found = chosen(layer(w, bias))
    q, x = params(found["w"]), params(found["x"])
    scales = torch.tensor(q.scale)
    b = arith.quantize_bias(bias, x.scale[0], scales)
    assert bool((b.abs() <= 2**24 + 1).all())
    step = x.scale[0] * scales.double()
    assert bool(((b * step - bias).abs() <= step * 0.5001 + 1e-6).all())
    codes = codes_of(found)
    low, high = arith.int32_bounds(codes, b, x.zero_point, x.qmin, x.qmax)
    assert arith.fits_int32(low, high) and every_pair_fits(codes)
    assert bool((codes[1:3] == 0).all())
    assert found["y"].note.precision is DType.INT8


def test_rows_quantized_at_run_time_have_no_bias_constraint() -> None:
    w = random_weights(5, 4, 8)
    found = chosen(layer(w, torch.full((4,), 1e9), scheme=ROWS))
    expected = (w.abs().amax(1).double() / 127).float()
    assert torch.equal(torch.tensor(params(found["w"]).scale), expected)


@dataclass(frozen=True)
class SignedToy(Toy):
    def sum_rule(self, a: DType, b: DType) -> arith.SumRule | None:
        return arith.SumRule(4) if a is DType.INT8 else None


def test_rows_quantized_at_run_time_obey_the_rule_for_signed_codes() -> None:
    w = torch.ones(2, 8)
    found = chosen(layer(w, scheme=ROWS), ctx=replace(CTX, target=SignedToy()))
    code = int(codes_of(found)[0, 0])
    assert 4 * 127 * code < 2**15 <= 4 * 127 * (code + 1)


def test_weights_alone_take_absmax() -> None:
    w = random_weights(6, 4, 8)
    node = layer(w)
    x = node.inputs[0].with_note(scheme=None)
    found = chosen(node.with_inputs((x, *node.inputs[1:])))
    assert params(found["w"]).scale == tuple((w.abs().amax(1).double() / 127).float().tolist())


def test_a_weight_of_two_layers_suits_both() -> None:
    w, bias = torch.ones(4, 4), torch.full((4,), 100.0)
    shared = weighted("w", w)
    small, big = source("small", 0.0, 1e-3), source("big", 0.0, 1.0)
    y = Linear()(small, shared, const(bias, name="b"), name="y")
    z = Linear()(big, shared, const(bias, name="c"), name="z")
    found = chosen(y, z)
    alone = chosen(y)
    assert params(found["w"]) == params(alone["w"])  # the smaller scale needs more
    assert params(found["w"]).scale[0] > params(chosen(z)["w"]).scale[0]


def test_a_layer_beyond_int32_stays_float_and_says_why() -> None:
    w = torch.ones(2, 70_000)
    found = chosen(layer(w), ctx=replace(CTX, target=Toy(None)))
    assert found["w"].note.scheme is None
    assert found["y"].note.precision is DType.FLOAT32
    assert found["y"].note.reason == "its sums reach 2266950000 over 70000 products, beyond int32"
    assert params(found["x"]).scale[0] == pytest.approx(6 / 255)


def test_weights_that_are_not_finite_stay_float_and_say_why() -> None:
    w = random_weights(7, 3, 4)
    w[1, 2] = float("nan")
    found = chosen(layer(w))
    assert found["y"].note.precision is DType.FLOAT32
    assert "channel 1: expected finite numbers" in found["y"].note.reason


# Matmul ----------------------------------------------------------------------------------------


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


# The whole -------------------------------------------------------------------------------------


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
