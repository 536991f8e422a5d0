"""Group scales: least squares, integer factors, int32 throughout, bounds that hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import arith

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 33))
QMAX = st.sampled_from([7, 127])


def weights(seed: int, rows: int, size: int, group: int) -> torch.Tensor:
    """Random weights whose groups differ by powers of ten."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, size, generator=g)
    powers = torch.randint(-3, 2, (rows, -(-size // group)), generator=g)
    return w * arith.spread(10.0**powers, group, size)


@given(SIZES, QMAX, st.integers(0, 2**30))
@settings(max_examples=100, deadline=None)
def test_law(sizes, qmax, seed):
    """Factors are integers in 1..127, sums what a loop over integers gives, within their bounds."""
    rows, size, group = sizes
    w = weights(seed, rows, size, group)
    scale, factors = arith.integer_scales(arith.least_squares_scales(w, group, qmax))
    assert factors.shape == (rows, arith.group_count(size, group))
    assert int(factors.min()) >= 1 and int(factors.max()) <= arith.groups.FACTOR_MAX
    codes = arith.quantize_groups(w, scale.unsqueeze(1) * factors, group, qmax)

    g = torch.Generator().manual_seed(seed + 1)
    a = torch.randint(-255, 256, (2, size), generator=g, dtype=torch.int32)
    sums = arith.grouped_sum(a, codes, factors, group)
    low, high = arith.grouped_bounds(codes, factors, group, -255, 255)
    for m in range(2):
        for c in range(rows):
            terms = [
                int(factors[c, k // group]) * int(a[m, k]) * int(codes[c, k]) for k in range(size)
            ]
            assert int(sums[m, c]) == sum(terms)
            assert int(low[c]) <= min(sum(terms), 0) and max(sum(terms), 0) <= int(high[c])


def test_bounds_are_reached():
    codes, factors = torch.tensor([[7, -7, 7]], dtype=torch.int8), torch.tensor([[3, 127]])
    low, high = arith.grouped_bounds(codes, factors, 2, -127, 127)
    assert int(high) == 127 * 7 * (2 * 3 + 127) == -int(low)


@given(SIZES, QMAX, st.integers(0, 2**30))
@settings(max_examples=100, deadline=None)
def test_products_of_scale_and_factor_are_floats_from_which_both_come_back(sizes, qmax, seed):
    """Up to a common divisor of a channel's factors, which goes into its scale."""
    rows, size, group = sizes
    scales = arith.least_squares_scales(weights(seed, rows, size, group), group, qmax)
    scale, factors = arith.integer_scales(scales)
    products = scale.unsqueeze(1) * factors
    assert torch.equal(products.double(), scale.double().unsqueeze(1) * factors.double())
    again, divided = arith.factored(products)
    assert torch.equal(again.unsqueeze(1) * divided, products)
    assert bool((again >= scale).all())


def test_scales_that_share_no_divisor_are_refused():
    with pytest.raises(arith.ArithError, match=r"channel 1: expected one scale times integers"):
        arith.factored(torch.tensor([[1.0, 2.0], [1.0, 1.0 + 2.0**-20]]))
    with pytest.raises(arith.ArithError, match=r"channel 0: expected one scale times integers"):
        arith.factored(torch.tensor([[1.0, 2.0**100]]))


@given(st.integers(0, 2**30))
@settings(max_examples=20, deadline=None)
def test_least_squares_against_a_fine_search(seed):
    """The best of 4,000 scales is little better: half the error in one group, a fifth in all."""
    qmax = 7
    w = weights(seed, 4, 64, 32)
    scales = arith.least_squares_scales(w, 32, qmax)
    groups = w.reshape(8, 32)

    def error(s: torch.Tensor) -> torch.Tensor:
        codes = torch.round(groups / s).clamp(-qmax, qmax)
        return ((codes * s - groups).double() ** 2).sum(1)

    base = groups.abs().amax(1, keepdim=True) / qmax
    best = torch.stack([error(base * f) for f in torch.linspace(0.6, 1.1, 4000)]).amin(0)
    assert bool((error(scales.reshape(8, 1)) <= best * 2 + 1e-30).all())
    assert float(error(scales.reshape(8, 1)).sum()) <= float(best.sum()) * 1.2


def test_least_squares_is_better_than_the_largest_weight():
    """Gaussian weights of 4 bits in groups of 32: 0.4 dB."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    found = arith.least_squares_scales(w, 32, 7)
    largest = w.reshape(64, 8, 32).abs().amax(2) / 7
    powers = []
    for scales in (found, largest):
        real = arith.decode(arith.quantize_groups(w, scales, 32, 7), scales, 32)
        powers.append(float(((real - w) ** 2).sum()))
    assert powers[0] < 0.93 * powers[1]


def test_zero_and_foreign_weights():
    scales = arith.least_squares_scales(torch.zeros(2, 8), 4, 7)
    assert bool((scales > 0).all())
    assert arith.integer_scales(scales)[1].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(arith.ArithError, match="expected finite numbers"):
        arith.least_squares_scales(torch.tensor([[torch.inf]]), 4, 7)


def test_codes_are_those_of_the_quantize_law():
    w = weights(1, 3, 50, 16)
    scales = arith.least_squares_scales(w, 16, 7)
    for k in range(4):
        part = slice(k * 16, (k + 1) * 16)
        expected = arith.quantize_weight(w[:, part], scales[:, k], 0, 7)
        assert torch.equal(arith.quantize_groups(w, scales, 16, 7)[:, part], expected)
