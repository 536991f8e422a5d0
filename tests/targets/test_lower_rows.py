"""Row kernels: every row op, alone and between elementwise steps, for every kind of row length."""

from dataclasses import replace

import pytest
import torch
from lowering import TARGET, Cases, fused, region

from qcompiler.graph import Node, Note
from qcompiler.ops import (
    Add,
    Cast,
    Dequantize,
    DynamicQuantize,
    Exp,
    Get,
    Input,
    LayerNorm,
    Log,
    Mul,
    Quantize,
    Reduce,
    Reduction,
    Region,
    RmsNorm,
    Softmax,
    Step,
    Sub,
    const,
)  # fmt: skip
from qcompiler.targets import LowerError
from qcompiler.targets.kernels import rows
from qcompiler.targets.lower import lower
from qcompiler.types import DType, QParams, TensorType, symbol

# Around one piece of 16 lanes, and some pieces with a rest.
LENGTHS = (1, 3, 15, 16, 17, 33, 77)


def row_ops(cases: Cases, x: Node, size: int) -> list[Node]:
    w, b = (const(torch.randn(size, generator=cases.rng)) for _ in range(2))
    outs = [Softmax()(x), Softmax(log=True)(x), LayerNorm(1e-5)(x, w, b), RmsNorm(1e-6)(x, w)]
    outs += [Reduce(by)(x) for by in Reduction]
    for qmax in (127, 63):
        both = DynamicQuantize(qmax)(x)
        outs += [Get(0)(both), Get(1)(both)]
    return outs


@pytest.mark.parametrize("special", [False, True])
def test_row_ops(special: bool) -> None:
    cases = Cases(0)
    for size in LENGTHS:
        x = cases.special(2, 5, size) if special else cases.floats(2, 5, size, symbolic=True)
        cases.out(*row_ops(cases, x, size))
    cases.check()


def test_rows_of_one_value() -> None:
    """All -inf (a fully masked row), all zero of either sign, all NaN, all too small to scale."""
    cases = Cases(1)
    values = (-float("inf"), 0.0, -0.0, float("nan"), 1e-35, float("inf"))
    for size in (5, 16, 19):
        x = cases.given(torch.tensor(values).reshape(-1, 1).expand(-1, size).contiguous())
        cases.out(*row_ops(cases, x, size))
    cases.check()


def test_largest_and_sum_in_other_dtypes() -> None:
    cases = Cases(5)
    for size in LENGTHS:
        x = cases.given(torch.randn(3, size, generator=cases.rng).double())
        cases.out(*(Reduce(by)(x) for by in Reduction))
        wild = cases.special(4, size)
        wide = Cast(DType.FLOAT64)(wild)
        cases.out(region(top := Reduce(Reduction.MAX)(wide), [wide, top]))
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
            values = torch.randint(max(low, -(2**62)), min(high, 2**62), (5, size), dtype=dtype,
                                   generator=cases.rng)  # fmt: skip
            values[0], values[1], values[2, -1] = low, high, high
            n = cases.given(values)
            last = const(torch.tensor(1, dtype=dtype))
            less = Sub()(n, last)
            cases.out(Reduce(Reduction.MAX)(n), region(m := Reduce(Reduction.MAX)(less), [less, m]))
    cases.check()


def normalised(cases: Cases, size: int) -> Node:
    """add, layer_norm, quantize; one operand of the sum is repeated along the rows."""
    x = cases.floats(2, 3, size, symbolic=True)
    y = cases.floats(3, 1)
    w, b = (const(torch.randn(size, generator=cases.rng)) for _ in range(2))
    total = Add()(x, y)
    norm = LayerNorm(1e-5)(total, w, b)
    code = Quantize(DType.UINT8, 0, 255)(norm, const(0.02), const(120))
    return region(code, [total, norm, code])


def attended(cases: Cases, size: int) -> Node:
    """dequantize, mask, softmax, quantize."""
    q = cases.integers(0, 255, 2, 3, 4, size, quant=QParams((0.05,), 99, 0, 255), symbolic=True)
    mask = torch.zeros(2, 1, 1, size)
    mask[1, ..., size // 2 :] = -float("inf")
    real = Dequantize()(q, const(0.05), const(99))
    masked = Add()(real, cases.given(mask, symbolic=True))
    soft = Softmax()(masked)
    code = Quantize(DType.UINT8, 0, 255)(soft, const(1 / 255), const(0))
    return region(code, [real, masked, soft, code])


def gated(cases: Cases, size: int) -> Node:
    """rms_norm, then a product with what another step makes of a second operand."""
    x, y = cases.floats(6, size), cases.floats(6, size)
    w = const(torch.randn(size, generator=cases.rng))
    norm, scaled = RmsNorm(1e-6)(x, w), Mul()(y, const(0.5))
    return region(last := Mul()(norm, scaled), [norm, scaled, last])


def scaled_rows(cases: Cases, size: int) -> tuple[Node, Node]:
    """mul, dynamic_quantize: two results of one kernel."""
    x = cases.floats(2, 4, size, symbolic=True)
    steps = (Step(Mul(), (0, 1)), Step(DynamicQuantize(), (2,)))
    both = Region(steps)(x, const(3.7))
    return Get(0)(both), Get(1)(both)


def test_row_regions() -> None:
    cases = Cases(2)
    for size in (1, 7, 16, 50, 64):
        cases.out(normalised(cases, size), attended(cases, size), gated(cases, size))
        cases.out(*scaled_rows(cases, size))
    cases.check()


def test_rows_of_many_pieces_in_parallel() -> None:
    cases = Cases(3)
    x = cases.floats(40, 1000)
    cases.out(Softmax()(x), LayerNorm(1e-5)(x, const(torch.ones(1000)), const(torch.zeros(1000))))
    cases.check()


def test_rows_of_float64_are_the_interpreters() -> None:
    """What `any`, `all` and the largest integer become, and the rows whose law holds in float64."""
    cases = Cases(4)
    for size in LENGTHS:
        x = cases.given(torch.randn(2, 5, size, generator=cases.rng).double() / 3)
        w, b = (const(torch.randn(size, generator=cases.rng).double()) for _ in range(2))
        cases.out(*(Reduce(by)(x) for by in Reduction))
        cases.out(LayerNorm(1e-5)(x, w, b), RmsNorm(1e-6)(x, w))
        codes = cases.integers(-(2**40), 2**40, 3, size, dtype=torch.int64)
        wide = Cast(DType.FLOAT64)(codes)
        cases.out(region(largest := Reduce(Reduction.MAX)(wide), [wide, largest]))
    cases.check()


@pytest.mark.parametrize("op", [Softmax(), Softmax(log=True), DynamicQuantize(), Exp(), Log()])
def test_a_law_of_float32_is_refused_on_float64(op) -> None:
    x = Input(TensorType((3, 40), DType.FLOAT64))(name="x")
    made = op(x, name="y")
    out = Get(0)(made) if isinstance(op, DynamicQuantize) else made
    with pytest.raises(LowerError, match=rf"%y = {op.kind}.*defined for float32, not float64"):
        lower(fused([x], [out]), TARGET)


def test_a_kernel_that_cannot_be_written_names_its_node(monkeypatch) -> None:
    x = Input(TensorType((3, 40), DType.FLOAT32))(name="x")
    y = replace(Softmax()(x, name="y"), note=Note(origin="net.py:7"))
    monkeypatch.setattr(rows.RowTIR, "row_sum", lambda *_: 1 / 0)
    expected = r"%y = softmax\(float32\[3,40\]\).*\(net.py:7\): ZeroDivisionError"
    with pytest.raises(LowerError, match=expected):
        lower(fused([x], [y]), TARGET)
    monkeypatch.setattr(rows, "supported", lambda *_: 1 / 0)
    with pytest.raises(LowerError, match=expected):
        lower(fused([x], [y]), TARGET)


def test_a_row_of_unknown_length_is_refused() -> None:
    length = symbol("length")
    x = Input(TensorType((length,), DType.FLOAT32))(name="x")
    with pytest.raises(LowerError, match=r"%y = softmax.*length of a row must be.*fixed size"):
        lower(fused([x], [Softmax()(x, name="y")]), TARGET)
