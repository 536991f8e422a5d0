"""The product template: every shape, stride, border, group, zero point and code, bit for bit."""

import numpy as np
import pytest
from kernel_cases import (
    Codes,
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

from qcompiler.targets.kernels.avx import FMA, MADDWD, maddubs
from qcompiler.targets.kernels.build import Operand
from qcompiler.targets.kernels.dot import Dot
from qcompiler.targets.kernels.geometry import Conv, Linear
from qcompiler.targets.kernels.plan import Stage, plan_conv, plan_linear
from qcompiler.targets.kernels.product import Tap, split_depth

# Largest weight for which 2 * group products of u8 codes fit int16 whatever the codes are.
PROVEN = {1: 63, 2: 31, 4: 15}
FLOAT_TOLERANCE = 1e-4  # of the output's largest magnitude (design, section 5)


def random_conv(rng: np.random.Generator) -> Conv:
    while True:
        kernel = tuple(int(k) for k in rng.integers(1, 5, 2))
        groups = int(rng.choice([1, 1, 1, 2, 3, 5]))
        try:
            return Conv(
                batch=int(rng.integers(1, 4)),
                height=int(rng.integers(1, 16)),
                width=int(rng.integers(1, 16)),
                channels=groups * int(rng.integers(1, 24)),
                out_channels=groups * int(rng.integers(1, 45)),
                kernel=kernel,
                stride=tuple(int(s) for s in rng.integers(1, 4, 2)),
                dilation=tuple(int(d) for d in rng.choice([1, 1, 2, 3], 2)),
                padding=tuple(int(p) for p in rng.choice([0, 0, 1, 2, 3], 4)),
                groups=groups,
            )
        except ValueError:
            continue


def random_dot(rng: np.random.Generator) -> tuple[Dot, int]:
    group = int(rng.choice([0, 1, 1, 2, 4]))
    return (maddubs(group), PROVEN[group]) if group else (MADDWD, 127)


def sums(g: Conv | Linear, c: Codes, zero_point: int) -> np.ndarray:
    return expected(g, c.x.astype(np.int64) - zero_point, c.w) + c.bias


@pytest.mark.parametrize("seed", range(48))
def test_convolution_is_exact(seed):
    rng = np.random.default_rng(seed)
    g, (dot, w_max) = random_conv(rng), random_dot(rng)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), w_max)
    zero_point = int(rng.choice([0, 255, rng.integers(256)]))
    result = integer_product(g, dot, c, zero_point=zero_point)
    np.testing.assert_array_equal(result, sums(g, c, zero_point))


@pytest.mark.parametrize("seed", range(24))
def test_linear_is_exact(seed):
    rng = np.random.default_rng(seed)
    dot, w_max = random_dot(rng)
    lead = tuple(int(d) for d in rng.integers(1, 12, rng.integers(1, 4)))
    g = Linear(lead, int(rng.integers(1, 130)), int(rng.integers(1, 100)))
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), w_max)
    zero_point = int(rng.integers(256))
    result = integer_product(g, dot, c, zero_point=zero_point)
    np.testing.assert_array_equal(result, sums(g, c, zero_point))


@pytest.mark.parametrize(
    "g",
    [
        Conv(1, 40, 40, 64, 80, (3, 3), padding=(1, 1, 1, 1)),  # blocks of rows, per-task copies
        Conv(1, 10, 10, 128, 256, (3, 3), padding=(1, 1, 1, 1)),  # channels shared out, one copy
        Conv(2, 28, 28, 96, 40, (1, 1)),  # a matrix product, two tiles
        Conv(1, 56, 56, 16, 24, (1, 1), stride=(2, 2)),
        Conv(1, 20, 20, 64, 64, (3, 3), padding=(1, 1, 1, 1), groups=8),
        Linear((200,), 192, 200),
        Linear((5,), 1024, 1000),
    ],
)
@pytest.mark.parametrize("dot", [maddubs(), MADDWD], ids=lambda d: d.name)
def test_large_products_are_exact(g, dot):
    rng = np.random.default_rng(1)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), PROVEN[1])
    np.testing.assert_array_equal(integer_product(g, dot, c, zero_point=77), sums(g, c, 77))


def test_large_products_cover_the_plans():
    small = plan_conv(Conv(1, 8, 8, 16, 16, (3, 3)), maddubs(), "uint8")
    rows = plan_conv(Conv(1, 40, 40, 64, 80, (3, 3), padding=(1, 1, 1, 1)), maddubs(), "uint8")
    wide = plan_conv(Conv(1, 10, 10, 128, 256, (3, 3), padding=(1, 1, 1, 1)), maddubs(), "uint8")
    assert not small.parallel and small.stage is Stage.NONE
    assert rows.parallel and rows.stage is Stage.TASK and rows.blocks > 1 and rows.chunks == 1
    assert wide.parallel and wide.stage is Stage.WHOLE and wide.chunks > 1
    assert plan_linear(Linear((5,), 1024, 1000), MADDWD, "uint8").stage is Stage.WHOLE


@pytest.mark.parametrize(("low", "high", "shift"), [(-63, 63, 64), (-128, 127, 128)])
@pytest.mark.parametrize("g", [Linear((13,), 50, 30), Conv(1, 7, 9, 6, 11, (3, 3))])
def test_signed_codes_are_shifted_as_they_are_copied(g, low, high, shift):
    rng = np.random.default_rng(2)
    c = codes(rng, g.in_shape, weight_shape(g), "int8", (low, high), PROVEN[1])
    result = integer_product(g, maddubs(), c, zero_point=0, shift=shift)
    np.testing.assert_array_equal(result, sums(g, c, 0))


def test_signed_codes_are_exact_in_16_bits():
    g, rng = Linear((9,), 33, 20), np.random.default_rng(3)
    c = codes(rng, g.in_shape, weight_shape(g), "int8", (-128, 127), 127)
    np.testing.assert_array_equal(integer_product(g, MADDWD, c, zero_point=-5), sums(g, c, -5))


@pytest.mark.parametrize("size", [1, 2, 3, 37, 300])
@pytest.mark.parametrize(
    "g",
    [
        Linear(("n",), 64, 40),
        Linear(("n", 3), 30, 20),
        Linear(("n", 10), 64, 24),
        Conv("n", 6, 5, 8, 20, (3, 3), padding=(1, 1, 1, 1)),
        Conv("n", 4, 4, 8, 24, (1, 1)),
        Conv("n", 9, 9, 64, 128, (3, 3), padding=(1, 1, 1, 1)),
    ],
)
def test_symbolic_batch(g, size):
    if size == 300 and isinstance(g, Conv):
        size = 20
    rng = np.random.default_rng(size)
    c = codes(rng, bound(g.in_shape, size), weight_shape(g), "uint8", (0, 255), PROVEN[1])
    result = integer_product(g, maddubs(), c, zero_point=9, size=size)
    np.testing.assert_array_equal(result, sums(g, c, 9))


@pytest.mark.parametrize("seed", range(16))
def test_float_products(seed):
    rng = np.random.default_rng(seed)
    g: Conv | Linear = random_conv(rng)
    if seed % 4 == 0:
        g = Linear((int(rng.integers(1, 50)),), int(rng.integers(1, 300)), int(rng.integers(1, 90)))
    x, w = (
        rng.standard_normal(s).astype(np.float32) for s in (bound(g.in_shape, 1), weight_shape(g))
    )
    bias = rng.standard_normal(len(w)).astype(np.float32)
    function = product(g, FMA, in_dtype="float32", out_dtype="float32")
    result = run(function, [x, packed(g, FMA, "float32", w), bias], g.out_shape, "float32")
    right = expected(g, x, w) + bias
    assert np.abs(result - right).max() <= FLOAT_TOLERANCE * np.abs(right).max()


@pytest.mark.parametrize(
    "g",
    [
        Linear((37,), 1536, 40),
        Linear((9,), 1030, 100),
        Conv(1, 9, 7, 130, 36, (3, 3), padding=(1, 1, 1, 1)),
        Conv(2, 6, 6, 96, 20, (3, 3), dilation=(1, 2), padding=(1, 2, 1, 2)),
    ],
)
def test_deep_float_products_are_cut_along_the_reduction(g):
    if isinstance(g, Linear):
        plan, size = plan_linear(g, FMA, "float32"), g.k
        cut = split_depth(FMA, plan, (), size, size)
    else:
        plan, size = plan_conv(g, FMA, "float32"), 9 * g.channels
        cut = split_depth(FMA, plan, (Tap(3, 0, 0),), size // 3, size)
    assert cut[2] and cut[1] < size
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (g.in_shape, weight_shape(g)))
    bias = rng.standard_normal(len(w)).astype(np.float32)
    function = product(g, FMA, in_dtype="float32", out_dtype="float32")
    result = run(function, [x, packed(g, FMA, "float32", w), bias], g.out_shape, "float32")
    right = expected(g, x, w) + bias
    assert np.abs(result - right).max() <= FLOAT_TOLERANCE * np.abs(right).max()


def test_a_prime_depth_is_not_cut():
    g = Linear((37,), 1531, 40)
    assert not split_depth(FMA, plan_linear(g, FMA, "float32"), (), g.k, g.k)[2]


def test_no_init_starts_at_zero():
    g, rng = Linear((6,), 21, 19), np.random.default_rng(0)
    c = codes(rng, g.in_shape, weight_shape(g), "uint8", (0, 255), 127)
    function = product(g, MADDWD, in_dtype="uint8", out_dtype="int32", init=False)
    result = run(function, [c.x, packed(g, MADDWD, "uint8", c.w)], g.out_shape, "int32")
    np.testing.assert_array_equal(result, expected(g, c.x, c.w))


@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize(
    "shape",
    [(20,), (1,), ("b", 5, 6, 20), ("b", 1, 1, 20), (5, 6, 1), (1, 1, 6, 20), ("b", 5, 1, 1)],
)
def test_epilogue_operands_broadcast_as_in_numpy(shape, batch):
    g = Conv(batch, 5, 6, 4, 20, (1, 2), padding=(0, 1, 0, 0))
    rng = np.random.default_rng(0)
    shape = tuple(batch if d == "b" else d for d in shape)
    extra = rng.integers(-1000, 1000, bound(shape, 2)).astype(np.int32)
    c = codes(rng, bound(g.in_shape, 2), weight_shape(g), "uint8", (0, 255), 127)
    result = integer_product(
        g, MADDWD, c, zero_point=3, size=2, arrays=[extra],
        operands=[Operand("extra", shape, "int32")],
        epilogue=lambda acc, at, lanes, views: acc - views[0].load(at, lanes),
    )  # fmt: skip
    np.testing.assert_array_equal(result, sums(g, c, 3) - extra)


@pytest.mark.parametrize(
    ("dot", "has", "lacks"),
    [
        (maddubs(), ("vpmaddubsw", "vpmaddwd"), ()),
        (MADDWD, ("vpmaddwd", "vpmovsxbw"), ("vpmaddubsw",)),
        (FMA, ("vfmadd", "vbroadcastss"), ("vmulps",)),
    ],
    ids=lambda d: getattr(d, "name", ""),
)
def test_instructions_used(dot, has, lacks):
    dtype = "float32" if dot is FMA else "uint8"
    g = Conv(1, 14, 14, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    text = assembly(product(g, dot, in_dtype=dtype, out_dtype=dot.acc_dtype))
    assert all(word in text for word in has)
    assert not any(word in text for word in (*lacks, "zmm"))


def test_a_kernel_larger_than_the_input_is_refused():
    with pytest.raises(ValueError, match="larger than the padded input"):
        Conv(1, 2, 2, 4, 4, (5, 5))


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 -> 8 channels are not divisible by 4 groups"):
        Conv(1, 4, 4, 6, 8, (1, 1), groups=4)
