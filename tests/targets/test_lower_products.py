"""Products: templates with epilogues, proven and exact instructions, packed weights, fallbacks."""

import pytest
import torch
from lowering import TARGET, Cases, region

from qcompiler.context import Context
from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    Clamp,
    Conv2d,
    Dequantize,
    DynamicQuantize,
    Gelu,
    Get,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    Linear,
    Lookup,
    Matmul,
    Mul,
    Packing,
    Region,
    Requantize,
    Rescale,
    Step,
    Unpack,
    const,
)  # fmt: skip
from qcompiler.passes.pack import packed
from qcompiler.targets.kernels.anchors import Product
from qcompiler.targets.kernels.weights import Weight, code_range
from qcompiler.types import DType, QParams, TensorType

X = QParams((0.02,), 7, 0, 255)
NARROW = QParams((0.02,), 7, 0, 127)
SIGNED = QParams((0.02,), 0, -128, 127)
OUT = QParams((0.3,), 11, 0, 255)
RELU6 = QParams((0.3,), 11, 0, 100)
SUM = QParams((0.001,), 0, -(2**31), 2**31 - 1)
CTX = Context(TARGET)

# channels, outputs, kernel, stride, padding, groups, dilation
CONVS = (
    (16, 32, 3, 1, 1, 1, 1), (3, 24, 3, 2, 1, 1, 1), (32, 40, 1, 1, 0, 1, 1),
    (24, 24, 3, 1, 1, 24, 1), (24, 24, 5, 2, 2, 24, 1), (8, 16, 3, 1, 0, 2, 2),
    (16, 17, 1, 2, 0, 1, 1), (4, 4, 3, 1, 1, 4, 1), (12, 12, 3, 1, 1, 3, 1),
)  # fmt: skip


def codes(cases: Cases, *shape: int, most: int = 127) -> Node:
    """Constant weights; `most` 127: extreme ones, for which only 32-bit sums are exact."""
    values = torch.randint(-most, most + 1, shape, generator=cases.rng)
    if most == 127:
        values = torch.where(torch.rand(shape, generator=cases.rng) < 0.3, 127, values)
    return const(values.to(torch.int8))


def bias(cases: Cases, size: int) -> Node:
    values = torch.randint(-10000, 10000, (size,), generator=cases.rng)
    return const(values.to(torch.int32))


def multiplier(cases: Cases, size: int) -> Node:
    return const(torch.rand(size, generator=cases.rng) * 1e-3 + 1e-5)


def conv_of(sizes: tuple[int, ...], cls: type[Conv2d], **options: int) -> Conv2d:
    _, _, _, stride, pad, groups, dilation = sizes
    pads = ((pad, pad), (pad, pad))
    return cls((stride, stride), pads, (dilation, dilation), groups, True, **options)


@pytest.mark.parametrize("sizes", CONVS, ids=str)
def test_integer_convolutions(sizes: tuple[int, ...]) -> None:
    channels, outputs, kernel, *_, groups, _ = sizes
    cases = Cases(0)
    conv = conv_of(sizes, IntConv2d, zero_point=7)
    for most, quant in ((127, X), (20, X), (127, NARROW)):
        x = cases.integers(0, quant.qmax, 2, 9, 11, channels, quant=quant, symbolic=True)
        w = codes(cases, outputs, channels // groups, kernel, kernel, most=most)
        acc = conv(x, w, bias(cases, outputs), name="acc")
        m = multiplier(cases, outputs)
        cases.out(acc, conv(x, w))
        for out in (OUT, RELU6):
            code = Requantize(DType.UINT8, out)(acc, m)
            cases.out(packed(region(code, [acc, code]), CTX))
        residual = cases.integers(0, 255, 2, *acc.tensor.shape[1:], quant=X, symbolic=True)
        wide = Requantize(DType.INT32, QParams((0.3 / 256,), 0, -11 * 256, 244 * 256))(acc, m)
        total = IntAdd(0, 7, 100, 3000, SUM)(wide, residual)
        code = Requantize(DType.UINT8, OUT)(total, const(1e-5))
        cases.out(packed(region(code, [acc, wide, total, code]), CTX))
    cases.check()


def test_integer_linears() -> None:
    cases = Cases(1)
    for k, n, lead in ((16, 32, (5,)), (3, 24, (1,)), (33, 17, (2, 3)), (64, 10, ())):
        for quant, most in ((X, 127), (X, 60), (SIGNED, 20), (NARROW, 15)):
            dtype = torch.int8 if quant is SIGNED else torch.uint8
            x = cases.integers(quant.qmin, quant.qmax, 2, *lead, k, dtype=dtype, quant=quant,
                               symbolic=bool(lead))  # fmt: skip
            w, m = codes(cases, n, k, most=most), multiplier(cases, n)
            acc = IntLinear(quant.zero_point)(x, w, bias(cases, n))
            code = Requantize(DType.INT8, QParams((0.3,), -5, -128, 127))(acc, m)
            cases.out(acc, packed(region(code, [acc, code]), CTX))
            table = const(torch.randint(-128, 128, (256,), generator=cases.rng).to(torch.int8))
            again = Requantize(DType.UINT8, OUT)(acc, m)
            looked = Lookup(DType.INT8, SIGNED)(again, table)
            cases.out(packed(region(looked, [acc, again, looked]), CTX))
    x, w = cases.integers(0, 255, 3, 20, quant=X), codes(cases, 9, 20)
    cases.out(IntLinear(0)(x, w), IntLinear(7)(x, w), IntLinear(0)(x, w, bias(cases, 9)))
    cases.check()


def test_dynamically_quantized_linears() -> None:
    """Row scales meet the accumulators in the epilogue; 63 is proven, 127 is exact."""
    cases = Cases(2)
    for k, n in ((32, 24), (7, 9), (70, 64)):
        x = cases.floats(2, 5, k, symbolic=True)
        for qmax in (127, 90, 63):
            both = DynamicQuantize(qmax)(x)
            w, scale = codes(cases, n, k), const(torch.rand(n, generator=cases.rng) * 0.01)
            acc = IntLinear(0)(Get(0)(both), w)
            real = Rescale()(acc, Get(1)(both), scale)
            last = Add()(real, const(torch.randn(n, generator=cases.rng)))
            cases.out(packed(region(last, [acc, real, last]), CTX))
    cases.check()


def test_integer_matmuls() -> None:
    cases = Cases(3)
    for m, k, n in ((5, 16, 7), (17, 33, 24), (64, 64, 64), (1, 1, 1)):
        for a_type, b_type in ((torch.uint8, torch.uint8), (torch.uint8, torch.int8),
                               (torch.int8, torch.int8)):  # fmt: skip
            a = _matrix(cases, a_type, 2, 3, m, k)
            b = _matrix(cases, b_type, 2, 3, k, n)
            acc = IntMatmul(3, -4)(a, b)
            code = Requantize(DType.UINT8, OUT)(acc, const(3e-4))
            cases.out(IntMatmul(3, -4)(a, b), region(code, [acc, code]))
    cases.check()


def _matrix(cases: Cases, dtype: torch.dtype, *shape: int) -> Node:
    low, high, quant = (0, 255, X) if dtype is torch.uint8 else (-128, 127, SIGNED)
    return cases.integers(low, high, *shape, dtype=dtype, quant=quant, symbolic=shape[0] == 2)


def test_integer_products_that_no_template_takes() -> None:
    """Matrices that broadcast, and weights that are inputs."""
    cases = Cases(4)
    for a, b in (((3, 1, 5, 9), (4, 9, 20)), ((5, 9), (3, 9, 40)), ((3, 5, 9), (9, 33))):
        x, y = _matrix(cases, torch.uint8, *a), _matrix(cases, torch.int8, *b)
        acc = IntMatmul(7, 2)(x, y)
        code = Requantize(DType.UINT8, OUT)(acc, const(3e-4))
        cases.out(IntMatmul(7, 2)(x, y), region(code, [acc, code]))
    x, w = _matrix(cases, torch.uint8, 2, 6, 10), _matrix(cases, torch.int8, 40, 10)
    b = cases.integers(-999, 999, 40, dtype=torch.int32)
    cases.out(IntLinear(7)(x, w, b), IntLinear(7)(x, w))
    cases.check()


def test_float_products() -> None:
    cases = Cases(5)
    for sizes in CONVS:
        channels, outputs, kernel, *_, groups, _ = sizes
        x = cases.floats(2, 9, 11, channels, symbolic=True)
        w = const(torch.randn(outputs, channels // groups, kernel, kernel, generator=cases.rng))
        conv = conv_of(sizes, Conv2d)
        b = const(torch.randn(outputs, generator=cases.rng))
        acc = conv(x, w, b)
        last = Clamp(0.0)(acc)
        cases.out(conv(x, w), packed(region(last, [acc, last]), CTX))
    for k, n in ((16, 32), (5, 3), (33, 70)):
        x = cases.floats(2, 5, k, symbolic=True)
        w = const(torch.randn(n, k, generator=cases.rng))
        acc = Linear()(x, w, const(torch.randn(n, generator=cases.rng)))
        last = Gelu()(acc)
        cases.out(Linear()(x, w), packed(region(last, [acc, last]), CTX))
        cases.out(Linear()(x, cases.floats(n, k), cases.floats(n)))
    for m, k, n in ((5, 16, 7), (17, 33, 24)):
        x, y = cases.floats(2, 3, m, k, symbolic=True), cases.floats(2, 3, k, n, symbolic=True)
        acc = Matmul()(x, y)
        last = Mul()(acc, const(0.125))
        cases.out(region(last, [acc, last]), Matmul()(x, cases.floats(k, n)))
    cases.check_near()


def test_a_float_region_dequantizes_a_residual() -> None:
    """A side branch of the epilogue: elementwise steps that do not read the product."""
    cases = Cases(6)
    x = cases.floats(2, 4, 16, symbolic=True)
    q = cases.integers(0, 255, 2, 4, 24, quant=X, symbolic=True)
    acc = Linear()(x, const(torch.randn(24, 16, generator=cases.rng)))
    real = Dequantize()(q, const(0.02), const(7))
    last = Add()(acc, real)
    cases.out(region(last, [acc, real, last]))
    cases.check_near()


def chosen(x: Node, w: Node) -> str:
    weight = Weight.of(w)
    assert weight is not None
    product = Product.of(IntLinear(0)(x, w), weight, TARGET)
    assert isinstance(product, Product)
    return product.dot.name


def produced(quant: QParams) -> Node:
    """Codes that a kernel made: their parameters bound them."""
    acc = Cases().given(torch.zeros(3, 32, dtype=torch.int32))
    return Requantize(DType.UINT8, quant)(acc, const(0.5))


def test_the_fastest_instruction_that_is_proven_is_chosen() -> None:
    """u8 by extreme weights sums in 32 bits; the proof, not the recipe, admits faster ones."""
    x, narrow = produced(X), produced(NARROW)
    cases = Cases(7)
    assert chosen(x, const(torch.full((8, 32), 127, dtype=torch.int8))) == "maddwd"
    assert chosen(x, codes(cases, 8, 32, most=64)) == "maddubs1"
    assert chosen(narrow, const(torch.full((8, 32), 64, dtype=torch.int8))) == "maddubs2"
    assert chosen(narrow, const(torch.full((8, 32), 32, dtype=torch.int8))) == "maddubs4"
    assert chosen(narrow, codes(cases, 8, 32, most=15)) == "maddubs8"


def test_one_channel_that_does_not_fit_is_enough() -> None:
    w = torch.zeros(500, 32, dtype=torch.int8)
    assert chosen(produced(X), const(w)) == "maddubs8"
    w[499, 30:] = 127
    assert chosen(produced(X), const(w)) == "maddwd"


def test_sums_in_16_bits_are_those_of_the_instruction() -> None:
    """maddubs2 adds channels 0, 1, 4, 5: extreme there it must be refused, elsewhere not."""
    near, far = torch.zeros(2, 1, 32, dtype=torch.int8)
    near[0, [0, 1, 2, 3]] = 120
    far[0, [0, 1, 4, 5]] = 120
    assert chosen(produced(NARROW), const(near)) == "maddubs8"
    assert chosen(produced(NARROW), const(far)) == "maddubs1"


def test_codes_from_outside_are_not_believed() -> None:
    outside = Cases().integers(0, 1, 3, 32, quant=NARROW)
    assert code_range(outside) == (0, 255)
    assert code_range(produced(NARROW)) == (0, 127)
    both = DynamicQuantize(63)(Cases().floats(3, 32))
    assert code_range(Get(0)(both)) == (-63, 63)


def test_weights_packed_for_another_kernel_are_packed_again() -> None:
    cases = Cases(8)
    x = cases.integers(0, 255, 2, 5, 20, quant=X)
    w = torch.randint(-90, 91, (30, 20), generator=cases.rng).to(torch.int8)
    other = Packing(8, 4)
    unpack = Step(Unpack(other, (30, 20)), (1,))
    steps = (unpack, Step(IntLinear(7), (0, 2)))
    cases.out(Region(steps)(x, const(other.pack(w))))
    cases.check()


def test_packed_regions_read_what_they_are_given() -> None:
    cases = Cases(9)
    x = cases.integers(0, 255, 2, 5, 20, quant=X)
    w = codes(cases, 30, 20, most=60)
    acc = IntLinear(7)(x, w)
    code = Requantize(DType.UINT8, OUT)(acc, multiplier(cases, 30))
    node = packed(region(code, [acc, code]), CTX)
    assert isinstance(node.op, Region) and isinstance(node.op.steps[0].op, Unpack)
    answer = TARGET.answer(node)
    assert node.inputs[1] in answer.operands  # type: ignore[union-attr]
    assert node.inputs[1].tensor != TensorType((30, 20), DType.INT8)
