"""Saturating requantization gives the law's codes wherever it says it does."""

import numpy as np
import pytest
import torch
from kernel_cases import Codes, assembly, integer_product, product

from qcompiler import arith
from qcompiler.machine import features as cpu_flags
from qcompiler.targets.kernels.algebra import bind
from qcompiler.targets.kernels.avx import MADDWD, ZMM, maddwd
from qcompiler.targets.kernels.build import Operand
from qcompiler.targets.kernels.geometry import Linear
from qcompiler.targets.kernels.requantize import (
    MULTIPLIER_MAX,
    requantize_narrowed,
    requantize_packed,
    saturates,
    within,
)

WAYS = [(requantize_packed, MADDWD), (requantize_narrowed, maddwd(ZMM))]
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def accumulators(channels: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    extremes = [0, 1, -1, 2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1]
    scales = 2.0 ** rng.integers(1, 31, channels)
    values = rng.uniform(-1, 1, channels) * scales
    return np.concatenate([extremes, values])[:channels].astype(np.int32)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("zero_point", [0, 3, -128, 127, 255])
@pytest.mark.parametrize("channels", [64, 31, 8])
@pytest.mark.parametrize("unused", [(0, 0), (0, 96), (1, 50)])
@pytest.mark.parametrize(("requantize", "dot"), WAYS, ids=lambda v: getattr(v, "name", ""))
def test_codes_are_the_law(dtype, zero_point, channels, unused, requantize, dot):
    """unused: how many codes at either end are never given."""
    if not cpu_flags().issuperset(f.lstrip("+") for f in dot.features):
        pytest.skip(f"this CPU lacks one of {', '.join(dot.features)}")
    low, high = LIMITS[dtype][0] + unused[0], LIMITS[dtype][1] - unused[1]
    if not low <= zero_point <= high:
        zero_point = 100
    acc = accumulators(channels)
    multiplier = np.resize(np.float32([0.999, 1 / 2, 1e-3, 2.0**-20, 1e-7, 0.0]), channels)
    a, m = torch.from_numpy(acc), torch.from_numpy(multiplier)
    law = arith.requantize(arith.TORCH, a, m, zero_point, low, high, dtype)
    # The accumulators are the bias: the codes are all at the zero point.
    c = Codes(np.zeros((1, 4), np.uint8), np.zeros((channels, 4), np.int8), acc)
    result = integer_product(
        Linear((1,), 4, channels), dot, c, zero_point=0, out_dtype=dtype, arrays=[multiplier],
        operands=[Operand("m", (channels,), "float32")], features=dot.features,
        epilogue=lambda a, at, n, views: within(
            bind(requantize(a, views[0].load(at, n), zero_point, n, dtype)), low, high, n, dtype
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(result[0], law.numpy())


def test_it_says_where_it_holds():
    assert saturates(0.5, "uint8") and saturates(0.5, "int8")
    assert not saturates(1.0, "uint8")
    assert not saturates(0.5, "int16")
    assert np.float32(2.0**31) * np.float32(MULTIPLIER_MAX) < 2.0**31


CLAMPS = [("vcvtps2dq", "vpackssdw", "vpaddsw", "vpackuswb"), ("vcvtps2dq", "vpmovusdb")]


@pytest.mark.parametrize(("way", "clamps"), list(zip(WAYS, CLAMPS, strict=True)))
def test_the_stores_clamp(way, clamps):
    requantize, dot = way
    function = product(
        Linear((8,), 16, 32), dot, in_dtype="uint8", out_dtype="uint8",
        operands=[Operand("m", (32,), "float32")],
        epilogue=lambda a, at, n, views: requantize(a, views[0].load(at, n), 3, n, "uint8"),
    )  # fmt: skip
    text = assembly(function, *dot.features)
    assert all(w in text for w in clamps)
    assert not any(w in text for w in ("vmaxps", "vminps", "vpminsd"))
    assert ("vpmaxsd" in text) == (requantize is requantize_narrowed)  # below 0 only
