"""Elementwise kernels: every formula, random DAGs, broadcasting, and values that trip floats."""

import random

import pytest
import torch
from lowering import Cases, region

from qcompiler.graph import Node
from qcompiler.ops import (
    Abs,
    Add,
    And,
    Cast,
    Clamp,
    Compare,
    Cos,
    Dequantize,
    Div,
    Elu,
    Erf,
    Exp,
    Fmod,
    Gelu,
    Hardsigmoid,
    Hardswish,
    IntAdd,
    IntMul,
    LeakyRelu,
    Log,
    Lookup,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Not,
    Or,
    Pow,
    Power,
    Prelu,
    Quantize,
    Relation,
    Requantize,
    Rescale,
    Round,
    Rsqrt,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Sqrt,
    Sub,
    Tanh,
    TruncDiv,
    Where,
    const,
)  # fmt: skip
from qcompiler.types import DType, QParams

UNARY = (
    Neg(), Abs(), Sqrt(), Rsqrt(), Round(), Exp(), Log(), Sin(), Cos(), Erf(), Tanh(), Sigmoid(),
    Silu(), Gelu(), Gelu(tanh=True), Hardswish(), Hardsigmoid(), Softplus(), Elu(0.7), Power(1),
    Power(5), Clamp(0.0), Clamp(0.0, 6.0), Clamp(-1.5, 1.5), LeakyRelu(0.1),
)  # fmt: skip
BINARY = (Add(), Sub(), Mul(), Div(), Maximum(), Minimum(), Prelu(), Pow(), Fmod())
CODES = QParams((0.1,), 7, 0, 255)
WIDE = QParams((0.001,), 0, -(2**31), 2**31 - 1)


def test_unary_formulas_on_special_values() -> None:
    cases = Cases()
    for shape in ((1,), (5,), (3, 41), (2, 3, 64)):
        x = cases.special(*shape)
        cases.out(*(op(x, name=op.kind) for op in UNARY))
    cases.check()


def test_binary_formulas_on_every_pair_of_special_values() -> None:
    cases = Cases(1)
    x, y = cases.special(24, 1), cases.special(1, 24)
    cases.out(*(op(x, y, name=op.kind) for op in BINARY))
    cases.out(*(Compare(r)(x, y, name=r.value) for r in Relation))
    larger = Compare(Relation.GT)(x, y)
    cases.out(Where()(larger, x, y), Where()(Not()(larger), x, y))
    cases.check()


def test_whole_division_on_every_pair_of_extremes() -> None:
    """0 and min / -1 would trap."""
    ends = [0, 1, -1, 2, -7, 3, 2**60 + 1, -(2**60) - 1, 2**63 - 1, -(2**63) + 1, -(2**63)]
    cases = Cases(11)
    x, y = cases.given(torch.tensor(ends)[:, None]), cases.given(torch.tensor(ends))
    cases.out(TruncDiv()(x, y))
    cases.out(*(TruncDiv()(x, const(torch.tensor(d))) for d in (0, 1, -1, 7, -3, 2**40)))
    cases.out(*(TruncDiv()(const(torch.tensor(d)), y) for d in (5, -(2**63))))
    cases.check()


def test_comparisons_of_truth_values() -> None:
    cases = Cases(12)
    x, y = (cases.given(torch.rand(40, generator=cases.rng) < 0.5) for _ in range(2))
    for relation in Relation:
        cases.out(Compare(relation)(x, y), Compare(relation)(x, const(torch.tensor(True))))
    cases.check()


def test_what_a_simplifier_may_not_do_to_floats() -> None:
    """x - x, x / x, x * 0, x + 0, x / c and not (x < y) keep NaN, inf and the sign of zero."""
    cases = Cases(2)
    vectors = cases.special(3, 40), cases.special(3, 40)
    scalar = cases.given(torch.tensor(float("nan"))), cases.given(torch.tensor(float("inf")))
    for x, y in (vectors, scalar):
        for value in (0.0, -0.0, 3.0, float("nan"), float("inf")):
            c = const(value)
            cases.out(Add()(x, c), Sub()(x, c), Sub()(c, x), Mul()(x, c), Div()(x, c), Div()(c, x))
            cases.out(Maximum()(x, c), Minimum()(c, x), Compare(Relation.GE)(x, c))
        cases.out(Sub()(x, x), Div()(x, x), Compare(Relation.EQ)(x, x), Compare(Relation.NE)(x, x))
        value = Add()(x, y)
        for op in (Sub(), Div(), Compare(Relation.EQ), Compare(Relation.GE), Maximum()):
            twice = op(value, value)
            cases.out(region(twice, [value, twice]))
        for relation in Relation:
            compared = Compare(relation)(x, y)
            inverted = Not()(compared)
            chosen = Where()(inverted, x, y)
            cases.out(region(chosen, [compared, inverted, chosen]))
    cases.check()


def test_products_are_never_contracted_with_sums() -> None:
    cases = Cases(3)
    x, y, z = (cases.floats(64, 33) for _ in range(3))
    product = Mul()(x, y)
    cases.out(region(total := Add()(product, z), [product, total]))
    cases.out(region(rest := Sub()(z, product), [product, rest]))
    cases.check()


def test_truth_values() -> None:
    cases = Cases(4)
    a, b = (cases.integers(0, 1, 3, 35, dtype=torch.bool) for _ in range(2))
    cases.out(And()(a, b), Or()(a, b), Not()(a), Where()(a, b, Not()(b)))
    cases.out(Cast(DType.FLOAT32)(a), Cast(DType.INT64)(a), Cast(DType.UINT8)(a))
    steps = [one := And()(a, b), two := Or()(Not()(a), one), three := Not()(And()(two, one))]
    cases.out(region(three, [steps[0], two.inputs[0], two, three.inputs[0], three]))
    cases.check()


CASTS = (
    DType.FLOAT32, DType.FLOAT64, DType.INT64, DType.INT32, DType.INT16, DType.INT8, DType.UINT8,
    DType.BOOL,
)  # fmt: skip


@pytest.mark.parametrize("source", CASTS, ids=repr)
def test_casts(source: DType) -> None:
    cases = Cases(5)
    value = torch.randint(0, 120, (3, 37), generator=cases.rng)
    if source.is_float:
        value = value + 0.75
    x = cases.given(value.to(source.torch))
    cases.out(*(Cast(to)(x, name=to.value) for to in CASTS))
    cases.check()


def test_integer_formulas() -> None:
    cases = Cases(6)
    for shape in ((7,), (2, 5, 33)):
        q = cases.integers(0, 255, *shape, quant=CODES)
        s = cases.integers(-128, 127, *shape, dtype=torch.int8)
        acc = cases.integers(-(2**24), 2**24, *shape, dtype=torch.int32)
        m = const(torch.rand(shape[-1], generator=cases.rng) * 2e-5)
        cases.out(IntAdd(3, -5, 1000, -2000, WIDE)(q, s), IntMul(7, 0)(q, s))
        for to, out in ((DType.UINT8, CODES), (DType.INT8, QParams((0.1,), -5, -100, 90))):
            cases.out(Requantize(to, out)(acc, m), Requantize(to, out)(acc, const(3e-5)))
            cases.out(Requantize(to, out)(acc, m, const(1e-6)))
        cases.out(Requantize(DType.INT32, QParams((0.1,), 0, -70000, 70000))(acc, m))
        cases.out(Rescale()(acc, const(0.01), m))
        table = const(torch.randint(0, 256, (256,), generator=cases.rng).to(torch.uint8))
        cases.out(Lookup(DType.UINT8, CODES)(q, table))
        cases.out(Lookup(DType.FLOAT32, CODES)(q, const(torch.randn(256, generator=cases.rng))))
    cases.check()


def test_quantize_and_dequantize_per_tensor_and_per_channel() -> None:
    cases = Cases(7)
    x = cases.special(2, 3, 5, 8)
    for axis, count in ((None, 1), (0, 2), (1, 3), (3, 8)):
        scale = torch.rand(count, generator=cases.rng) + 0.01
        scale = scale[0] if axis is None else scale
        s, z = const(scale), const(torch.full_like(scale, 9).int())
        q = Quantize(DType.UINT8, 0, 255, axis)(x, s, z)
        back = Dequantize(axis)(q, s, z)
        cases.out(q, back, region(back, [q, back]))
    signed = Quantize(DType.INT16, -30000, 30000)(x, const(1e-3), const(0))
    cases.out(signed, Dequantize()(signed, const(1e-3), const(0)))
    cases.check()


@pytest.mark.parametrize("symbolic", [False, True])
def test_broadcasting(symbolic: bool) -> None:
    cases = Cases(8)
    for shape in ((2, 3, 5, 7), (2, 1, 1, 40), (2, 33), (2,), (2, 17, 1)):
        x = cases.floats(*shape, symbolic=symbolic)
        for mask in range(1 << len(shape)):
            other = [d if mask >> k & 1 else 1 for k, d in enumerate(shape)]
            y = cases.floats(*other, symbolic=symbolic and other[0] != 1)
            cases.out(Mul()(x, y))
        if len(shape) > 1:
            cases.out(Add()(x, cases.floats(shape[-1])))
    cases.out(Add()(cases.floats(4, 1, 9), cases.floats(6, 1)))
    cases.check()


def test_a_shared_module_runs_more_than_one_batch_size() -> None:
    for batch in (1, 2, 5):
        cases = Cases(9, batch)
        x = cases.floats(batch, 19, 3, symbolic=True)
        cases.out(Gelu()(x), Add()(x, cases.floats(19, 1)))
        cases.check()


FLOAT_STEPS = (
    Add(), Sub(), Mul(), Maximum(), Minimum(), Div(), Neg(), Abs(), Exp(), Sigmoid(), Round(),
    Clamp(-1.0, 2.0), LeakyRelu(0.2), Tanh(),
)  # fmt: skip


def random_dag(cases: Cases, rng: random.Random, length: int) -> Node:
    """A region of random float, truth and code steps over broadcasting leaves."""
    shape = rng.choice([(2, 3, 11), (5, 40), (3, 1, 64), (13,)])
    leaves = [cases.special(*(d if rng.random() < 0.8 else 1 for d in shape)) for _ in range(2)]
    pool, inside = [cases.special(*shape), *leaves], []
    for _ in range(length):
        kind = rng.random()
        a, b = rng.choice(pool), rng.choice(pool[-2:])
        if kind < 0.7:
            op = rng.choice(FLOAT_STEPS)
            made = [op(a) if op.arity == (1, 1) or isinstance(op, Clamp | LeakyRelu) else op(a, b)]
        elif kind < 0.85:
            test = Compare(rng.choice(list(Relation)))(a, b)
            made = [test, Where()(test, b, rng.choice(pool))]
        else:
            s, z = const(rng.uniform(0.01, 0.2)), const(rng.randrange(256))
            code = Quantize(DType.UINT8, 0, 255)(a, s, z)
            made = [code, Dequantize()(code, s, z)]
        inside += made
        pool.append(made[-1])
    last = Add()(pool[-1], pool[0])
    needed = {last}
    for node in reversed([*inside, last]):
        if node in needed:
            needed.update(node.inputs)
    return region(last, [n for n in [*inside, last] if n in needed])


def test_random_dags() -> None:
    cases, rng = Cases(10), random.Random(10)
    for _ in range(80):
        cases.out(random_dag(cases, rng, rng.randrange(1, 10)))
    cases.check()


def test_roots_of_float64_are_those_of_ieee() -> None:
    """Torch's own are off by one ulp for one number in seventy."""
    cases = Cases(11)
    x = cases.given(torch.rand(300, 16, generator=cases.rng).double())
    cases.out(Sqrt()(x), Rsqrt()(x))
    cases.check()
