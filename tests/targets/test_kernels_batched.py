"""Products of two activations: exact for any mix of codes, zero points, shapes and orders."""

import numpy as np
import pytest
from kernel_cases import assembly, bound, run

from qcompiler.targets.kernels.avx import FMA, MADDWD_WIDE
from qcompiler.targets.kernels.batched import batch_matmul
from qcompiler.targets.kernels.build import Operand
from qcompiler.targets.kernels.geometry import Matmul
from qcompiler.targets.kernels.plan import plan_matmul

RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
FLOAT_TOLERANCE = 1e-4  # of the output's largest magnitude (design, section 5)


def random_matmul(rng: np.random.Generator) -> Matmul:
    lead = tuple(int(d) for d in rng.integers(1, 4, rng.integers(0, 3)))
    m, k, n = (int(rng.choice([rng.integers(1, 9), rng.integers(9, 70)])) for _ in range(3))
    return Matmul(lead, m, k, n, bool(rng.integers(2)))


def operand(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    low, high = RANGES[dtype]
    if rng.random() < 0.3:
        return rng.choice([low, high], shape).astype(dtype)
    return rng.integers(low, high + 1, shape).astype(dtype)


def product(g: Matmul, a: np.ndarray, b: np.ndarray, za: int = 0, zb: int = 0) -> np.ndarray:
    right = b.astype(np.float64) - zb
    return (a.astype(np.float64) - za) @ (right.swapaxes(-1, -2) if g.transposed else right)


def check_exact(g: Matmul, rng: np.random.Generator, size: int = 1) -> None:
    dtypes = [str(d) for d in rng.choice(["uint8", "int8"], 2)]
    za, zb = (int(rng.integers(RANGES[d][0], RANGES[d][1] + 1)) for d in dtypes)
    a = operand(rng, bound(g.a_shape, size), dtypes[0])
    b = operand(rng, bound(g.b_shape, size), dtypes[1])
    function = batch_matmul(
        g, MADDWD_WIDE, a_dtype=dtypes[0], b_dtype=dtypes[1], out_dtype="int32", za=za, zb=zb
    )
    result = run(function, [a, b], bound(g.out_shape, size), "int32")
    np.testing.assert_array_equal(result, product(g, a, b, za, zb))


@pytest.mark.parametrize("seed", range(32))
def test_codes_are_exact(seed):
    rng = np.random.default_rng(seed)
    check_exact(random_matmul(rng), rng)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("lead", "m", "k", "n"), [((1, 12), 50, 64, 50), ((1,), 200, 96, 130)])
def test_large_products_shared_among_threads(lead, m, k, n, transposed):
    check_exact(Matmul(lead, m, k, n, transposed), np.random.default_rng(0))


def test_rows_are_shared_out_only_where_matrices_are_too_few():
    assert plan_matmul(Matmul((12,), 256, 64, 256), FMA).blocks == 1
    assert plan_matmul(Matmul((1,), 256, 64, 256), FMA).blocks > 1


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("lead", [("n",), ("n", 3)])
def test_symbolic_batch(lead, size):
    check_exact(Matmul(lead, 7, 20, 18, True), np.random.default_rng(size), size)


@pytest.mark.parametrize("seed", range(12))
def test_float(seed):
    rng = np.random.default_rng(seed)
    g = random_matmul(rng)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in (g.a_shape, g.b_shape))
    function = batch_matmul(g, FMA, a_dtype="float32", b_dtype="float32", out_dtype="float32")
    result = run(function, [a, b], g.out_shape, "float32")
    right = product(g, a, b)
    assert np.abs(result - right).max() <= FLOAT_TOLERANCE * np.abs(right).max()


@pytest.mark.parametrize("transposed", [False, True])
def test_deep_float_products(transposed):
    g, rng = Matmul((2,), 30, 1200, 40, transposed), np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in (g.a_shape, g.b_shape))
    function = batch_matmul(g, FMA, a_dtype="float32", b_dtype="float32", out_dtype="float32")
    result, right = run(function, [a, b], g.out_shape, "float32"), product(g, a, b)
    assert np.abs(result - right).max() <= FLOAT_TOLERANCE * np.abs(right).max()


def test_epilogue_operands():
    g, rng = Matmul((2,), 9, 17, 21), np.random.default_rng(0)
    a, b = operand(rng, g.a_shape, "uint8"), operand(rng, g.b_shape, "uint8")
    mask = rng.integers(-99, 99, (9, 21)).astype(np.int32)
    function = batch_matmul(
        g, MADDWD_WIDE, a_dtype="uint8", b_dtype="uint8", out_dtype="int32", za=1, zb=2,
        operands=[Operand("mask", (9, 21), "int32")],
        epilogue=lambda acc, at, lanes, views: acc + views[0].load(at, lanes),
    )  # fmt: skip
    result = run(function, [a, b, mask], g.out_shape, "int32")
    np.testing.assert_array_equal(result, product(g, a, b, 1, 2) + mask)


def test_instructions_used():
    g = Matmul((2,), 32, 64, 32, True)
    codes = dict(a_dtype="uint8", b_dtype="uint8", out_dtype="int32")
    text = assembly(batch_matmul(g, MADDWD_WIDE, za=3, zb=5, **codes))
    assert "vpmaddwd" in text and "vpunpckldq" in text and "zmm" not in text
