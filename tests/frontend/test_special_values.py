"""Powers, divisions and reductions equal PyTorch on special values, not on random ones alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.frontend import TraceError, trace
from qcompiler.interpret import interpret
from qcompiler.ops import Pow, Power

NAN, INF = math.nan, math.inf
EDGES = torch.tensor([
    NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, -1.2e-38, 0.5, 1.5, -2.5, 1.0, -1.0, 2.0, -2.0, 3.0,
    -3.0, 88.8, -104.5, 16777217.0, -16777215.0, 0.1, 0.7, 1e10, 1e-10, 5.0,
])  # fmt: skip
WHOLE = torch.tensor([
    0, 1, -1, 2, -7, 3, 5, 2**53 + 1, 2**60 + 1, -(2**60) - 1, 2**63 - 1, -(2**63) + 1,
])  # fmt: skip


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = torch.meshgrid(x, x, indexing="ij")
    return a.flatten(), b.flatten()


def same(function, *inputs: Tensor, limit: float = 0.0):
    """The traced function equals the function, element by element, NaN and inf included."""
    graph = trace(Call(function).eval(), inputs)
    got, want = interpret(graph, *inputs), function(*inputs)
    assert got.shape == want.shape and got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=limit, atol=0, equal_nan=True)
    return graph


# ---------------------------------------------------------------------------------------- powers

NUMBERS = (2, 3, -2, -3, 0, 1, -1, 0.5, -0.5, 65, 100, -101, 1000, 2.0**31, 1e10, INF, -INF, NAN,
           1.5, 0.3, -1.5)  # fmt: skip


@pytest.mark.parametrize("exponent", NUMBERS)
def test_power_of_a_number(exponent):
    x = torch.cat([EDGES, torch.randn(500, generator=torch.Generator().manual_seed(1)) * 2])
    same(lambda x: x**exponent, x, limit=1e-4)


@pytest.mark.parametrize("base", [-2, 2, 0.3, 0.0, -0.5, 1.0, -1.0, INF, -INF, NAN])
def test_power_of_a_constant_base(base):
    same(lambda y: torch.pow(base, y), EDGES, limit=1e-4)
    same(lambda y: torch.pow(torch.tensor(float(base)), y), EDGES, limit=1e-4)


def test_power_of_two_tensors():
    same(lambda x, y: x**y, *pairs(EDGES), limit=1e-4)
    rng = torch.Generator().manual_seed(2)
    x, y = torch.randn(2000, generator=rng) * 5, torch.randn(2000, generator=rng) * 4
    same(lambda x, y: x.pow(y), x, y.round(), limit=1e-4)
    same(torch.pow, x.abs(), y, limit=1e-4)
    same(lambda x, y: x.double() ** y, x.abs(), y, limit=1e-4)


@pytest.mark.parametrize(
    "exponents", [[2.0] * 5, [2.0, 2.0, 3.0, -1.0, 0.0], [[2], [3]], [0.0, 64.0, -64.0, 1.0, 7.0]]
)
def test_constant_whole_exponents_are_products(exponents):
    y = torch.tensor(exponents)
    x = torch.cat([EDGES[:25], torch.linspace(-3, 3, 25)]).reshape(-1, 1, 5)
    graph = same(lambda x: x**y, x, limit=2e-6)
    assert not any(isinstance(n.op, Pow) for n in graph.nodes())


def test_one_exponent_in_a_tensor_is_a_number():
    x = torch.linspace(-3, 3, 6)
    graph = same(lambda x: x ** torch.tensor([2.0] * 6), x)
    assert [n.op for n in graph.nodes() if n.inputs] == [Power(2)]
    same(lambda x: x ** torch.tensor([[[3.0]]]), x, limit=1e-6)


def test_powers_of_integers():
    j = torch.arange(20).reshape(4, 5) - 9
    same(lambda j: j ** torch.tensor([2, 0, 3, 1, 40]), j)
    same(lambda j: j**100, j)
    same(lambda j: j**0.5, j.abs(), limit=1e-6)
    same(lambda j: 2.0**j, j, limit=1e-5)
    for function in (lambda j: j**j, lambda j: 2**j, lambda j: j ** torch.tensor([-1, 1, 1, 1, 1])):
        with pytest.raises(TraceError, match="cast them to float first"):
            trace(Call(function).eval(), j)


def test_the_sign_of_zero_to_an_odd_power():
    zeros = torch.tensor([-0.0, -0.0, -0.0, 0.0])
    for y in (torch.tensor([3.0, -3.0, 2.0, -3.0]), torch.tensor([1.5, -101.0, 101.0, 101.0])):
        same(lambda x, y: 1 / x**y, zeros, y)
        same(lambda x, y=y: 1 / x**y, zeros)


# ------------------------------------------------------------------------------------- divisions

ROUNDED = {
    "floor": lambda x, y: x // y,
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "remainder": lambda x, y: x % y,
    "fmod": torch.fmod,
}


@pytest.mark.parametrize("name", ROUNDED)
def test_division_of_floats(name):
    function = ROUNDED[name]
    same(lambda x: function(x, 0.1), torch.tensor([1.0, 0.7, -0.3]))
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(4000, generator=rng) * 50, torch.randn(4000, generator=rng) * 3
    same(function, x, y)
    same(function, (x * 8).round() / 10, (y * 8).round() / 10)
    for number in (0.1, 0.7, -0.3, 1, INF, -2):
        same(lambda x, number=number: function(x, number), torch.cat([EDGES, x]))
    # Where the quotient overflows, PyTorch's vector code gives NaN and its scalar code does not.
    a, b = pairs(EDGES)
    usual = ~((a / b).isinf() & a.isfinite() & (b != 0))
    same(function, a[usual], b[usual])


def test_remainders_of_far_quotients_are_exact():
    x, y = torch.tensor([3.4e38, -3.4e38, 1e20, 3e38]), torch.tensor([0.1, 1e-45, 7.0, -1e-40])
    graph = trace(Call(torch.fmod).eval(), (x, y))
    np.testing.assert_array_equal(interpret(graph, x, y).numpy(), np.fmod(x.numpy(), y.numpy()))


@pytest.mark.parametrize("name", ROUNDED)
def test_division_of_integers(name):
    function = ROUNDED[name]
    x, y = pairs(WHOLE)
    x, y = x[y != 0], y[y != 0]
    same(function, x, y)
    for number in (1, -1, 3, -7, 2**40, 2**62 + 1):
        same(lambda x, number=number: function(x, number), WHOLE)
    same(function, (x % 256).to(torch.uint8), (y % 254 + 1).to(torch.uint8))
    same(function, (x % 120 - 60).to(torch.int8), (y % 100 - 120).to(torch.int8))
    same(function, x.int(), (y % 1000 + 1).int())
    same(lambda x: function(x, 1.5), WHOLE)


def test_division_with_a_number_on_the_left():
    same(lambda x: 3.5 % x, torch.tensor([0.1, -0.7, 5.0, INF, NAN]))
    same(lambda x: 7 % x, WHOLE[1:])
    same(lambda x: 7 // x, WHOLE[1:])


def test_divisions_that_are_refused():
    def by_zero(j: Tensor) -> Tensor:
        return j // torch.tensor([1, 0])

    with pytest.raises(TraceError, match="an integer division by zero"):
        trace(Call(by_zero).eval(), torch.ones(2, dtype=torch.int64))
    with pytest.raises(TraceError, match="remainder in float64; cast to float32 or int64"):
        trace(Call(lambda x: x % 0.1).eval(), torch.ones(2).double())


def test_rounding_of_large_float64():
    x = torch.tensor([1e7 + 0.5, -1e12 - 0.25, 2.0**52 + 1, 0.5]).double()
    for function in (torch.floor, torch.ceil, torch.trunc):
        same(function, x)


def test_functions_of_float64():
    """They are computed in float32, which is within 1e-5, or exactly where they are plain."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(6)).double() * 3
    exact = [torch.abs, torch.round, torch.relu, lambda x: x.clamp(-1, 1e12), torch.neg]
    for function in exact:
        same(function, x * 1e9 + 0.125)
    # PyTorch's own is a last place off on some CPUs with AVX-512; IEEE 754 has one answer.
    positive = x.abs() * 1e9 + 0.125
    root = interpret(trace(Call(torch.sqrt).eval(), positive), positive)
    np.testing.assert_array_equal(root.numpy(), np.sqrt(positive.numpy()))
    near = [torch.exp, torch.sigmoid, torch.erf, torch.sin, F.gelu, F.silu, F.leaky_relu, F.elu]
    near += [lambda x: x.abs().log(), lambda x: x.abs() ** 0.7, lambda x: x.softmax(1), F.softplus]
    near += [lambda x: F.layer_norm(x, (8,)), lambda x: x.logsumexp(1), lambda x: x.mean(1)]
    for function in near:
        graph = trace(Call(function).eval(), x)
        torch.testing.assert_close(interpret(graph, x), function(x), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ reductions


def rows() -> Tensor:
    x = torch.randn(10, 25, generator=torch.Generator().manual_seed(4))
    x[0, 4], x[0, 9], x[1], x[2], x[3, 7] = NAN, NAN, -INF, INF, INF
    x[4], x[5, 0], x[6, 24], x[7, 0], x[8] = NAN, -INF, NAN, NAN, 0.0
    return x


REDUCTIONS = {
    "amax": lambda x: x.amax(1), "amin": lambda x: x.amin(1), "max": lambda x: x.max(),
    "min": lambda x: x.min(), "argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(1),
    "index of all": lambda x: x.argmax(), "columns": lambda x: x.amax(0),
    "max.dim": lambda x: x.max(1)[1], "min.dim": lambda x: x.min(1)[0],
    "norm": lambda x: x.norm(p=INF, dim=1), "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "minimum": lambda x: torch.minimum(x, x.flip(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_nan_is_the_largest_and_the_smallest(name):
    same(REDUCTIONS[name], rows())


def test_log_sum_exp_of_infinities():
    same(lambda x: x.logsumexp(1), rows(), limit=1e-5)
    same(lambda x: x.logsumexp((0, 1)), torch.full((2, 3), -INF))
    same(lambda j: j.logsumexp(1), torch.arange(12).reshape(3, 4), limit=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_extremes_of_integers_are_exact(dtype):
    rng = torch.Generator().manual_seed(5)
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    j = torch.randint(low, high, (6, 37), generator=rng).to(dtype)
    j[0, 3], j[1, 5], j[2], j[3], j[4, 6] = high, low, high, low, high
    functions = [REDUCTIONS[n] for n in ("amax", "amin", "max", "min", "max.dim", "min.dim")]
    if dtype is not torch.bool:
        functions += [REDUCTIONS["argmax"], REDUCTIONS["argmin"]]
    for function in functions:
        same(function, j)


class Masked(nn.Module):
    def forward(self, j: Tensor) -> Tensor:
        return j.masked_fill(j > 3, torch.iinfo(torch.int64).max).amin(1)


def test_a_minimum_under_a_mask_of_the_largest_integer():
    j = torch.tensor([[5, 2**62, 3], [9, 9, 9]])
    assert interpret(trace(Masked().eval(), j), j).tolist() == [3, 2**63 - 1]


def test_a_remainder_of_zero_has_the_sign_it_has_in_c():
    x, y = torch.tensor([-4.0, 4.0, -0.0, 0.0, -6.0]), torch.tensor([2.0, -2.0, 3.0, 3.0, -3.0])
    same(lambda x, y: 1 / torch.fmod(x, y), x, y)


def test_attention_of_float64_is_computed_in_float32():
    q, k, v = (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(s)).double()
               for s in range(3))  # fmt: skip
    same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q, k, v, limit=1e-5)
