"""The depthwise templates: exact for all codes and shapes, float32 within its tolerance."""

import numpy as np
import pytest
from kernel_cases import (
    assembly,
    bound,
    codes,
    expected,
    integer_product,
    packed,
    product,
    run,
    weight_shape,
)

from qcompiler.targets.kernels.avx import AVXVNNI, FMA, MADDWD, maddubs
from qcompiler.targets.kernels.build import Operand
from qcompiler.targets.kernels.depthwise_direct import direct_depthwise_conv2d
from qcompiler.targets.kernels.geometry import Conv
from qcompiler.targets.kernels.plan import channelwise

FLOAT_TOLERANCE = 1e-4  # of the output's largest magnitude (design, section 5)


def random_depthwise(rng: np.random.Generator, batch: int | str | None = None) -> Conv:
    while True:
        channels = int(rng.integers(8, 70))
        try:
            return Conv(
                batch=int(rng.integers(1, 4)) if batch is None else batch,
                height=int(rng.integers(1, 20)),
                width=int(rng.integers(1, 20)),
                channels=channels,
                out_channels=channels,
                kernel=tuple(int(k) for k in rng.integers(1, 8, 2)),
                stride=tuple(int(s) for s in rng.integers(1, 4, 2)),
                dilation=tuple(int(d) for d in rng.choice([1, 1, 2, 3], 2)),
                padding=tuple(int(p) for p in rng.choice([0, 1, 2, 3, 6], 4)),
                groups=channels,
            )
        except ValueError:
            continue


def square(size: int, channels: int, kernel: int, stride: int) -> Conv:
    half = kernel // 2
    return Conv(
        1, size, size, channels, channels, (kernel, kernel), (stride, stride), (1, 1), (half,) * 4,
        channels,
    )  # fmt: skip


def check_exact(g, dot, rng, *, dtype="uint8", bounds=(0, 255), w_max=127, shift=0, size=1):
    assert channelwise(g, dot)
    c = codes(rng, bound(g.in_shape, size), weight_shape(g), dtype, bounds, w_max)
    zero_point = int(rng.integers(bounds[0], bounds[1] + 1))
    result = integer_product(g, dot, c, zero_point=zero_point, shift=shift, size=size)
    right = expected(g, c.x.astype(np.int64) - zero_point, c.w) + c.bias
    np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("seed", range(32))
def test_codes_are_exact(seed):
    rng = np.random.default_rng(seed)
    check_exact(random_depthwise(rng), MADDWD, rng)


@pytest.mark.parametrize("seed", range(6))
def test_signed_codes_are_exact(seed):
    rng = np.random.default_rng(seed)
    check_exact(random_depthwise(rng), MADDWD, rng, dtype="int8", bounds=(-128, 127))


@pytest.mark.parametrize("seed", range(6))
def test_four_taps_at_once(seed):
    """By vpmaddubsw, where two products fit int16, shifted codes too."""
    rng = np.random.default_rng(seed)
    g = random_depthwise(rng)
    if seed % 2:
        check_exact(g, maddubs(), rng, dtype="int8", bounds=(-63, 63), w_max=127, shift=64)
    else:
        check_exact(g, maddubs(), rng, w_max=63)


@pytest.mark.parametrize(
    "g", [square(56, 96, 3, 1), square(28, 40, 5, 2), square(112, 32, 3, 2), square(7, 200, 5, 1)]
)
def test_large_images_shared_among_threads(g):
    check_exact(g, MADDWD, np.random.default_rng(0))


@pytest.mark.parametrize("size", [1, 3])
def test_symbolic_batch(size):
    rng = np.random.default_rng(size)
    check_exact(random_depthwise(rng, "n"), MADDWD, rng, size=size)


def test_few_channels_go_through_the_product_template():
    g = Conv(1, 9, 9, 5, 5, (3, 3), padding=(1, 1, 1, 1), groups=5)
    rng = np.random.default_rng(0)
    assert not channelwise(g, MADDWD)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 127)
    result = integer_product(g, MADDWD, c, zero_point=9)
    right = expected(g, c.x.astype(np.int64) - 9, c.w) + c.bias
    np.testing.assert_array_equal(result, right)


def test_a_channel_multiplier_goes_through_the_product_template():
    g = Conv(1, 9, 9, 12, 24, (3, 3), padding=(1, 1, 1, 1), groups=12)
    rng = np.random.default_rng(0)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 127)
    result = integer_product(g, MADDWD, c, zero_point=9)
    right = expected(g, c.x.astype(np.int64) - 9, c.w) + c.bias
    np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("seed", range(16))
def test_float(seed):
    rng = np.random.default_rng(seed)
    g = random_depthwise(rng, "n" if seed % 4 == 0 else None)
    x, w = (
        rng.standard_normal(s).astype(np.float32) for s in (bound(g.in_shape, 2), weight_shape(g))
    )
    bias = rng.standard_normal(len(w)).astype(np.float32)
    function = product(g, FMA, in_dtype="float32", out_dtype="float32")
    shape = bound(g.out_shape, 2)
    result = run(function, [x, packed(g, FMA, "float32", w), bias], shape, "float32")
    right = expected(g, x, w) + bias
    assert np.abs(result - right).max() <= FLOAT_TOLERANCE * np.abs(right).max()


def test_epilogue_operands():
    g, rng = square(9, 20, 3, 1), np.random.default_rng(0)
    extra = rng.integers(-1000, 1000, g.out_shape).astype(np.int32)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 127)
    result = integer_product(
        g, MADDWD, c, zero_point=3, arrays=[extra],
        operands=[Operand("extra", g.out_shape, "int32")],
        epilogue=lambda acc, at, lanes, views: acc - views[0].load(at, lanes),
    )  # fmt: skip
    right = expected(g, c.x.astype(np.int64) - 3, c.w) + c.bias - extra
    np.testing.assert_array_equal(result, right)


def test_instructions_used():
    integer = product(square(14, 64, 3, 1), MADDWD, in_dtype="uint8", out_dtype="int32")
    real = product(square(14, 64, 3, 1), FMA, in_dtype="float32", out_dtype="float32")
    for function, word in ((integer, "vpmaddwd"), (real, "vfmadd")):
        text = assembly(function)
        assert word in text and "zmm" not in text


def test_vnni_takes_four_taps():
    function = product(square(14, 64, 3, 1), AVXVNNI, in_dtype="uint8", out_dtype="int32")
    assert "vpdpbusd" in assembly(function, *AVXVNNI.features)


def test_the_direct_template_takes_one_tap_at_a_time():
    with pytest.raises(ValueError, match="maddwd takes 2 taps at once; expected one"):
        direct_depthwise_conv2d(square(8, 8, 3, 1), MADDWD, out_dtype="int32")
