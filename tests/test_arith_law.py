"""The integer law against exact rational arithmetic: every row of design section 5, bit for bit."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from qcompiler import arith
from qcompiler.arith import TORCH

INT32 = st.integers(arith.INT32_MIN, arith.INT32_MAX)
U8 = st.integers(0, 255)
FLOATS = st.floats(width=32, allow_nan=False)
CODES = st.sampled_from(["uint8", "int8", "int16"])
SCALES = st.floats(2.0**-60, 2.0**60, width=32)
NEAR_SCALES = st.floats(2.0**-6, 2.0**6, width=32)


def round_float32(x: Fraction) -> Fraction:
    """The float32 nearest to x, half to even, straight from the definition of the format."""
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    return round(x / step) * step


def clamped(x: Fraction, lo: int, hi: int) -> Fraction:
    return min(max(x, Fraction(lo)), Fraction(hi))


def tensor(x: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([x], dtype=dtype)


@st.composite
def code_params(draw: st.DrawFn) -> tuple[int, int, int, str]:
    """(zero point, qmin, qmax, dtype), the range the whole type's or a part of it."""
    dtype = draw(CODES)
    info = np.iinfo(dtype)
    qmin = draw(st.integers(info.min, info.max - 1))
    qmax = draw(st.integers(qmin + 1, info.max))
    if draw(st.booleans()):
        qmin, qmax = int(info.min), int(info.max)
    return draw(st.integers(qmin, qmax)), qmin, qmax, dtype


@pytest.mark.parametrize(
    ("x", "lo", "hi", "want"),
    [(5, 0, 3, 3), (-5, 0, 3, 0), (1, 0, 3, 1), (float("nan"), -2, 3, -2), (float("inf"), 0, 3, 3)],
)
def test_clamp_sends_nan_to_the_lower_bound(x: float, lo: float, hi: float, want: float) -> None:
    assert arith.clamp(TORCH, tensor(x), lo, hi).item() == want


@given(FLOATS, SCALES, code_params())
@example(2.5, 1.0, (3, 0, 255, "uint8"))
@example(-3.5, 1.0, (0, -128, 127, "int8"))
@example(float("inf"), 1.0, (7, 0, 255, "uint8"))
def test_quantize_is_its_formula(x: float, scale: float, params: tuple[int, int, int, str]) -> None:
    zp, qmin, qmax, dtype = params
    inv = arith.inverse(scale)
    got = arith.quantize(TORCH, tensor(x), inv, zp, qmin, qmax, dtype)
    assert Fraction(inv) == round_float32(1 / Fraction(scale))
    if abs(x) == float("inf"):
        want = qmax if x > 0 else qmin
    else:
        real = round(round_float32(Fraction(x) * Fraction(inv)))
        want = int(clamped(Fraction(real), qmin - zp, qmax - zp)) + zp
    assert got.dtype == arith.DTYPES[dtype]
    assert got.item() == want


def test_quantize_rounds_ties_to_even_and_nan_to_qmin() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, float("nan")])
    got = arith.quantize(TORCH, x, 1.0, 10, 0, 255, "uint8")
    assert got.tolist() == [10, 12, 12, 10, 8, 0]


def test_quantize_by_the_inverse_differs_from_a_division_at_ties() -> None:
    """Why the law names the inverse: where one sees a tie, the other is just off it."""
    scale = arith.float32(0.7)
    x = torch.arange(-2000, 2000, dtype=torch.float32).add(0.5) * scale
    codes = arith.quantize(TORCH, x, arith.inverse(scale), 0, -32768, 32767, "int16")
    assert (codes != torch.round(x / scale)).any()


@given(st.integers(-32768, 32767), SCALES, st.integers(-32768, 32767))
def test_dequantize_is_its_formula(q: int, scale: float, zp: int) -> None:
    got = arith.dequantize(TORCH, tensor(q, torch.int16), scale, zp).item()
    assert Fraction(got) == round_float32((q - zp) * Fraction(scale))


@given(code_params(), st.floats(2.0**-20, 2.0**20, width=32), st.data())
def test_codes_survive_dequantize_and_quantize(
    params: tuple[int, int, int, str], scale: float, data: st.DataObject
) -> None:
    zp, qmin, qmax, dtype = params
    q = data.draw(st.integers(qmin, qmax))
    real = arith.dequantize(TORCH, tensor(q, arith.DTYPES[dtype]), scale, zp)
    back = arith.quantize(TORCH, real, arith.inverse(scale), zp, qmin, qmax, dtype)
    assert back.item() == q


@given(INT32, st.floats(2.0**-40, 2.0**8, width=32), code_params())
@example(5, 0.5, (0, -128, 127, "int8"))
@example(-7, 0.5, (128, 0, 255, "uint8"))
@example(2**31 - 1, 2.0**-31, (0, -128, 127, "int8"))
@example(-(2**31), 1.0, (-128, -128, 127, "int8"))
def test_requantize_is_its_formula(acc: int, m: float, params: tuple[int, int, int, str]) -> None:
    zp, qmin, qmax, dtype = params
    got = arith.requantize(TORCH, tensor(acc, torch.int32), m, zp, qmin, qmax, dtype)
    scaled = round_float32(round_float32(Fraction(acc)) * Fraction(m))
    assert got.item() == round(clamped(scaled, qmin - zp, qmax - zp)) + zp
    exact = clamped(acc * Fraction(m), qmin - zp, qmax - zp)
    assert abs(int(got.item()) - zp - exact) <= Fraction(1, 2) + Fraction(2**17, 2**24)


@given(INT32, NEAR_SCALES, NEAR_SCALES)
def test_requantize_select_takes_the_multiplier_of_the_sign(acc: int, mp: float, mn: float) -> None:
    got = arith.requantize_select(
        TORCH, tensor(acc, torch.int32), tensor(mp), tensor(mn), 3, -128, 127, "int8"
    )
    m = mp if acc >= 0 else mn
    want = arith.requantize(TORCH, tensor(acc, torch.int32), m, 3, -128, 127, "int8")
    assert got.item() == want.item()


@given(INT32, st.floats(2.0**-40, 1.0, width=32), U8)
def test_residual_value_keeps_eight_fraction_bits(acc: int, m: float, zp: int) -> None:
    got = arith.residual_value(
        TORCH, tensor(acc, torch.int32), arith.residual_multiplier(m), zp, 0, 255
    )
    scaled = round_float32(round_float32(Fraction(acc)) * Fraction(m) * 256)
    assert got.dtype == torch.int32
    assert got.item() == round(clamped(scaled, -zp * 256, (255 - zp) * 256))


def test_zero_points_and_bounds_may_be_operands() -> None:
    """The interpreter passes scale and zero point as tensors, a kernel as numbers: same codes."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 3
    zp, scale = torch.tensor(17, dtype=torch.int32), torch.tensor(arith.float32(0.03))
    inv = torch.tensor(arith.inverse(scale.item()))
    numbers = arith.quantize(TORCH, x, inv.item(), 17, 0, 255, "uint8")
    operands = arith.quantize(TORCH, x, inv, zp, 0, 255, "uint8")
    assert torch.equal(numbers, operands)
    assert torch.equal(
        arith.dequantize(TORCH, numbers, scale.item(), 17),
        arith.dequantize(TORCH, numbers, scale, zp),
    )


@given(U8, U8, U8, U8, NEAR_SCALES, NEAR_SCALES, NEAR_SCALES)
def test_add_is_its_formula_and_within_int32(
    qa: int, qb: int, za: int, zb: int, sa: float, sb: float, sy: float
) -> None:
    ranges = (-za, 255 - za), (-zb, 255 - zb)
    ma, mb, bits = arith.add_multipliers(sa, ranges[0], sb, ranges[1], sy)
    got = arith.int_add(
        TORCH, tensor(qa, torch.uint8), tensor(qb, torch.uint8), za, zb, ma, mb
    ).item()
    assert got == (qa - za) * ma + (qb - zb) * mb
    assert all(
        arith.INT32_MIN <= a * ma + b * mb <= arith.INT32_MAX
        for a, b in product((*ranges[0], 0), (*ranges[1], 0))
    )
    exact = ((qa - za) * Fraction(sa) + (qb - zb) * Fraction(sb)) / Fraction(sy)
    error = abs(Fraction(got) / Fraction(2) ** bits - exact)
    slack = Fraction(1) + Fraction(1, 2**20)
    assert error <= slack * (abs(qa - za) + abs(qb - zb)) / Fraction(2) ** (bits + 1)


@given(U8, U8, U8, U8)
def test_mul_is_exact(qa: int, qb: int, za: int, zb: int) -> None:
    got = arith.int_mul(TORCH, tensor(qa, torch.uint8), tensor(qb, torch.uint8), za, zb)
    assert got.dtype == torch.int32
    assert got.item() == (qa - za) * (qb - zb)


@given(INT32, SCALES, NEAR_SCALES)
def test_rescale_multiplies_the_scales_first(acc: int, sx: float, sw: float) -> None:
    got = arith.rescale(TORCH, tensor(acc, torch.int32), tensor(sx), tensor(sw)).item()
    scale = round_float32(Fraction(sx) * Fraction(sw))
    assert Fraction(got) == round_float32(round_float32(Fraction(acc)) * scale)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.integers(1, 127),
)
@example([0.0, -0.0], 127)
@example([2.0**-101, 2.0**-126], 127)
@example([2.0**-100], 63)
def test_dynamic_quantize_is_its_formula(row: list[float], qmax: int) -> None:
    codes, sx = arith.dynamic_quantize(TORCH, torch.tensor([row]), qmax)
    absmax = max(abs(Fraction(x)) for x in row)
    assert codes.dtype == torch.int8
    assert sx.shape == (1, 1)
    if absmax < Fraction(2) ** -100:
        assert sx.item() == 0
        assert codes.count_nonzero() == 0
        return
    assert Fraction(sx.item()) == round_float32(absmax * round_float32(Fraction(1, qmax)))
    inv = round_float32(qmax / absmax)
    want = [round(clamped(round_float32(Fraction(x) * inv), -qmax, qmax)) for x in row]
    assert codes.tolist() == [want]


def test_dynamic_quantize_treats_each_row_alone() -> None:
    x = torch.tensor([[1.0, -2.0], [0.0, 0.0], [float("nan"), 4.0]])
    codes, sx = arith.dynamic_quantize(TORCH, x)
    assert codes.tolist() == [[64, -127], [0, 0], [-127, 127]]
    assert sx.flatten().tolist() == [arith.float32(2 / 127), 0.0, arith.float32(4 / 127)]
