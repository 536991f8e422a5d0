"""Functions and row reductions: stated errors hold, special values, and a second algebra agrees."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy import special

from qcompiler import arith
from qcompiler.arith import TORCH

Array = npt.NDArray[Any]
EPS = 2.0**-24
INF, NAN = math.inf, math.nan
SPECIAL = [0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-45, 1.17e-38, 3.4e38, -3.4e38, 1e30, -1e30]


class NumpyAlgebra:
    """The law's operations a second time, on numpy arrays, with loops where the text has loops."""

    def const(self, value: float, dtype: str = "float32", /) -> Array:
        return np.array(value, dtype=dtype)

    def add(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a + b)

    def sub(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a - b)

    def mul(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a * b)

    def div(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a / b)

    def trunc_div(self, a: Array, b: Array, /) -> Array:
        assert not np.isin(b, (0, -1)).any()
        size = np.abs(a.astype(object)) // np.abs(b.astype(object))
        return np.where((a < 0) == (b < 0), size, -size).astype(a.dtype)

    def sqrt(self, a: Array, /) -> Array:
        return np.asarray(np.sqrt(a))

    def neg(self, a: Array, /) -> Array:
        return np.asarray(-a)

    def abs(self, a: Array, /) -> Array:
        return np.asarray(np.abs(a))

    def rint(self, a: Array, /) -> Array:
        return np.asarray(np.rint(a))

    def lt(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a < b)

    def gt(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a > b)

    def le(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a <= b)

    def ge(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a >= b)

    def eq(self, a: Array, b: Array, /) -> Array:
        return np.asarray(a == b)

    def where(self, condition: Array, a: Array, b: Array, /) -> Array:
        return np.where(condition, a, b)

    def logical_and(self, a: Array, b: Array, /) -> Array:
        return np.logical_and(a, b)

    def logical_or(self, a: Array, b: Array, /) -> Array:
        return np.logical_or(a, b)

    def logical_not(self, a: Array, /) -> Array:
        return np.logical_not(a)

    def min(self, a: Array, b: Array, /) -> Array:
        return np.where(a < b, a, b)

    def max(self, a: Array, b: Array, /) -> Array:
        return np.where(a > b, a, b)

    def cast(self, a: Array, dtype: str, /) -> Array:
        if dtype == "int32" and a.dtype == np.float32:
            assert np.isfinite(a).all(), "the law never casts a float that is not finite"
            assert (np.abs(a) < 2.0**31).all()
        return a.astype(dtype)

    def exp2i(self, i: Array, /) -> Array:
        assert ((i >= -126) & (i <= 127)).all(), "exp2i beyond the normal range"
        return np.asarray(np.ldexp(np.float32(1), i).astype(np.float32))

    def float_bits(self, a: Array, /) -> Array:
        return a.view(np.int32)

    def bits_float(self, a: Array, /) -> Array:
        return a.view(np.float32)

    def shift_right(self, a: Array, count: int, /) -> Array:
        return np.asarray(np.floor_divide(a, 1 << count).astype(np.int32))

    def lookup(self, table: Array, index: Array, /) -> Array:
        return np.asarray(table[index])

    def row_size(self, x: Array, /) -> Array:
        return np.array(x.shape[-1], dtype=np.float32)

    def row_max(self, x: Array, /) -> Array:
        rows = x.reshape(-1, x.shape[-1]).tolist()
        best = [max((v for v in row if v == v), default=-INF) or 0.0 for row in rows]
        return np.array(best, dtype=np.float32).reshape(*x.shape[:-1], 1)

    def row_top(self, x: Array, /) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        best = [x.dtype.type(NAN if (r != r).any() else max(r.tolist()) or 0) for r in rows]
        return np.array(best).reshape(*x.shape[:-1], 1)

    def row_sum(self, x: Array, /) -> Array:
        sums = [self._sum(row) for row in x.reshape(-1, x.shape[-1])]
        return np.array(sums, dtype=np.float32).reshape(*x.shape[:-1], 1)

    def keep(self, x: Array, /) -> Array:
        return x

    def _sum(self, row: Array) -> np.float32:
        lanes = [np.float32(0)] * 16
        for k, v in enumerate(row):
            lanes[k % 16] = lanes[k % 16] + v
        for width in (8, 4, 2, 1):
            lanes = [lanes[j] + lanes[j + width] for j in range(width)]
        return lanes[0]


NUMPY: arith.RowAlgebra[Array] = NumpyAlgebra()

Function = Callable[[Any, Any], Any]


def gelu(x: Array) -> Array:
    return np.asarray(x / 2 * special.erfc(-x * math.sqrt(0.5)))


def gelu_tanh(x: Array) -> Array:
    return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


# name, true function in float64, its torch twin, domain measured, bound in ulp, bound in eps.
# A value must be within the one or the other; the eps bound is times max(|x|, 1) for the gates.
CASES: list[tuple[str, Callable[[Array], Array], Any, tuple[float, float], float, float]] = [
    ("exp", np.exp, torch.exp, (-104, 88.72), 1.5, 0),
    ("log", np.log, torch.log, (1e-45, 3e38), 1, 0),
    ("erf", special.erf, torch.erf, (-5, 5), 7, 0),
    ("tanh", np.tanh, torch.tanh, (-12, 12), 7, 0),
    ("sigmoid", special.expit, torch.sigmoid, (-87.3, 120), 3, 0),
    ("silu", lambda x: x * special.expit(x), F.silu, (-87.3, 120), 4, 0),
    ("gelu", gelu, F.gelu, (-20, 20), 0, 5),
    ("gelu_tanh", gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), (-20, 20), 0, 5),
    ("hardsigmoid", lambda x: np.clip(x + 3, 0, 6) / 6, F.hardsigmoid, (-8, 8), 0, 1.5),
    ("hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6, F.hardswish, (-8, 8), 0, 3),
    ("softplus", lambda x: np.logaddexp(x, 0), F.softplus, (-100, 100), 3, 0),
    ("elu", lambda x: np.where(x > 0, x, np.expm1(x)), F.elu, (-30, 5), 2, 0),
    ("sin", np.sin, torch.sin, (-(2.0**18), 2.0**18), 0, 2),
    ("cos", np.cos, torch.cos, (-(2.0**18), 2.0**18), 0, 2),
]
GATES = {"gelu", "gelu_tanh", "hardswish"}
IDS = [case[0] for case in CASES]


def samples(lo: float, hi: float, count: int = 100_000) -> torch.Tensor:
    """Evenly spread, log-uniform in magnitude down to denormals, and around 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    even = torch.linspace(lo, hi, count, dtype=torch.float64)
    powers = torch.rand(count, generator=generator, dtype=torch.float64) * 278 - 150
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    near = torch.linspace(-2, 2, count, dtype=torch.float64)
    x = torch.cat([even, 2.0**powers * signs, near]).to(torch.float32)
    return x[(x >= lo) & (x <= hi)]


@pytest.mark.parametrize(("name", "true", "twin", "domain", "ulps", "eps"), CASES, ids=IDS)
def test_error_is_within_what_is_stated(
    name: str, true: Callable[[Array], Array], twin: Any, domain: Any, ulps: float, eps: float
) -> None:
    x = samples(*domain)
    got = getattr(arith, name)(TORCH, x)
    assert got.dtype == torch.float32
    with np.errstate(all="ignore"):
        want = true(x.double().numpy())
        ulp = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    scale = np.maximum(np.abs(x.double().numpy()), 1) if name in GATES else 1.0
    error = np.abs(got.double().numpy() - want)
    assert np.isfinite(error).all()
    assert (error <= ulps * ulp + eps * EPS * scale).all(), float(x[int(np.argmax(error / ulp))])


@pytest.mark.parametrize("name", IDS)
def test_a_second_algebra_gives_the_same_bits(name: str) -> None:
    """The formula uses nothing but the algebra, in range, and rounds the same everywhere."""
    x = torch.cat([samples(-300, 300, 5000), torch.tensor(SPECIAL)])
    with np.errstate(all="ignore"):
        other = getattr(arith, name)(NUMPY, x.numpy())
    assert other.dtype == np.float32
    np.testing.assert_array_equal(getattr(arith, name)(TORCH, x).numpy(), other)


@pytest.mark.parametrize(("name", "twin"), [(c[0], c[2]) for c in CASES], ids=IDS)
def test_special_values_are_those_of_torch(name: str, twin: Any) -> None:
    x = torch.tensor(SPECIAL)
    got, want = getattr(arith, name)(TORCH, x), twin(x)
    for value, a, b in zip(x.tolist(), got.tolist(), want.tolist(), strict=True):
        if name in ("sin", "cos") and abs(value) > 2.0**18:
            assert math.isnan(a), "beyond the domain: NaN, never a wrong number"
        elif name in GATES and value > 1e30:
            assert a == value, "torch overflows on the way in some builds; ours is the identity"
        else:
            assert a == pytest.approx(b, rel=1e-6, abs=2.0**-126, nan_ok=True), value


def test_exact_values() -> None:
    x = torch.tensor([0.0, -INF, 88.8, -104.5])
    assert arith.exp(TORCH, x).tolist() == [1.0, 0.0, INF, 0.0]
    assert arith.log(TORCH, torch.tensor([1.0, 0.0, -1.0])).nan_to_num(nan=5).tolist()[:1] == [0.0]
    assert arith.hardswish(TORCH, torch.tensor([3.0, 5.5, 1e30, -3.0])).tolist() == [
        3.0,
        5.5,
        arith.float32(1e30),
        0.0,
    ]


@pytest.mark.parametrize(("name", "end"), [("erf", 4.0), ("tanh", 9.3)])
def test_saturation_is_exact(name: str, end: float) -> None:
    """One ulp short of 1 would make gelu(-1e30) a large number."""
    function = getattr(arith, name)
    beyond = torch.linspace(end, 50, 1001)
    assert (function(TORCH, beyond) == 1).all()
    assert (function(TORCH, -beyond) == -1).all()
    assert function(TORCH, torch.linspace(-end, end, 100_001)).abs().max() == 1


def test_exp_reaches_the_subnormals() -> None:
    x = torch.linspace(-103.9, -87.4, 5001)
    want = torch.exp(x.double())
    assert ((arith.exp(TORCH, x).double() - want).abs() <= 2.0**-149 + want * 2.0**-23).all()


@pytest.mark.parametrize(("name", "twin"), [(c[0], c[2]) for c in CASES], ids=IDS)
def test_derivatives_are_those_of_torch(name: str, twin: Any) -> None:
    points = [0.3, 1.0, 2.0, 7.5, 1e-3] + ([] if name == "log" else [0.0, -0.7, -1.0, -2.5, -40.0])
    x = torch.tensor(points, requires_grad=True)
    (got,) = torch.autograd.grad(getattr(arith, name)(TORCH, x).sum(), x)
    (want,) = torch.autograd.grad(twin(x).sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_softplus_takes_beta_and_elu_alpha(beta: float) -> None:
    x = torch.linspace(-20, 20, 1001)
    torch.testing.assert_close(arith.softplus(TORCH, x, beta), F.softplus(x, beta))
    torch.testing.assert_close(arith.elu(TORCH, x, beta), F.elu(x, beta))


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 33, 197, 768])
def test_row_sum_is_sixteen_lanes_and_a_tree(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(6, size, generator=generator) * 2.0 ** torch.randint(
        -20, 20, (6, size), generator=generator
    )
    got = TORCH.row_sum(x)
    assert got.shape == (6, 1)
    np.testing.assert_array_equal(got.numpy(), NUMPY.row_sum(x.numpy()))
    torch.testing.assert_close(got.double(), x.double().sum(-1, keepdim=True), rtol=1e-4, atol=1)


def test_row_sum_is_not_the_plain_sum() -> None:
    """Order shows: 2^24 + 1 is lost within a lane, kept where the one has a lane of its own."""
    row = torch.zeros(1, 32)
    row[0, 0], row[0, 16], row[0, 1], row[0, 17] = 2.0**24, 1.0, 1.0, 1.0
    assert TORCH.row_sum(row).item() == 2.0**24 + 2
    assert math.copysign(1, TORCH.row_sum(torch.full((1, 3), -0.0)).item()) == 1


def test_row_max_leaves_nan_out_and_zero_is_positive() -> None:
    x = torch.tensor([[1.0, NAN, 3.0], [-0.0, -1.0, -0.0], [NAN, NAN, NAN], [-INF, -INF, -5.0]])
    got = TORCH.row_max(x).flatten()
    assert got.tolist() == [3.0, 0.0, -INF, -5.0]
    assert math.copysign(1, got[1].item()) == 1


@pytest.mark.parametrize("size", [1, 7, 16, 50, 384])
def test_rows_agree_with_torch_and_with_the_second_algebra(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(4, 3, size, generator=generator) * 5
    w, b = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    pairs: list[tuple[Function, torch.Tensor]] = [
        (lambda n, v: arith.softmax(n, v[0]), x.softmax(-1)),
        (lambda n, v: arith.log_softmax(n, v[0]), x.log_softmax(-1)),
        (lambda n, v: arith.layer_norm(n, v[0], eps=1e-5), F.layer_norm(x, (size,))),
        (
            lambda n, v: arith.layer_norm(n, v[0], v[1], v[2], eps=1e-3),
            F.layer_norm(x, (size,), w, b, 1e-3),
        ),
        (lambda n, v: arith.rms_norm(n, v[0], v[1], eps=1e-6), F.rms_norm(x, (size,), w, 1e-6)),
        (lambda n, v: arith.row_mean(n, v[0]), x.mean(-1, keepdim=True)),
        (lambda n, v: arith.row_variance(n, v[0]), x.var(-1, correction=0, keepdim=True)),
    ]
    for formula, want in pairs:
        got = formula(TORCH, (x, w, b))
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
        other = formula(NUMPY, (x.numpy(), w.numpy(), b.numpy()))
        np.testing.assert_array_equal(got.numpy(), other)


def test_softmax_of_masked_rows() -> None:
    x = torch.tensor([[0.0, -INF, 0.0], [-INF, -INF, -INF], [1.0, NAN, 2.0], [1.0, INF, 2.0]])
    y = arith.softmax(TORCH, x)
    assert y[0].tolist() == [0.5, 0.0, 0.5]
    assert y[1:].isnan().all()
    assert arith.log_softmax(TORCH, x)[0, 1] == -INF


def test_layer_norm_survives_a_large_mean() -> None:
    """Two passes: a one-pass variance of values around 1e4 would lose all its digits."""
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(3)) + 1e4
    want = F.layer_norm(x.double(), (256,))
    assert (arith.layer_norm(TORCH, x).double() - want).abs().max() < 1e-2


def test_row_functions_are_differentiable() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(5), requires_grad=True)
    v = torch.randn(3, 40, generator=torch.Generator().manual_seed(6))
    ours = [arith.softmax, arith.log_softmax, arith.layer_norm]
    twins: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t.softmax(-1),
        lambda t: t.log_softmax(-1),
        lambda t: F.layer_norm(t, (40,)),
    ]
    for mine, twin in zip(ours, twins, strict=True):
        (got,) = torch.autograd.grad((mine(TORCH, x) * v).sum(), x)
        (want,) = torch.autograd.grad((twin(x) * v).sum(), x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_functions_are_the_same_bits_for_good(golden: Callable[[str], None]) -> None:
    """A checksum per function over fixed inputs: whoever changes a law does it knowingly."""
    # Steps are powers of two, so that the inputs themselves are exact everywhere; log takes |x|.
    x = torch.cat([torch.arange(-4096, 4096) / 2**k for k in (4, 8, 20)])
    lines = []
    for name in IDS:
        y = getattr(arith, name)(TORCH, x.abs() + 2.0**-30 if name == "log" else x)
        lines.append(f"{name} {zlib.crc32((y + 0.0).numpy().tobytes()):08x}")
    rows = TORCH.row_sum(x.reshape(64, -1)).numpy().tobytes()
    golden("\n".join([*lines, f"row_sum {zlib.crc32(rows):08x}", ""]))


# ------------------------------------------------------------------------- powers and remainders

EDGES = torch.tensor([*SPECIAL, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 0.1, 16777215.0, 1e10])


def pairs_of(x: torch.Tensor, y: torch.Tensor, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of edges, and random pairs whose magnitudes differ by up to 10^spread."""
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(20_000, generator=rng) * 10 ** (torch.rand(20_000, generator=rng) * spread)
    b = torch.randn(20_000, generator=rng) * 10 ** (-torch.rand(20_000, generator=rng) * spread)
    first, second = torch.meshgrid(x, y, indexing="ij")
    return torch.cat([first.flatten(), a]), torch.cat([second.flatten(), b])


def test_fmod_is_exact() -> None:
    x, y = pairs_of(EDGES, EDGES, 30)
    x, y = torch.cat([x, x]), torch.cat([y, y.round()])
    with np.errstate(all="ignore"):
        want = np.fmod(x.numpy(), y.numpy())
        other = arith.fmod(NUMPY, x.numpy(), y.numpy())
    got = arith.fmod(TORCH, x, y)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), want)
    np.testing.assert_array_equal(other, want)


def test_power_has_the_special_values_of_pow_and_its_stated_error() -> None:
    x, y = pairs_of(EDGES, EDGES, 2)
    x, y = torch.cat([x, x]), torch.cat([y, y.round()])
    got = arith.power(TORCH, x, y).numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        want = np.power(x.double().numpy(), y.double().numpy())
        narrow = np.power(x.numpy(), y.numpy())
    same = (got == narrow) | (np.isnan(got) & np.isnan(narrow))
    sign = np.signbit(got) == np.signbit(narrow)
    assert (sign | np.isnan(got)).all()
    tiny = np.abs(want) < 2.0**-126
    with np.errstate(all="ignore"):
        error = np.abs(got - want) / np.maximum(np.abs(want), 2.0**-126)
    near = np.isfinite(got) & ((error <= 2e-5) | tiny & (np.abs(got) < 2.0**-125))
    edge = np.abs(np.abs(want) / np.finfo(np.float32).max - 1) < 2e-5
    assert (same | near | edge).all(), (x[~(same | near | edge)], y[~(same | near | edge)])


def test_whole_division_is_exact_and_never_traps() -> None:
    ends = [0, 1, -1, 2, -7, 3, 2**60 + 1, -(2**60) - 1, 2**63 - 1, -(2**63) + 1, -(2**63)]
    a, b = (v.flatten() for v in torch.meshgrid(*[torch.tensor(ends)] * 2, indexing="ij"))
    got, other = arith.trunc_div(TORCH, a, b), arith.trunc_div(NUMPY, a.numpy(), b.numpy())
    np.testing.assert_array_equal(got.numpy(), other)
    for x, y, q in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        exact = x if y == 0 else (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)
        assert (q - exact) % 2**64 == 0


def test_row_top_is_nan_where_there_is_one_and_exact_for_integers() -> None:
    rows = torch.tensor([[1.0, NAN, 3.0], [NAN, 1.0, INF], [-INF, -INF, -INF], [-0.0, -1.0, -0.0]])
    got = TORCH.row_top(rows).flatten()
    assert got[:2].isnan().all() and got[2] == -INF and math.copysign(1, got[3].item()) == 1
    whole = torch.tensor([[2**62, 2**62 + 1, -1], [-(2**63), -(2**63), -(2**63)]])
    assert TORCH.row_top(whole).flatten().tolist() == [2**62 + 1, -(2**63)]
    for x in (rows, whole):
        np.testing.assert_array_equal(TORCH.row_top(x).numpy(), NUMPY.row_top(x.numpy()))
