"""Instructions as values: the emission gives the bits of the semantics, on any kernel.

The semantics run on any machine; the emission where the CPU has the instruction, and elsewhere its
assembly is looked at.
"""

import numpy as np
import pytest
from kernel_cases import assembly, bound, codes, integer_product, packed, product, run, weight_shape

from qcompiler.machine import features as cpu_flags
from qcompiler.targets.kernels.avx import (
    AVX512_VNNI,
    AVX512VNNI,
    AVX_VNNI,
    AVXVNNI,
    FMA,
    MADDWD,
    ZMM,
    dpwssd,
    fma,
    maddubs,
    maddwd,
)
from qcompiler.targets.kernels.dot import Dot
from qcompiler.targets.kernels.geometry import Conv, Linear

GEOMETRIES = [
    Linear((11,), 37, 29),
    Conv(1, 7, 6, 10, 13, (3, 3), stride=(2, 1), padding=(1, 0, 1, 1)),
    Conv(2, 6, 6, 12, 12, (3, 3), padding=(1, 1, 1, 1), groups=12),
]
# The largest weights for which every sum of the instruction fits, whatever the codes are.
SUMS = [(1, 63), (2, 31), (4, 15)]
DOTS = [(maddubs(group), w_max) for group, w_max in SUMS] + [(MADDWD, 127)]
WIDE = [(maddubs(group, ZMM), w_max) for group, w_max in SUMS] + [(maddwd(ZMM), 127)]
VNNI = [AVXVNNI, AVX512VNNI, dpwssd(AVX_VNNI), dpwssd(AVX512_VNNI, ZMM)]
CPU_FLAGS = {"+avxvnni": "avx_vnni", "+avx512vnni": "avx512_vnni"}  # others are named alike


def runs_here(dot: Dot) -> bool:
    wanted = {CPU_FLAGS.get(f, f.lstrip("+")) for f in dot.features}
    return wanted <= cpu_flags()


def named(value: object) -> str:
    return value.name if isinstance(value, Dot) else ""


@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize(("dot", "w_max"), [*DOTS, *WIDE, *((d, 127) for d in VNNI)], ids=named)
def test_emission_and_semantics_are_the_plain_sums(dot, w_max, g):
    rng = np.random.default_rng(5)
    c = codes(rng, bound(g.in_shape, 1), weight_shape(g), "uint8", (0, 255), w_max)
    plain = integer_product(g, dot.portable(), c, zero_point=4)
    exact = integer_product(g, MADDWD.portable(), c, zero_point=4)
    np.testing.assert_array_equal(plain, exact)
    if runs_here(dot):
        emitted = integer_product(g, dot, c, zero_point=4, features=dot.features)
        np.testing.assert_array_equal(emitted, plain)


INSTRUCTIONS = [
    (maddubs(), "vpmaddubsw", "ymm"), (maddubs(2, ZMM), "vpmaddubsw", "zmm"),
    (MADDWD, "vpmaddwd", "ymm"), (maddwd(ZMM), "vpmaddwd", "zmm"),
    (AVXVNNI, "vpdpbusd", "ymm"), (AVX512VNNI, "vpdpbusd", "zmm"),
    (dpwssd(AVX_VNNI), "vpdpwssd", "ymm"), (dpwssd(AVX512_VNNI, ZMM), "vpdpwssd", "zmm"),
    (FMA, "vfmadd231ps", "ymm"), (fma(ZMM), "vfmadd231ps", "zmm"),
]  # fmt: skip


@pytest.mark.parametrize(("dot", "mnemonic", "register"), INSTRUCTIONS, ids=named)
def test_the_assembly_has_the_instruction(dot, mnemonic, register):
    dtype = "float32" if dot.acc_dtype == "float32" else "uint8"
    function = product(GEOMETRIES[1], dot, in_dtype=dtype, out_dtype=dot.acc_dtype)
    lines = [line.split() for line in assembly(function, *dot.features).splitlines()]
    found = [line for line in lines if mnemonic in line]
    assert len(found) > 4 and all(register in line[-1] for line in found)


@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize("dot", [FMA, fma(ZMM)], ids=named)
def test_float_semantics_may_round_twice(dot, g):
    if not runs_here(dot):
        pytest.skip(f"this CPU lacks one of {', '.join(dot.features)}")
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (g.in_shape, weight_shape(g)))
    arrays = [x, packed(g, dot, "float32", w), np.zeros(len(w), np.float32)]
    emitted, plain = (
        run(product(g, d, in_dtype="float32", out_dtype="float32"), arrays, g.out_shape, "float32",
            d.features)
        for d in (dot, dot.portable())
    )  # fmt: skip
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


@pytest.mark.parametrize("group", [1, 2, 4])
def test_sum_rules_count_the_products_added_in_16_bits(group):
    rule = maddubs(group).sums
    assert rule is not None and rule.products == 2 * group
