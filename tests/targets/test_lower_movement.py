"""Movement, gathers, running sums: every element is where the interpreter puts it."""

import itertools

import pytest
import torch
from lowering import BATCH, TARGET, Cases, fused

from qcompiler.graph import Node
from qcompiler.interpret import interpret
from qcompiler.ops import (
    Arange,
    Concat,
    Cumsum,
    Dilate,
    Expand,
    Flip,
    Full,
    Gather,
    GatherElements,
    Pad,
    Permute,
    Reshape,
    Slice,
    const,
)  # fmt: skip
from qcompiler.targets.build import build, load
from qcompiler.targets.lower import lower
from qcompiler.types import DType

DTYPES = (torch.float32, torch.uint8, torch.int64, torch.bool)


def tensor(cases: Cases, dtype: torch.dtype, *shape: int, symbolic: bool = False) -> Node:
    high = 1 if dtype is torch.bool else 100
    return cases.integers(0, high, *shape, dtype=dtype, symbolic=symbolic)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_permutations(dtype: torch.dtype) -> None:
    cases = Cases(0)
    for shape in ((2, 5, 19, 7), (2, 40, 1, 33))[: 1 if dtype is torch.bool else 2]:
        x = tensor(cases, dtype, *shape)
        cases.out(*(Permute(p)(x) for p in itertools.permutations(range(4))))
        x = tensor(cases, dtype, *shape, symbolic=True)
        cases.out(*(Permute((0, *p))(x) for p in itertools.permutations(range(1, 4))))
    for planes in (2, 3, 4, 5):
        cases.out(Permute((0, 2, 3, 1))(tensor(cases, dtype, 2, planes, 7, 11, symbolic=True)))
        cases.out(Permute((0, 3, 1, 2))(tensor(cases, dtype, 2, 7, 11, planes, symbolic=True)))
    cases.out(Permute((2, 0, 1))(tensor(cases, dtype, 12, 50, 64)))
    cases.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts(dtype: torch.dtype) -> None:
    cases = Cases(1)
    x = tensor(cases, dtype, 2, 5, 19, 7, symbolic=True)
    for axis in (1, 2, 3):
        for start, stop, step in ((0, 5, 1), (1, 4, 1), (2, 5, 2), (0, 4, 3), (3, 4, 1)):
            cases.out(Slice(axis, start, stop, step)(x))
        other = tensor(cases, dtype, *(9 if k == axis else d for k, d in enumerate((2, 5, 19, 7))),
                       symbolic=True)  # fmt: skip
        cases.out(Concat(axis)(x, x), Concat(axis)(x, other, x))
    for axes in ((1,), (3,), (1, 2), (1, 2, 3)):
        cases.out(Flip(axes)(x))
    known = tensor(cases, dtype, 4, 6)
    cases.out(Slice(0, 1, 4, 2)(known), Concat(0)(known, known), Flip((0, 1))(known))
    cases.check()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_borders_and_repeats(dtype: torch.dtype) -> None:
    cases = Cases(2)
    x = tensor(cases, dtype, 2, 5, 19, 7, symbolic=True)
    for pads in (((1, 2), (3, 0), (0, 0)), ((0, 0), (0, 4), (2, 5)), ((0, 0), (0, 0), (0, 1))):
        cases.out(Pad(((0, 0), *pads), 5.0)(x))
    cases.out(Pad(((0, 0),) * 4, 5.0)(x))
    cases.out(Dilate((1, 2, 3, 1), 2.0)(x), Dilate((1, 1, 1, 2))(x))
    known = tensor(cases, dtype, 3, 1, 8)
    cases.out(Pad(((1, 1), (0, 0), (0, 3)), 9.0)(known), Dilate((2, 1, 3), 1.0)(known))
    cases.out(Expand((3, 6, 8))(known), Expand((4, 3, 2, 8))(known))
    cases.out(Expand((BATCH, 3, 5, 8))(known), Expand((BATCH, 7))(tensor(cases, dtype, 7)))
    cases.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathers(dtype: torch.dtype) -> None:
    cases = Cases(3)
    x = tensor(cases, dtype, 2, 5, 19, 7, symbolic=True)
    ids = cases.integers(0, 4, 2, 3, dtype=torch.int64, symbolic=True)
    row = cases.integers(0, 6, 6, dtype=torch.int32)
    cases.out(Gather(2)(x, row), Gather(3)(x, row), Gather(1)(x, const(torch.tensor(4))))
    table = const(torch.randint(0, 2, (5, 40), generator=cases.rng).to(dtype))
    cases.out(Gather(0)(table, ids), Gather(0)(tensor(cases, dtype, 7), row))
    index = cases.integers(0, 18, 2, 5, 4, 7, dtype=torch.int64, symbolic=True)
    cases.out(GatherElements(2)(x, index))
    known = tensor(cases, dtype, 6, 3)
    cases.out(GatherElements(0)(known, cases.integers(0, 5, 4, 3, dtype=torch.int64)))
    cases.out(GatherElements(1)(known, cases.integers(0, 2, 6, 9, dtype=torch.int64)))
    cases.check()


@pytest.mark.parametrize("bad", [-1, 10, 2**40, -(2**63)])
def test_an_index_out_of_range_is_an_error_that_names_the_node(bad: int) -> None:
    cases = Cases(4)
    ids = cases.integers(0, 9, 2, 3, dtype=torch.int64, symbolic=True)
    table = const(torch.randn(10, 8))
    graph = fused([ids], [Gather(0)(table, ids, name="embedding")])
    run = load(build(graph, TARGET))
    good = torch.tensor([[0, 9, 5]])
    assert torch.equal(run(good)[0], interpret(graph, good))
    wrong = torch.tensor([[0, 9, bad]])
    with pytest.raises(IndexError, match=r"%embedding = gather: expected indices in 0\.\.9"):
        run(wrong)
    assert torch.equal(run(good)[0], interpret(graph, good))


def test_an_element_out_of_range_is_an_error() -> None:
    cases = Cases(5)
    x = cases.floats(4, 3)
    index = cases.integers(4, 4, 2, 3, dtype=torch.int64)
    run = load(build(fused(cases.inputs, [GatherElements(0)(x, index, name="picked")]), TARGET))
    with pytest.raises(IndexError, match=r"%picked = gather_elements"):
        run(*cases.values)


def test_values_without_operands_and_views() -> None:
    cases = Cases(6)
    x = cases.floats(2, 6, 4, symbolic=True)
    cases.out(Full((BATCH, 3), 2.5, DType.FLOAT32)(), Full((2, 3), 7, DType.UINT8)())
    cases.out(Arange(3, 2, BATCH)(), Arange(3, -2, 7, DType.FLOAT32)(), Arange(-5, 1, 40)())
    cases.out(Reshape((BATCH, 24))(x), Reshape((BATCH, 2, 3, 4, 1))(x), Reshape((BATCH * 6, 4))(x))
    cases.out(Slice(1, 1, 3)(Reshape((BATCH * 6, 4))(Permute((0, 2, 1))(x))))
    cases.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64], ids=str)
def test_running_sums(dtype: torch.dtype) -> None:
    cases = Cases(7)
    x = torch.randn(3, 5, 40, generator=cases.rng) * 50
    node = cases.given(x.to(dtype), symbolic=True)
    cases.out(*(Cumsum(axis)(node) for axis in (0, 1, 2, -1)))
    cases.check()


@pytest.mark.parametrize(
    ("op", "shape"),
    [(GatherElements(0), (1 << 17,)), (GatherElements(1), (64, 4096)), (Cumsum(1), (64, 4096)),
     (Cumsum(0), (64, 4096))],
)  # fmt: skip
def test_large_gathers_and_sums_are_shared_among_threads(op, shape: tuple[int, ...]) -> None:
    cases = Cases(9)
    x = cases.floats(*shape)
    index = cases.integers(0, 63, *shape, dtype=torch.int64)
    cases.out(op(x, index) if isinstance(op, GatherElements) else op(x))
    lowered = lower(fused(cases.inputs, cases.outputs), TARGET)
    assert "T.parallel(" in lowered.mod.script()
    cases.check()
