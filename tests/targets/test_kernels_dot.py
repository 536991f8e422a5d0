"""Instructions as values: the emission gives the bits of the semantics, on any kernel."""

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import assembly, bound, codes, integer_product, packed, product, run, weight_shape

from qcompiler.targets.kernels.avx import AVX512VNNI, AVXVNNI, FMA, MADDWD, maddubs
from qcompiler.targets.kernels.geometry import Conv, Linear

GEOMETRIES = [
    Linear((11,), 37, 29),
    Conv(1, 7, 6, 10, 13, (3, 3), stride=(2, 1), padding=(1, 0, 1, 1)),
    Conv(2, 6, 6, 12, 12, (3, 3), padding=(1, 1, 1, 1), groups=12),
]
# The largest weights for which every sum of the instruction fits, whatever the codes are.
DOTS = [(maddubs(), 63), (maddubs(2), 31), (maddubs(4), 15), (MADDWD, 127)]
CPU_FLAGS = {"+avxvnni": "avx_vnni", "+avx512vnni": "avx512_vnni", "+avx512vl": "avx512vl"}


def has(features: tuple[str, ...]) -> bool:
    info = Path("/proc/cpuinfo").read_text().split()
    return all(CPU_FLAGS[f] in info for f in features)


@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize(("dot", "w_max"), DOTS, ids=lambda d: getattr(d, "name", ""))
def test_emission_equals_semantics(dot, w_max, g):
    rng = np.random.default_rng(5)
    c = codes(rng, bound(g.in_shape, 1), weight_shape(g), "uint8", (0, 255), w_max)
    emitted = integer_product(g, dot, c, zero_point=4)
    np.testing.assert_array_equal(emitted, integer_product(g, dot.portable(), c, zero_point=4))


@pytest.mark.parametrize("g", GEOMETRIES)
def test_float_semantics_may_round_twice(g):
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (g.in_shape, weight_shape(g)))
    arrays = [x, packed(g, FMA, "float32", w), np.zeros(len(w), np.float32)]
    emitted, plain = (
        run(product(g, d, in_dtype="float32", out_dtype="float32"), arrays, g.out_shape, "float32")
        for d in (FMA, FMA.portable())
    )
    assert np.abs(emitted - plain).max() <= 1e-5 * np.abs(plain).max()


def test_sums_beyond_16_bits_saturate():
    """What the proof is for: the instruction differs from its semantics beyond its sum rule."""
    g, rule = Linear((1,), 4, 8), maddubs().sums
    assert rule is not None and rule.products == 2 and rule.hi == 2**15 - 1
    c = codes(np.random.default_rng(0), (1, 4), (8, 4), "uint8", (255, 255), 127)
    c.w[:] = 127
    c.bias[:] = 0
    exact = 4 * 255 * 127
    assert (integer_product(g, maddubs().portable(), c, zero_point=0) == exact).all()
    assert (integer_product(g, maddubs(), c, zero_point=0) == 2 * rule.hi).all()


@pytest.mark.parametrize("dot", [AVXVNNI, AVX512VNNI], ids=lambda d: d.name)
def test_vnni(dot):
    g = GEOMETRIES[1]
    rng = np.random.default_rng(6)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 127)
    function = product(g, dot, in_dtype="uint8", out_dtype="int32")
    assert "vpdpbusd" in assembly(function, *dot.features)
    plain = integer_product(g, dot.portable(), c, zero_point=4)
    np.testing.assert_array_equal(plain, integer_product(g, MADDWD, c, zero_point=4))
    if has(dot.features):
        emitted = integer_product(g, dot, c, zero_point=4, features=dot.features)
        np.testing.assert_array_equal(emitted, plain)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_sum_rules_count_the_products_added_in_16_bits(group):
    rule = maddubs(group).sums
    assert rule is not None and rule.products == 2 * group
