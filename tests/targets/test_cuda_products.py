"""Products on a GPU: random integer layers by every instruction, the tiles, what they promise."""

from __future__ import annotations

import random
from dataclasses import replace

import emulated
import lowering
import pytest
import test_lower_products as products
import torch
from lowering import Cases, region

from qcompiler.context import Context
from qcompiler.graph import Node
from qcompiler.ops import (
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    Linear,
    Lookup,
    Requantize,
    const,
)  # fmt: skip
from qcompiler.passes.pack import packed
from qcompiler.targets import Target, get
from qcompiler.targets.build import compiled, device_source
from qcompiler.targets.kernels.cuda import DP4A, FMA, IMAD, MMA
from qcompiler.targets.kernels.geometry import Conv
from qcompiler.targets.kernels.geometry import Linear as Rows
from qcompiler.targets.kernels.gpu import takes
from qcompiler.targets.kernels.grid import Grid
from qcompiler.targets.kernels.tiled import cut, tiled_packing
from qcompiler.targets.lower import lower
from qcompiler.types import DType, QParams

SM80, SM90 = get("cuda-sm80"), get("cuda-sm90")
ISAS = {
    "mma": (MMA, DP4A, IMAD, FMA),
    "dp4a": (DP4A, IMAD, FMA),
    "references": (MMA.portable(), DP4A.portable(), IMAD, FMA),
}
# Modules, regions in each, and those among them that the instruction computes: no groups.
MODULES, PER_MODULE, LEAST = 3, 24, 20


def target(isa: str) -> Target:
    return replace(SM80, isa=ISAS[isa])


@pytest.fixture(autouse=True)
def on_gpu(gpu: None) -> None:
    return


def weights(r: random.Random, cases: Cases, *shape: int) -> Node:
    """Random, sparse, and all of the largest magnitude."""
    full = products.codes(cases, *shape, most=r.choice([127, 40]))
    value = full.op.value  # type: ignore[attr-defined]
    kind = r.choice(["random", "extreme", "dead"])
    if kind == "extreme":
        value = torch.where(value > 0, 127, -127).to(torch.int8)
    elif kind == "dead":
        value[0] = 0
    return const(value)


def codes(r: random.Random, cases: Cases, *shape: int) -> Node:
    """An input of random or extreme codes with a random zero point."""
    low, high = r.choice([(0, 255), (0, 255), (-128, 127)])
    dtype = torch.uint8 if low == 0 else torch.int8
    quant = QParams((0.02,), r.choice([low, high, r.randint(low, high)]), low, high)
    value = torch.randint(low, high + 1, shape, generator=cases.rng)
    if r.random() < 1 / 3:
        value = torch.where(value > (low + high) // 2, high, low)
    return cases.given(value.to(dtype), quant)


def zero_of(x: Node) -> int:
    assert x.tensor.quant is not None
    return x.tensor.quant.zero_point


def convolution(r: random.Random, cases: Cases, grouped: bool) -> list[Node]:
    groups = r.choice([2, 3]) if grouped else 1
    channels = groups * r.choice([1, 3, 4, 7, 8, 16, 24, 40])
    outputs = groups * r.choice([1, 5, 8, 17, 32, 33, 70])
    kernel = r.choice([(1, 1), (3, 3), (2, 3), (1, 5), (3, 1)])
    dilation = (r.randint(1, 2), r.randint(1, 2))
    pads = [(r.randint(0, k - 1), r.randint(0, k - 1)) for k in kernel]
    size = [d * (k - 1) + r.randint(4, 9) for d, k in zip(dilation, kernel, strict=True)]
    x = codes(r, cases, r.randint(2, 3), *size, channels)
    w = weights(r, cases, outputs, channels // groups, *kernel)
    bias = [products.bias(cases, outputs)] if r.random() < 0.7 else []
    stride = (r.randint(1, 2), r.randint(1, 2))
    conv = IntConv2d(stride, (pads[0], pads[1]), dilation, groups, True, zero_of(x))
    return [conv(x, w, *bias)]


def matrix_product(r: random.Random, cases: Cases) -> list[Node]:
    k, n = r.choice([1, 3, 16, 33, 64, 100, 130]), r.choice([1, 8, 17, 40, 66])
    x = codes(r, cases, *r.choice([(17,), (33,), (2, 20), (70,), (16,)]), k)
    bias = [products.bias(cases, n)] if r.random() < 0.7 else []
    return [IntLinear(zero_of(x))(x, weights(r, cases, n, k), *bias)]


def attention(r: random.Random, cases: Cases) -> list[Node]:
    """Two activations, each with its zero point."""
    lead, m = r.choice([(), (3,), (2, 2)]), r.choice([17, 20, 33, 65])
    k, n = r.choice([1, 5, 16, 33, 64, 90]), r.choice([1, 8, 19, 66])
    a, b = codes(r, cases, *lead, m, k), codes(r, cases, *lead, k, n)
    return [IntMatmul(zero_of(a), zero_of(b))(a, b)]


def followed(r: random.Random, cases: Cases, body: list[Node]) -> Node:
    """The sums as they are, or requantized, added to a residual, looked up in a table."""
    (acc,) = body
    kind = r.choice(["bare", "codes", "two slopes", "residual", "table"])
    m = products.multiplier(cases, acc.tensor.ints[-1])
    if kind == "bare":
        return acc
    if kind == "residual":
        residual = codes(r, cases, *acc.tensor.ints)
        fine = QParams((0.3 / 256,), 0, -11 * 256, 244 * 256)
        wide = Requantize(DType.INT32, fine)(acc, m)
        total = IntAdd(0, zero_of(residual), 100, 3000, products.SUM)(wide, residual)
        return region(code := Requantize(DType.UINT8, products.OUT)(total, const(1e-5)),
                      [acc, wide, total, code])  # fmt: skip
    slopes = [m, const(m.op.value * 0.3)] if kind == "two slopes" else [m]  # type: ignore
    code = Requantize(DType.UINT8, r.choice([products.OUT, products.RELU6]))(acc, *slopes)
    if kind != "table":
        return region(code, [acc, code])
    table = torch.randint(-128, 128, (256,), generator=cases.rng).to(torch.int8)
    looked = Lookup(DType.INT8, products.SIGNED)(code, const(table))
    return region(looked, [acc, code, looked])


@pytest.mark.parametrize("isa", ["mma", "dp4a"])
@pytest.mark.parametrize("seed", range(MODULES))
def test_random_regions(isa: str, seed: int, monkeypatch) -> None:
    """Of every shape, stride, padding, dilation and zero point; extreme codes; all epilogues."""
    monkeypatch.setattr(lowering, "TARGET", target(isa))
    r, cases, context = random.Random(seed), Cases(seed), Context(target(isa))
    for k in range(PER_MODULE):
        made = (
            matrix_product(r, cases) if k % 3 == 0
            else attention(r, cases) if k % 6 == 5
            else convolution(r, cases, k % 10 == 1)
        )  # fmt: skip
        cases.out(packed(followed(r, cases, made), context))
    lowered = lower(lowering.fused(cases.inputs, cases.outputs), target(isa))
    kernels = device_source(compiled(lowered, target(isa))).split('extern "C" __global__')
    name = {"mma": "tvm_builtin_ptx_mma_int", "dp4a": "__dp4a("}[isa]
    assert sum(name in kernel for kernel in kernels[1:]) >= LEAST  # the first is what all share
    with emulated.settings(*emulated.SETTINGS[seed * 5 % len(emulated.SETTINGS)]):
        cases.check()


def test_there_are_60_regions_for_each_instruction() -> None:
    assert MODULES * LEAST >= 60


@pytest.mark.parametrize("isa", ISAS)
def test_instructions_give_the_same_bits_as_their_meaning(isa: str, monkeypatch) -> None:
    """Regions with residual adds, tables, per-row scales; mma by exchanges between lanes."""
    monkeypatch.setattr(lowering, "TARGET", target(isa))
    monkeypatch.setattr(products, "CTX", Context(target(isa)))
    products.test_integer_linears()
    products.test_integer_convolutions(products.CONVS[0])
    products.test_dynamically_quantized_linears()
    if isa != "references":  # a minute of exchanges
        products.test_integer_matmuls()


def test_float_products(monkeypatch) -> None:
    monkeypatch.setattr(lowering, "TARGET", SM80)
    monkeypatch.setattr(products, "CTX", Context(SM80))
    products.test_float_products()
    products.test_a_float_region_dequantizes_a_residual()


def tiles() -> Cases:
    """More than one block, several steps, edges in every direction; 8, 4 and 1 byte copies."""
    cases = Cases(1)
    for rows, k, n in ((70, 200, 70), (129, 72, 17), (65, 196, 33), (130, 67, 130)):
        x = cases.integers(0, 255, rows, k, quant=products.X)
        acc = IntLinear(7)(x, products.codes(cases, n, k), products.bias(cases, n))
        m = products.multiplier(cases, n)
        code = Requantize(DType.UINT8, products.OUT)(acc, m)
        cases.out(packed(region(code, [acc, code]), Context(lowering.TARGET)))
    return cases


@pytest.mark.parametrize("isa", ["mma", "dp4a"])
def test_blocks_warps_and_copies_in_any_order(isa: str, monkeypatch) -> None:
    """The emulator runs them forward, backward and shuffled, and lands copies early or late."""
    monkeypatch.setattr(lowering, "TARGET", target(isa))
    for order, copies in (("reverse", "eager"), (3, "lazy"), (4, "eager")):
        with emulated.settings(order, copies):
            tiles().check()


LARGE = {
    "linear": Rows((4100,), 200, 130),
    "matmul": Rows((4100,), 80, 130),
    "convolution": Conv(2, 46, 46, 36, 140, (3, 3), padding=(1, 1, 1, 1)),
    "float linear": Rows((4100,), 70, 130),
}


def large(name: str) -> Cases:
    """Products with edges in both directions that are cut into the largest tiles."""
    cases, context = Cases(2), Context(SM80)
    match name:
        case "linear":
            x = cases.integers(0, 255, 4100, 200, quant=products.X)
            made = IntLinear(7)(x, products.codes(cases, 130, 200), products.bias(cases, 130))
        case "matmul":
            a, b = (cases.integers(0, 255, *s, quant=products.X) for s in ((4100, 80), (80, 130)))
            made = IntMatmul(7, 7)(a, b)
        case "convolution":
            x = cases.integers(0, 255, 2, 46, 46, 36, quant=products.X)
            conv = IntConv2d((1, 1), ((1, 1), (1, 1)), (1, 1), 1, True, zero_point=7)
            made = conv(x, products.codes(cases, 140, 36, 3, 3), products.bias(cases, 140))
        case _:
            x = cases.floats(4100, 70)
            made = Linear()(x, const(torch.randn(130, 70, generator=cases.rng)))
    cases.out(packed(made, context))
    return cases


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_tiles(name: str, monkeypatch) -> None:
    grid = SM80.primitives.grid
    assert grid is not None
    size = cut(LARGE[name], FMA if name == "float linear" else MMA, grid)
    assert (size.rows, size.columns) == (128, 128)
    monkeypatch.setattr(lowering, "TARGET", SM80)
    cases = large(name)
    if name == "float linear":
        cases.check_near()
    else:
        cases.check()


def test_the_same_program_runs_any_batch(monkeypatch) -> None:
    monkeypatch.setattr(lowering, "TARGET", SM90)
    for batch in (1, 5):
        cases = Cases(3, batch)
        x = cases.integers(0, 255, batch, 9, 40, quant=products.X, symbolic=True)
        y = cases.floats(batch, 9, 40, symbolic=True)
        w = torch.randn(24, 40, generator=cases.rng)
        cases.out(packed(IntLinear(7)(x, products.codes(cases, 24, 40)), Context(SM90)))
        cases.check()
        near = Cases(4, batch)
        y = near.floats(batch, 9, 40, symbolic=True)
        near.out(packed(Linear()(y, const(w)), Context(SM90)))
        near.check_near()


IMAGE = Conv(8, 56, 56, 64, 128, (3, 3), padding=(1, 1, 1, 1))
SHAPES = (
    IMAGE, Rows((100,), 256, 64), Rows((1,), 1280, 1000), Rows(("n", 7), 16, 3),
    Conv("n", 224, 224, 3, 32, (3, 3), (2, 2)), Conv(64, 14, 14, 512, 512, (1, 1)),
)  # fmt: skip


@pytest.mark.parametrize("machine", [SM80, SM90], ids=lambda t: t.name)
@pytest.mark.parametrize("g", SHAPES, ids=repr)
def test_tiles_fit_the_machine(g, machine: Target) -> None:
    for dot in (MMA, DP4A, FMA):
        grid = machine.primitives.grid
        assert grid is not None
        size = cut(g, dot, grid)
        assert size.shared <= grid.shared
        assert size.threads <= 1024
        assert size.rows % (size.down * 16) == 0 and size.columns % (size.across * 16) == 0
        assert tiled_packing(g, dot, grid).lanes == size.columns


def test_large_tiles_need_large_shared_memory() -> None:
    assert cut(IMAGE, MMA, Grid(256, 164 << 10)).rows == 128
    assert cut(IMAGE, MMA, Grid(256, 48 << 10)).rows == 64


def test_which_instruction_takes_what() -> None:
    """Matrices want 16 rows; groups are summed one product at a time."""
    assert takes(IMAGE, MMA) and takes(Rows(("n",), 8, 8), MMA)
    assert not takes(Rows((8,), 64, 64), MMA) and takes(Rows((8,), 64, 64), DP4A)
    grouped = replace(IMAGE, groups=64)
    assert [d.name for d in ISAS["mma"] if takes(grouped, d)] == [IMAD.name, FMA.name]
