"""Weight scales: every channel proven by brute force, dead channels and huge biases included."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import CTX, ROWS, Toy, chosen, layer, params, random_weights, source, weighted

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.ops import Const, Linear, const
from qcompiler.target import Sums
from qcompiler.types import DType


def codes_of(found: dict[str, Node]) -> torch.Tensor:
    w = found["w"].op
    assert isinstance(w, Const)
    return arith.quantize_weight(w.value, torch.tensor(params(found["w"]).scale), 0, 127)


def every_pair_fits(codes: torch.Tensor, groups: int = 1) -> bool:
    """By brute force: adjacent products in memory order, at each end of the code range.

    Odd channels of several taps follow each other along a kernel row, as they do in memory.
    """
    rows = codes.int().reshape(*codes.shape, *[1] * (4 - codes.ndim)).permute(0, 2, 3, 1)
    if groups == 1 and rows.shape[2] > 1 and rows.shape[3] % 2:
        rows = rows.flatten(2)
    rows = torch.nn.functional.pad(rows, (0, rows.shape[-1] % 2)).flatten(1)
    a, b = rows[:, ::2], rows[:, 1::2]
    sums = [p * a + q * b for p in (0, 255) for q in (0, 255)]
    return all(bool(((s >= -(2**15)) & (s < 2**15)).all()) for s in sums)


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
    w = random_weights(3, 8, 3, 3, 3)
    assert every_pair_fits(codes_of(chosen(layer(w, groups=4))), groups=4)


def test_pairs_are_of_adjacent_input_channels_not_of_kernel_columns() -> None:
    """Channels (100, 100) at one tap pair up; at two taps of one channel each they do not."""
    tap, channel = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    tap[0, :, 0, 0] = 1.0
    channel[0, 0, 0, :] = 1.0
    assert codes_of(chosen(layer(tap))).abs().max() == 64
    assert codes_of(chosen(layer(channel))).abs().max() == 127


def test_pairs_reach_into_the_next_column_where_channels_do_not_fill_a_step() -> None:
    """Of three channels the first of a tap follows the last of the tap before it."""
    apart, pair = torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    apart[0, 1, 0, 0] = apart[0, 2, 0, 0] = 1.0
    pair[0, 2, 0, 0] = pair[0, 0, 0, 1] = 1.0
    assert codes_of(chosen(layer(apart))).abs().max() == 127
    assert codes_of(chosen(layer(pair))).abs().max() == 64


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
    def sums(self, low: int, high: int) -> tuple[Sums, ...]:
        return (Sums(arith.SumRule(4), low, high),) if low < 0 else ()


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
