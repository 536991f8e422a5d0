"""Group scales: integer factors, int32 throughout, nothing clipped, bounds that hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import arith


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.sampled_from([7, 127]),
    st.integers(0, 2**30),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_law(rows, groups, group, qmax, seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, groups * group, generator=g)
    w = w * 10.0 ** torch.randint(-6, 3, (rows, groups), generator=g).repeat_interleave(group, 1)
    scale, factors = arith.group_scales(w, group, qmax)
    assert int(factors.min()) >= 1 and int(factors.max()) <= 127
    codes = arith.quantize_groups(w, scale, factors, qmax)
    steps = scale.double().reshape(-1, 1) * factors.double()
    step = steps.repeat_interleave(group, 1)
    assert bool(((codes.double() * step - w.double()).abs() <= step / 2 * (1 + 1e-12)).all())

    a = torch.randint(-255, 256, (3, groups * group), generator=g, dtype=torch.int32)
    sums = arith.grouped_sum(a, codes, factors)
    low, high = arith.grouped_bounds(codes, factors, -255, 255)
    for m in range(3):
        for c in range(rows):
            exact = sum(
                int(factors[c, k // group]) * int(a[m, k]) * int(codes[c, k])
                for k in range(groups * group)
            )
            assert int(sums[m, c]) == exact
            assert int(low[c]) <= exact <= int(high[c])


def test_zero_channel_has_a_scale():
    scale, factors = arith.group_scales(torch.zeros(2, 8), 4)
    assert bool((scale > 0).all()) and factors.tolist() == [[1, 1], [1, 1]]


def test_group_must_divide():
    with pytest.raises(arith.ArithError, match="group 3: expected a divisor of the 8"):
        arith.group_scales(torch.randn(2, 8), 3)
