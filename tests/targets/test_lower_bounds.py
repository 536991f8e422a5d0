"""No kernel touches memory outside its operands: each runs between forbidden pages."""

import numpy as np
import torch
import tvm
from kernel_cases import CANARY, Fenced, target
from lowering import TARGET, Cases, region, same_bits

from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Concat,
    Const,
    Cumsum,
    Dilate,
    Exp,
    Expand,
    Flip,
    Gather,
    GatherElements,
    IntLinear,
    LayerNorm,
    Lookup,
    Matmul,
    MaxPool2d,
    Mul,
    Pad,
    Permute,
    Quantize,
    Reduce,
    Reduction,
    Requantize,
    Resize,
    Slice,
    Softmax,
    Where,
    Window,
    const,
)
from qcompiler.types import DType, QParams

CODES = QParams((0.1,), 7, 0, 255)


def value_of(cases: Cases, operand: Node | torch.Tensor) -> torch.Tensor:
    if isinstance(operand, torch.Tensor):
        return operand
    if isinstance(operand.op, Const):
        return operand.op.value
    return cases.values[cases.inputs.index(operand)]


def check_fenced(cases: Cases) -> None:
    """Every output, computed from fenced operands into a fenced result, is the interpreter's."""
    launches = [TARGET.answer(node) for node in cases.outputs]
    kernels = {f"kernel{k}": launch.build() for k, launch in enumerate(launches)}
    named = {k: f.with_attr("global_symbol", k) for k, f in kernels.items()}
    library = tvm.compile(tvm.IRModule(named), target=target())
    for name, launch, node in zip(kernels, launches, cases.outputs, strict=True):
        values = [value_of(cases, o) for o in launch.operands]
        want = node.op.eval(*(value_of(cases, i) for i in node.inputs))
        garbage = torch.full_like(want, 1).numpy()
        garbage.view(np.uint8)[...] = CANARY
        fenced = [Fenced(v.contiguous().numpy()) for v in values]
        result = Fenced(garbage)
        library[name](*(f.tensor() for f in fenced), result.tensor())
        for memory in (*fenced, result):
            memory.check()
        assert bool(same_bits(torch.from_numpy(result.array.copy()), want).all()), node


def test_elementwise() -> None:
    cases = Cases(0)
    for shape in ((1,), (3,), (5,), (31,), (33,), (3, 41), (2, 3, 17), (1, 4099), (70, 1000)):
        x, y = cases.floats(*shape), cases.floats(shape[-1])
        q = cases.integers(0, 255, *shape, quant=CODES)
        cases.out(Add()(x, y), Mul()(x, cases.floats(*shape[:-1], 1)), Exp()(x))
        cases.out(Quantize(DType.UINT8, 0, 255)(x, const(0.1), const(3)))
        cases.out(Lookup(DType.UINT8, CODES)(q, const(torch.arange(256).to(torch.uint8))))
        truth = cases.integers(0, 1, *shape, dtype=torch.bool)
        cases.out(Where()(truth, x, y))
        acc = cases.integers(-9999, 9999, *shape, dtype=torch.int32)
        cases.out(Requantize(DType.INT8, QParams((0.1,), 7, -128, 127))(acc, const(0.01)))
    check_fenced(cases)


def test_rows() -> None:
    cases = Cases(1)
    for size in (1, 3, 15, 16, 17, 33, 100):
        x, w = cases.floats(3, size), const(torch.randn(size, generator=cases.rng))
        cases.out(Softmax()(x), LayerNorm(1e-5)(x, w, w), Reduce(Reduction.SUM)(x))
        soft = Softmax()(x)
        code = Quantize(DType.UINT8, 0, 255)(soft, const(1 / 255), const(0))
        cases.out(region(code, [soft, code]))
    check_fenced(cases)


def test_movement() -> None:
    cases = Cases(2)
    for dtype in (torch.uint8, torch.float32):
        x = cases.integers(0, 99, 2, 5, 19, 7, dtype=dtype)
        cases.out(*(Permute(p)(x) for p in ((0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0))))
        cases.out(Permute((0, 2, 1))(cases.integers(0, 99, 2, 33, 41, dtype=dtype)))
        cases.out(Permute((1, 0))(cases.integers(0, 99, 3, 41, dtype=dtype)))
        cases.out(Permute((1, 0))(cases.integers(0, 99, 41, 3, dtype=dtype)))
        cases.out(Slice(3, 2, 7, 2)(x), Slice(2, 3, 18)(x), Concat(3)(x, x), Concat(1)(x, x))
        cases.out(Pad(((0, 0), (1, 2), (0, 0), (3, 1)), 4.0)(x), Dilate((1, 2, 1, 3))(x))
        cases.out(Flip((3,))(x), Flip((1, 2))(x), Cumsum(2)(x) if dtype.is_floating_point else x)
        cases.out(Expand((3, 4, 5))(cases.integers(0, 99, 4, 1, dtype=dtype)))
        ids = cases.integers(0, 4, 6, dtype=torch.int64)
        cases.out(Gather(1)(x, ids))
        index = cases.integers(0, 6, 2, 5, 19, 3, dtype=torch.int64)
        cases.out(GatherElements(3)(x, index))
    cases.outputs = [n for n in cases.outputs if n.inputs]
    check_fenced(cases)


def test_windows_and_products() -> None:
    cases = Cases(3)
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)))
    for channels in (3, 19):
        x = cases.given(torch.rand(1, 9, 7, channels, generator=cases.rng) + 0.5)
        cases.out(MaxPool2d(window, True)(x), AvgPool2d(window, channels_last=True)(x))
        cases.out(Resize((5, 15), True, channels_last=True)(x))
    x = cases.integers(0, 255, 3, 21, quant=CODES)
    for n in (1, 7, 40):
        w = torch.randint(-90, 90, (n, 21), generator=cases.rng).to(torch.int8)
        cases.out(IntLinear(7)(x, const(w)))
        cases.out(IntLinear(7)(x, cases.given(w)))
    # Integers in float32: sums are exact in any order.
    a = cases.given(torch.randint(-9, 9, (2, 1, 5, 6), generator=cases.rng).float())
    cases.out(Matmul()(a, cases.given(torch.randint(-9, 9, (3, 6, 11)).float())))
    check_fenced(cases)
