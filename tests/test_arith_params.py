"""Scales, zero points, multipliers, biases, tables, folded clamps: formulas and refusals."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qcompiler import arith
from qcompiler.arith import TORCH, Affine, ArithError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCALES = st.floats(2.0**-60, 2.0**60, width=32)
RANGES = st.sampled_from([(0, 255), (-128, 127), (-127, 127), (0, 127), (-32768, 32767), (-7, 7)])


def is_float32(x: float) -> bool:
    return arith.float32(x) == x


@given(SCALES)
def test_inverse_is_the_rounded_quotient(scale: float) -> None:
    inv = arith.inverse(scale)
    assert inv == float(torch.tensor(1.0) / torch.tensor(scale))
    assert is_float32(inv)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_inverse_refuses_what_is_no_scale(scale: float) -> None:
    with pytest.raises(ArithError, match="expected a finite positive number"):
        arith.inverse(scale)


@given(SCALES, st.lists(SCALES, min_size=1, max_size=4), SCALES)
def test_multiplier_is_computed_in_float64(sx: float, sw: list[float], sy: float) -> None:
    exact = [float(Fraction(sx) * Fraction(w)) / sy for w in sw]
    assume(all(2.0**-126 < m < 2.0**127 for m in exact))
    got = arith.multiplier(sx, sw, sy)
    assert got.dtype == torch.float32
    assert got.tolist() == [arith.float32(m) for m in exact]
    assert torch.equal(arith.multiplier(sx, torch.tensor(sw), sy), got)
    single = arith.multiplier(sx, sw[0], sy)
    assert isinstance(single, float)
    assert single == got[0].item()


@pytest.mark.parametrize(
    ("sx", "sw", "sy"),
    [
        (2.0**60, [1.0, 2.0**60], 2.0**-60),
        (2.0**-60, [1.0, 2.0**-60], 2.0**60),
        (1.0, [1.0, math.nan], 1.0),
        (1.0, [1.0, 0.0], 1.0),
        (1.0, [1.0, -1.0], 1.0),
    ],
)
def test_multiplier_names_the_channel_it_refuses(sx: float, sw: list[float], sy: float) -> None:
    with pytest.raises(ArithError, match=r"conv_3, channel 1: .* expected a finite positive"):
        arith.multiplier(sx, sw, sy, what="conv_3")
    with pytest.raises(ArithError, match="channel 0"):
        arith.multiplier(sx, sw[1], sy)


def test_residual_multiplier_is_exact_or_refused() -> None:
    m = torch.tensor([0.1, 3.0])
    assert torch.equal(arith.residual_multiplier(m), m * 256)
    assert arith.residual_multiplier(arith.float32(0.1)) == arith.float32(0.1) * 256
    with pytest.raises(ArithError, match="overflows"):
        arith.residual_multiplier(2.0**121)


@given(FLOATS, FLOATS, RANGES, st.booleans())
@example(0.0, 0.0, (0, 255), False)
@example(1.0, 6.0, (0, 255), False)
@example(-6.0, -1.0, (0, 255), False)
@example(-3e38, 3e38, (0, 255), False)
@example(-1e-45, 1e-45, (-128, 127), True)
def test_choose_params(lo: float, hi: float, codes: tuple[int, int], symmetric: bool) -> None:
    lo, hi = min(lo, hi), max(lo, hi)
    qmin, qmax = codes
    scale, zp = arith.choose_params(lo, hi, qmin, qmax, symmetric)
    assert is_float32(scale)
    assert arith.SCALE_MIN <= scale <= arith.SCALE_MAX
    assert qmin <= zp <= qmax
    if symmetric:
        assert zp == (128 if codes == (0, 255) else 64 if codes == (0, 127) else 0)
    if scale < arith.SCALE_MAX:
        assert scale * (qmax - zp) >= hi - scale * 0.51
        assert scale * (qmin - zp) <= lo + scale * 0.51
    if arith.SCALE_MIN < scale < arith.SCALE_MAX:
        width = max(hi, 0.0) - min(lo, 0.0)
        fewest = (qmax - qmin) / 2 - 1 if symmetric else qmax - qmin
        assert scale * fewest <= width * (1 + 2.0**-22), "no coarser than the range needs"


def test_choose_params_has_zero_exactly() -> None:
    scale, zp = arith.choose_params(0.5, 6.0, 0, 255, False)
    assert (scale, zp) == (arith.float32(6 / 255), 0)
    zero = arith.quantize(TORCH, torch.zeros(1), arith.inverse(scale), zp, 0, 255, "uint8")
    assert arith.dequantize(TORCH, zero, scale, zp).item() == 0


@pytest.mark.parametrize(
    ("lo", "hi", "qmin"), [(math.nan, 1, 0), (0, math.inf, 0), (1, -1, 0), (0, 1, 255)]
)
def test_choose_params_refuses(lo: float, hi: float, qmin: int) -> None:
    with pytest.raises(ArithError, match="expected"):
        arith.choose_params(lo, hi, qmin, 255, False)


def test_weight_scales_row_by_row() -> None:
    """absmax, proof, bias and the floor: each decides one channel."""
    w = torch.tensor([[1.0, -127.0], [0.25, 0.5], [0.0, 0.0], [0.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, -(2.0**24), 0.0])
    proof = torch.tensor([0.5, 3.0, 0.0, 0.0])
    got = arith.weight_scales(w, 0, x_scale=0.5, bias=bias, proof=proof)
    assert got.dtype == torch.float32
    assert got.tolist() == [1.0, 3.0, 2.0, 2.0**-60]
    assert arith.weight_scales(w, 0, qmax=7).tolist()[0] == arith.float32(127 / 7)
    assert torch.equal(arith.weight_scales(w.T, 1), arith.weight_scales(w, 0))


def test_weight_scales_takes_any_shape() -> None:
    w = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    want = (w.double().abs().amax((0, 2, 3)) / 127).float()
    assert torch.equal(arith.weight_scales(w, 1), want)
    assert torch.equal(arith.weight_scales(w, -3), want)
    assert arith.weight_scales(torch.tensor([127.0, 0.0]), 0).tolist() == [1.0, 2.0**-60]
    assert arith.weight_scales(torch.zeros(2, 0), 0).tolist() == [2.0**-60] * 2


def test_weight_scales_refuses() -> None:
    with pytest.raises(ArithError, match="channel 1: expected finite"):
        arith.weight_scales(torch.tensor([[1.0], [math.nan]]), 0)
    with pytest.raises(ArithError, match="x_scale"):
        arith.weight_scales(torch.ones(1, 1), 0, bias=torch.ones(1))
    with pytest.raises(ArithError, match="channel 0: expected at most 2\\^60"):
        arith.weight_scales(torch.ones(1, 1), 0, x_scale=2.0**-60, bias=torch.full((1,), 1e30))


@given(FLOATS, SCALES, st.sampled_from([7, 127]))
def test_quantize_weight_is_the_quantize_law(w: float, scale: float, qmax: int) -> None:
    got = arith.quantize_weight(torch.tensor([[w]]), torch.tensor([scale]), 0, qmax)
    inv = arith.inverse(scale)
    want = arith.quantize(TORCH, torch.tensor([[w]]), inv, 0, -qmax, qmax, "int8")
    assert got.dtype == torch.int8
    assert torch.equal(got, want)


def test_quantize_weight_rounds_ties_to_even_along_its_axis() -> None:
    w = torch.tensor([[0.5, 3.0], [1.5, 5.0], [-2.5, -1e9]])
    got = arith.quantize_weight(w, torch.tensor([1.0, 2.0]), 1)
    assert got.tolist() == [[0, 2], [2, 2], [-2, -127]]


@given(FLOATS, SCALES, SCALES)
def test_codes_never_grow_with_the_scale(w: float, a: float, b: float) -> None:
    """What the proofs rest on: a scale that is proven stays so when it grows."""
    scales = torch.tensor([min(a, b), max(a, b)])
    codes = arith.quantize_weight(torch.full((2, 1), w), scales, 0).int().abs().flatten().tolist()
    assert codes[0] >= codes[1]


@given(
    st.lists(st.floats(-(2.0**70), 2.0**70, width=32), min_size=1, max_size=5),
    st.floats(2.0**-30, 2.0**30, width=32),
    st.floats(0, 100, width=32),
)
@example([5e4, -3e5, 0.0], 2.0**-30, 0.0)
def test_bias_codes_stay_within_what_the_scale_allows(
    bias: list[float], sx: float, spread: float
) -> None:
    """Dead channels and large folded biases, as in EfficientNet-Lite0."""
    assume(max(map(abs, bias)) / sx < 2.0**80)
    b = torch.tensor(bias)
    w = torch.linspace(-spread, spread, 3).repeat(len(bias), 1)
    scales = arith.weight_scales(w, 0, x_scale=sx, bias=b)
    codes = arith.quantize_bias(b, sx, scales)
    assert codes.dtype == torch.int32
    assert codes.abs().max() <= 2**24 + 2
    for value, scale, code in zip(bias, scales.tolist(), codes.tolist(), strict=True):
        exact = Fraction(value) / (Fraction(sx) * Fraction(scale))
        assert abs(code - exact) <= Fraction(1, 2) + Fraction(1, 2**20)
        assert abs(Fraction(value)) * 2 < Fraction(sx) * Fraction(scale) or code != 0


def test_quantize_bias_refuses_what_leaves_int32() -> None:
    assert arith.quantize_bias(torch.tensor([2.5, 3.5]), 1.0, 1.0).tolist() == [2, 4]
    with pytest.raises(ArithError, match=r"bias, channel 1: .* outside int32"):
        arith.quantize_bias(torch.tensor([0.0, 1.0]), 2.0**-20, torch.tensor([1.0, 2.0**-20]))
    with pytest.raises(ArithError, match="channel 0"):
        arith.quantize_bias(torch.tensor([math.nan]), 1.0, 1.0)


def fits_at(bits: int, sa: float, ra: tuple[int, int], sb: float, rb: tuple[int, int]) -> bool:
    ma, mb = (round(s * Fraction(2) ** bits) for s in (Fraction(sa), Fraction(sb)))
    low = min(ma * ra[0], 0) + min(mb * rb[0], 0)
    high = max(ma * ra[1], 0) + max(mb * rb[1], 0)
    return max(ma, mb, high) < 2**31 and low >= -(2**31)


@given(SCALES, SCALES, st.integers(0, 255), st.integers(0, 255))
@example(2.0**60, 2.0**-60, 0, 255)
@example(1.0, 1.0, 128, 128)
@example(2.0**60, 2.0**60, 255, 255)
def test_add_multipliers_uses_the_most_bits_that_fit(
    sa: float, sb: float, za: int, zb: int
) -> None:
    ra, rb = (-za, 255 - za), (-zb, 255 - zb)
    ma, mb, bits = arith.add_multipliers(sa, ra, sb, rb, 1.0)
    assert (ma, mb) == tuple(round(Fraction(s) * Fraction(2) ** bits) for s in (sa, sb))
    assert fits_at(bits, sa, ra, sb, rb)
    assert bits == 20 or not fits_at(bits + 1, sa, ra, sb, rb)


def test_add_multipliers_takes_a_residual() -> None:
    """16-bit residuals with 8 fraction bits keep the same F as plain codes of the same scale."""
    scale, codes = arith.residual_params(0.25, 100, 0, 255)
    assert (scale, codes) == (0.25 / 256, (-25600, 155 * 256))
    assert arith.add_multipliers(scale, codes, 0.25, (-100, 155), 0.5) == (2**11, 2**19, 20)


def test_add_multipliers_refuses_what_fits_nowhere() -> None:
    with pytest.raises(ArithError, match="fit no int32 multiplier"):
        arith.add_multipliers(2.0**500, (0, 255), 1.0, (0, 255), 1.0)


@pytest.mark.parametrize("source_dtype", ["uint8", "int8"])
@pytest.mark.parametrize("target_dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", ["gelu", "silu", "sigmoid", "tanh", "hardswish", "exp", "log"])
def test_table_has_every_answer(source_dtype: str, target_dtype: str, name: str) -> None:
    ranges = {"uint8": (0, 255), "int8": (-128, 127)}
    source = Affine(arith.float32(0.05), 40, *ranges[source_dtype], source_dtype)
    target = Affine(arith.float32(0.03), 20, *ranges[target_dtype], target_dtype)
    function = getattr(arith, name)
    table = arith.unary_table(lambda x: function(TORCH, x), source, target)
    assert table.shape == (256,)
    assert table.dtype == arith.DTYPES[target_dtype]
    codes = torch.arange(ranges[source_dtype][0], ranges[source_dtype][1] + 1)
    x = arith.dequantize(TORCH, codes, source.scale, source.zero_point)
    want = arith.quantize(
        TORCH,
        function(TORCH, x),
        arith.inverse(target.scale),
        target.zero_point,
        target.qmin,
        target.qmax,
        target_dtype,
    )
    got = TORCH.lookup(table, codes + arith.table_offset(source_dtype))
    assert torch.equal(got, want)
    assert len(got.unique()) > 2, "a table of constants would prove nothing"


def test_table_refuses() -> None:
    eight, sixteen = Affine(1.0, 0, 0, 255, "uint8"), Affine(1.0, 0, -128, 127, "int16")
    with pytest.raises(ArithError, match="8-bit codes, uint8 or int8; got int16"):
        arith.unary_table(lambda x: x, sixteen, eight)
    with pytest.raises(ArithError, match=r"got torch\.float64"):
        arith.unary_table(lambda x: x.double(), eight, eight)


BOUND = st.one_of(st.none(), st.floats(allow_nan=False, width=32))


@given(
    BOUND,
    BOUND,
    st.floats(2.0**-8, 2.0**4, width=32),
    st.integers(0, 255),
    st.lists(st.floats(width=32), min_size=1, max_size=20),
)
@example(0.0, 6.0, 0.25, 0, [math.nan, math.inf, -math.inf, -0.0])
@example(0.0, None, 0.25, 10, [0.125, -0.125, 0.375])
@example(6.0, 0.0, 0.25, 10, [math.nan, 1.0])
def test_clamp_folds_into_the_code_range(
    lo: float | None, hi: float | None, scale: float, zp: int, values: list[float]
) -> None:
    inv = arith.inverse(scale)
    around = [v + d * scale / 2 for v in (lo, hi) if v is not None for d in (-3, -1, 0, 1, 3)]
    x = torch.tensor(values + around, dtype=torch.float32)
    # A bound that is absent lets everything pass, NaN included.
    clamped = arith.clamp(TORCH, x, -math.inf if lo is None else lo, math.inf if hi is None else hi)
    want = arith.quantize(TORCH, clamped, inv, zp, 0, 255, "uint8")
    qmin, qmax = arith.clamp_codes(lo, hi, scale, zp, 0, 255)
    got = arith.quantize(TORCH, x, inv, zp, qmin, qmax, "uint8")
    assert 0 <= qmin <= qmax <= 255
    assert torch.equal(got, want)
