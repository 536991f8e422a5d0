"""Accumulator proofs against brute force: exact bounds, smallest scales, nothing unproven."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcompiler import arith
from qcompiler.arith import TORCH, ArithError, SumRule

MADDUBS = SumRule(2)
CODE = st.integers(-127, 127)


@st.composite
def code_range(draw: st.DrawFn) -> tuple[int, int]:
    return draw(st.sampled_from([(0, 255), (0, 127), (-128, 127), (-127, 127), (3, 200), (-9, -2)]))


def subset_sums(codes: list[int], a_range: tuple[int, int]) -> tuple[int, int]:
    """Extremes over all activations at their ends and over every subset of the products."""
    values = {0, *a_range}
    sums = [
        sum(w * a for w, a in zip(codes, acts, strict=True))
        for acts in product(sorted(values), repeat=len(codes))
    ]
    return min(sums), max(sums)


@given(
    st.lists(st.lists(CODE, min_size=7, max_size=7), min_size=1, max_size=3),
    code_range(),
    st.integers(1, 4),
)
@example([[127, 127, -127, -127, 127, -127, 1]], (0, 255), 2)
def test_partial_sums_are_those_of_brute_force(
    rows: list[list[int]], a_range: tuple[int, int], products: int
) -> None:
    low, high = arith.partial_sum_bounds(torch.tensor(rows), *a_range, products)
    for channel, row in enumerate(rows):
        groups = [row[i : i + products] for i in range(0, len(row), products)]
        sums = [subset_sums(group, a_range) for group in groups]
        assert low[channel] == min(s[0] for s in sums)
        assert high[channel] == max(s[1] for s in sums)


RULES = [SumRule(2, runs=2, stride=2), SumRule(4, runs=2, stride=4), SumRule(8, runs=4, stride=4),
         SumRule(4, runs=4, stride=2), SumRule(2, runs=2, stride=1)]  # fmt: skip


@given(st.lists(CODE, min_size=1, max_size=19), code_range(), st.sampled_from(RULES))
def test_products_that_lie_apart_are_added_as_the_instruction_does(
    row: list[int], a_range: tuple[int, int], rule: SumRule
) -> None:
    """Product k of a block of `runs * stride` goes to sum `k % stride // neighbours`."""
    low, high = arith.partial_sum_bounds(torch.tensor([row]), *a_range, rule)
    sums: dict[tuple[int, int], list[int]] = {}
    for k, code in enumerate(row):
        block, within = divmod(k, rule.runs * rule.stride)
        sums.setdefault((block, within % rule.stride // rule.neighbours), []).append(code)
    bounds = [subset_sums(group, a_range) for group in sums.values()]
    # Groups that hold nothing but padding are there, too.
    assert low.item() == min(0, *(b[0] for b in bounds))
    assert high.item() == max(0, *(b[1] for b in bounds))


def test_two_products_of_signed_codes_always_fit() -> None:
    """Why smull and smlal need no constraint: -128 * -127 twice is below 2^15."""
    worst = torch.tensor([[127, -127] * 3, [-127] * 6])
    rule = SumRule(2, runs=2, stride=2)
    assert arith.fits(worst, -128, 127, rule).all()
    assert not arith.fits(worst, -128, 127, replace(rule, products=3, runs=3)).any()


def test_partial_sums_over_every_activation() -> None:
    """The ends of the range are the extremes: all activations of a tiny range, one by one."""
    w = torch.tensor([[3, -2, 1, 5]])
    low, high = arith.partial_sum_bounds(w, -1, 2, 2)
    sums = [3 * a - 2 * b for a, b in product(range(-1, 3), repeat=2)]
    sums += [a + 5 * b for a, b in product(range(-1, 3), repeat=2)]
    assert (low.item(), high.item()) == (min(sums), max(sums))


def test_fits_is_true_exactly_at_the_edge() -> None:
    """128 codes of 255 fit in int16, 129 do not; and a limit that is met exactly still fits."""
    exact = torch.tensor([[100, 100], [-100, -100]])
    assert arith.fits(exact, 0, 255, SumRule(2, -51000, 51000)).tolist() == [True, True]
    assert arith.fits(exact, 0, 255, SumRule(2, -50999, 50999)).tolist() == [False, False]
    w = torch.tensor([[127, 1], [127, 2], [-127, -1], [-127, -2], [127, -127]], dtype=torch.int8)
    assert arith.fits(w, 0, 255, MADDUBS).tolist() == [True, False, True, False, True]
    assert arith.fits(w, 0, 255, None).all()
    assert arith.fits(w, 0, 127, MADDUBS).all()
    assert not arith.fits(w, 0, 127, SumRule(2, -1000, 1000)).any()


@pytest.mark.parametrize(("products", "lo", "hi"), [(0, -1, 1), (2, 1, 5), (2, -5, -1)])
def test_a_rule_that_is_none_is_refused(products: int, lo: int, hi: int) -> None:
    with pytest.raises(ArithError, match="expected products >= 1 and lo <= 0 <= hi"):
        SumRule(products, lo, hi)
    with pytest.raises(ArithError, match="expected whole runs"):
        SumRule(4, runs=3)
    with pytest.raises(ArithError, match="a stride of whole runs"):
        SumRule(4, runs=2, stride=3)


def next_smaller(scale: torch.Tensor) -> torch.Tensor:
    return (scale.view(torch.int32) - 1).view(torch.float32)


@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6), min_size=1, max_size=4
    ),
    st.sampled_from([(0, 255), (0, 127), (-128, 127)]),
    st.sampled_from(
        [SumRule(1), SumRule(2), SumRule(4), SumRule(8), SumRule(2, -2000, 1000), *RULES]
    ),
    st.sampled_from([7, 127]),
)
@example([[1.0, 1.0, -1.0, -1.0, 1.0, 1.0], [0.0] * 6], (0, 255), MADDUBS, 127)
@example([[1e-30, 1e-30, 0.0, 0.0, 1e-45, -1e-45]], (0, 255), MADDUBS, 127)
def test_proof_scale_is_proven_and_the_smallest(
    rows: list[list[float]], a_range: tuple[int, int], rule: SumRule, qmax: int
) -> None:
    w = torch.tensor(rows)
    base = arith.weight_scales(w, 0, qmax=qmax)
    scale = arith.proof_scale(w, qmax, *a_range, rule)
    assert scale.dtype == torch.float32
    assert (scale >= base).all()
    assert arith.fits(arith.quantize_weight(w, scale, 0, qmax), *a_range, rule).all()
    smaller = arith.quantize_weight(w, next_smaller(scale), 0, qmax)
    assert ((scale == base) | ~arith.fits(smaller, *a_range, rule)).all()


@pytest.mark.parametrize("products", [2, 4, 8])
@pytest.mark.parametrize("spread", ["normal", "uniform", "binary"])
def test_proof_scale_on_layers(products: int, spread: str) -> None:
    """Larger layers; also any larger scale is proven, as `weight_scales(proof=...)` relies on."""
    generator = torch.Generator().manual_seed(products)
    w = torch.randn(32, 291, generator=generator)
    w = {"normal": w, "uniform": w.sigmoid() - 0.5, "binary": w.sign()}[spread]
    rule = SumRule(products)
    scale = arith.proof_scale(w, 127, 0, 255, rule)
    base = arith.weight_scales(w, 0)
    assert (scale > base).any()
    assert not arith.fits(arith.quantize_weight(w, next_smaller(scale), 0), 0, 255, rule)[
        scale > base
    ].any()
    for factor in (1.0, 1.0 + 2.0**-20, 1.01, 1.7, 1000.0):
        larger = arith.weight_scales(w, 0, proof=scale * factor)
        assert arith.fits(arith.quantize_weight(w, larger, 0), 0, 255, rule).all()


def test_without_a_rule_the_constraint_is_empty() -> None:
    w = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(arith.proof_scale(w, 127, 0, 255, None), arith.weight_scales(w, 0))
    w[2] = 0
    assert arith.proof_scale(w, 127, 0, 255, MADDUBS)[2] == 2.0**-60


def test_proven_weights_survive_the_saturating_instruction() -> None:
    """vpmaddubsw by its definition, on random and extreme activations: never saturates."""
    generator = torch.Generator().manual_seed(9)
    w = torch.rand(16, 64, generator=generator) - 0.5
    codes = arith.quantize_weight(w, arith.proof_scale(w, 127, 0, 255, MADDUBS), 0).int()
    acts = torch.randint(0, 256, (200, 1, 64), generator=generator)
    acts[:50] = torch.randint(0, 2, (50, 1, 64), generator=generator) * 255
    acts[50:66] = (codes > 0)[:, None] * 255
    acts[66:82] = (codes < 0)[:, None] * 255
    pairs = (acts * codes).unflatten(-1, (-1, 2)).sum(-1)
    assert torch.equal(pairs, pairs.clamp(-32768, 32767))
    plain = arith.quantize_weight(w, arith.weight_scales(w, 0), 0).int()
    assert not arith.fits(plain, 0, 255, MADDUBS).all(), "the proof had something to do"


@given(
    st.lists(CODE, min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(-(2**24), 2**24)),
    st.integers(-128, 255),
    code_range(),
)
def test_int32_bounds_cover_every_order(
    row: list[int], bias: int | None, zp: int, a_range: tuple[int, int]
) -> None:
    tensor = None if bias is None else torch.tensor([bias], dtype=torch.int32)
    low, high = arith.int32_bounds(torch.tensor([row], dtype=torch.int8), tensor, zp, *a_range)
    sums = subset_sums(row, a_range)
    constants = [-zp * sum(row), bias or 0]
    partial = [
        total + sum(chosen)
        for total in sums
        for count in range(3)
        for chosen in combinations(constants, count)
    ]
    assert (low.item(), high.item()) == (min(partial), max(partial))
    finals = [
        (bias or 0) + sum(w * (a - zp) for w, a in zip(row, acts, strict=True))
        for acts in product(a_range, repeat=len(row))
    ]
    assert low.item() <= min(finals) <= max(finals) <= high.item()


def test_int32_bounds_of_large_folded_biases() -> None:
    """EfficientNet-Lite0's kind of channel: a bias far above what its tiny weights can add."""
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(3, 288, generator=generator) * torch.tensor([[1e-12], [0.0], [0.1]])
    bias, sx = torch.tensor([7.5, -3.25, 0.5]), arith.float32(0.0235)
    proof = arith.proof_scale(w, 127, 0, 255, MADDUBS)
    plain = arith.weight_scales(w, 0, proof=proof)
    with pytest.raises(ArithError, match=r"channel 0: 7\.5"):
        arith.quantize_bias(bias, sx, plain)
    scales = arith.weight_scales(w, 0, x_scale=sx, bias=bias, proof=proof)
    assert (scales[:2] > plain[:2]).all()
    assert scales[2] == plain[2]
    codes = arith.quantize_weight(w, scales, 0)
    low, high = arith.int32_bounds(codes, arith.quantize_bias(bias, sx, scales), 255, 0, 255)
    assert arith.fits_int32(low, high)
    assert arith.fits(codes, 0, 255, MADDUBS).all()
    exact = sx * scales.double() * arith.quantize_bias(bias, sx, scales)
    torch.testing.assert_close(exact[:2], bias[:2].double(), rtol=1e-6, atol=0)


def test_fits_int32_at_its_edges() -> None:
    assert arith.fits_int32(-(2**31), 2**31 - 1)
    assert not arith.fits_int32(-(2**31) - 1, 0)
    assert not arith.fits_int32(0, 2**31)
    assert not arith.fits_int32(torch.tensor([0, 0]), torch.tensor([2**31, 0]))
    widest = torch.full((1, 2**17), 127, dtype=torch.int32)
    assert not arith.fits_int32(*arith.int32_bounds(widest, None, 0, 0, 255))


@given(
    st.integers(1, 3), code_range(), st.integers(-128, 255), code_range(), st.integers(-128, 255)
)
def test_matmul_bounds_cover_all_products(
    k: int, a_range: tuple[int, int], za: int, b_range: tuple[int, int], zb: int
) -> None:
    low, high = arith.matmul_bounds(k, a_range, za, b_range, zb)
    ends = product(a_range, b_range)
    finals = [(a - za) * (b - zb) for a, b in ends]
    terms = [
        [a * b for a in (0, *a_range) for b in (0, *b_range)],
        [-za * b for b in (0, *b_range)],
        [-zb * a for a in (0, *a_range)],
        [0, za * zb],
    ]
    assert low <= k * min(finals) <= k * max(finals) <= high
    assert low == k * sum(map(min, terms))
    assert high == k * sum(map(max, terms))


def test_accumulators_and_requantize_stay_exact_at_the_extremes() -> None:
    """All codes at their ends through a proven channel: int32 arithmetic equals Python's."""
    codes = torch.full((1, 4608), 64, dtype=torch.int32)
    low, high = arith.int32_bounds(codes, torch.tensor([2**24]), 128, 0, 255)
    acc = (codes * 255).sum(1).to(torch.int32) + 2**24 - 128 * 64 * 4608
    assert low.item() <= acc.item() <= high.item()
    assert arith.requantize(TORCH, acc, 2.0**-19, 0, 0, 255, "uint8").item() == round(
        acc.item() / 2**19
    )


@settings(deadline=None)  # hundreds of steps where all codes are large
@given(
    st.lists(st.lists(CODE, min_size=16, max_size=16), min_size=1, max_size=4),
    code_range(),
    st.sampled_from([*RULES, SumRule(16), MADDUBS]),
)
def test_codes_moved_toward_zero_fit(
    rows: list[list[int]], a_range: tuple[int, int], rule: SumRule
) -> None:
    codes = torch.tensor(rows, dtype=torch.int8)
    moved = arith.toward_zero(codes, codes.double() * 0.99, *a_range, rule)
    assert bool(arith.fits(moved, *a_range, rule).all())
    toward = (moved.int() * codes.int() >= 0) & (moved.int().abs() <= codes.int().abs())
    assert bool(toward.all())
    fine = arith.fits(codes, *a_range, rule)
    assert moved[fine].equal(codes[fine])


def test_the_code_farthest_beyond_its_value_moves_first() -> None:
    codes = torch.tensor([[100, 100, 60]], dtype=torch.int8)
    real = torch.tensor([[100.4, 99.6, 60.0]])
    rule = SumRule(3, -(2**15), 259 * 100)
    assert arith.toward_zero(codes, real, 0, 100, rule).tolist() == [[100, 99, 60]]
