"""The template for one row: every depth, width and instruction, bit for bit, between fences."""

import numpy as np
import pytest
from kernel_cases import (
    Codes,
    assembly,
    codes,
    expected,
    integer_product,
    packed,
    product,
    run,
    weight_shape,
)

from qcompiler.targets.kernels.avx import AVX512VNNI, FMA, MADDWD, maddubs
from qcompiler.targets.kernels.build import Operand
from qcompiler.targets.kernels.geometry import Conv, Linear
from qcompiler.targets.kernels.neon import SMMLA
from qcompiler.targets.kernels.plan import TASKS, one_row, row_lanes

# (K, N): steps that fill no group, one panel and a part, panels without a partner, several tasks.
SIZES = ((1, 1), (3, 8), (4, 33), (30, 32), (31, 64), (77, 100), (130, 7), (512, 1100), (260, 4130))
# Largest weight for which 2 * group products of u8 codes fit int16 whatever the codes are.
DOTS = ((maddubs(), 63), (maddubs(2), 31), (maddubs(4), 15), (MADDWD, 127))


def exact(g: Linear, c: Codes, zero_point: int) -> np.ndarray:
    return expected(g, c.x.astype(np.int64) - zero_point, c.w) + c.bias


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dot", "most"), DOTS, ids=lambda d: getattr(d, "name", ""))
def test_integer_rows_are_exact(dot, most, size):
    rng, g = np.random.default_rng(sum(size)), Linear((1, 1), *size)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), most)
    np.testing.assert_array_equal(integer_product(g, dot, c, zero_point=77), exact(g, c, 77))


@pytest.mark.parametrize("size", SIZES)
def test_signed_codes_are_shifted(size):
    rng, g = np.random.default_rng(1), Linear((1,), *size)
    c = codes(rng, g.in_shape, weight_shape(g), "int8", (-128, 127), 63)
    found = integer_product(g, maddubs(), c, zero_point=0, shift=128)
    np.testing.assert_array_equal(found, exact(g, c, 0))


@pytest.mark.parametrize("size", SIZES)
def test_float_rows(size):
    rng, g = np.random.default_rng(2), Linear((1,), *size)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (g.in_shape, weight_shape(g)))
    function = product(g, FMA, in_dtype="float32", out_dtype="float32", init=False)
    found = run(function, [x, packed(g, FMA, "float32", w)], g.out_shape, "float32")
    right = expected(g, x, w)
    assert np.abs(found - right).max() <= 1e-4 * np.abs(right).max()


def test_the_epilogue_sees_every_channel():
    rng, g = np.random.default_rng(3), Linear((1, 1), 40, 100)
    extra = rng.integers(-1000, 1000, (1, 1, 100)).astype(np.int32)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 63)
    found = integer_product(
        g, maddubs(), c, zero_point=3, arrays=[extra],
        operands=[Operand("extra", (1, 1, 100), "int32")],
        epilogue=lambda acc, at, lanes, views: acc - views[0].load(at, lanes),
    )  # fmt: skip
    np.testing.assert_array_equal(found, exact(g, c, 3) - extra)


def test_sizes_cover_the_ways_panels_are_shared_out():
    """Two side by side, one alone, a part of one; in one task and in several."""
    panels = [-(-n // row_lanes(Linear((1,), k, n), FMA)) for k, n in SIZES]
    assert 1 in panels and any(p > TASKS for p in panels)
    assert any(n % row_lanes(Linear((1,), k, n), FMA) for k, n in SIZES)


def test_weights_are_fetched_ahead():
    g = Linear((1,), 512, 1024)
    text = assembly(product(g, maddubs(), in_dtype="uint8", out_dtype="int32"))
    assert "prefetcht0" in text and "vpmaddubsw" in text


def test_what_it_takes():
    assert one_row(Linear((1, 1), 8, 8), FMA) and one_row(Linear((), 8, 8), AVX512VNNI)
    assert not one_row(Linear((2,), 8, 8), FMA) and not one_row(Linear(("n",), 8, 8), FMA)
    assert not one_row(Conv(1, 1, 1, 8, 8, (1, 1)), FMA)
    assert not one_row(Linear((1,), 8, 8), SMMLA)
