"""Random integer layers: graphs of many, and codes for them."""

import random

import torch

from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import (
    Const,
    Input,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Lookup,
    MaxPool2d,
    Requantize,
    Window,
    const,
)
from qcompiler.rewrite import named
from qcompiler.types import DType, QParams, TensorType

PER_MODULE = 30  # layers compiled together: one library, one call
INT32 = DType.INT32.limits


def codes(dtype: DType, zero_point: int, scale: float = 0.05) -> QParams:
    return QParams((scale,), zero_point, *dtype.limits)


def weights(r: random.Random, shape: tuple[int, ...]) -> Const:
    """Proven, unproven, extreme, sparse and dead weights."""
    kind = r.choice(["small", "full", "extreme", "dead", "alternating"])
    g = torch.Generator().manual_seed(r.randrange(1 << 30))
    full = torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)
    if kind == "small":
        full = full // 2
    elif kind == "extreme":
        full = torch.full(shape, 127, dtype=torch.int8)
    elif kind == "alternating":
        full = torch.where(full > 0, 127, -127).to(torch.int8)
    elif kind == "dead":
        full[0] = 0
    scale = tuple(float(torch.tensor(0.01 + 0.001 * c)) for c in range(shape[0]))
    return Const(full, QParams(scale, 0, -127, 127, 0))


def requantized(r: random.Random, sums: Node, channels: int, after: int) -> Node:
    to = r.choice([DType.UINT8, DType.UINT8, DType.INT32])
    low, high = (0, 255) if to is DType.UINT8 else (-65000, 65000)
    if to is DType.UINT8 and r.random() < 0.3:
        low, high = 3, 200
    zero = r.randint(low, high) if to is DType.UINT8 else 0
    m = torch.tensor([r.uniform(1e-5, 2e-3) for _ in range(channels)])
    m = m.reshape(-1, *[1] * after)
    multipliers = [const(m)]
    if r.random() < 0.15:
        multipliers.append(const(m * r.uniform(-0.5, 0.5)))
    return Requantize(to, QParams((0.1,), zero, low, high))(sums, *multipliers)


def source(r: random.Random, shape: tuple[int, ...], inputs: list[Node]) -> Node:
    zero = r.choice([0, 255, 128, r.randint(0, 255)])
    type_ = TensorType(shape, DType.UINT8, codes(DType.UINT8, zero))
    node = Input(type_)(name=f"x{len(inputs)}")
    inputs.append(node)
    return node


def zero_of(node: Node) -> int:
    quant = node.tensor.quant
    assert quant is not None
    return quant.zero_point


def conv(r: random.Random, inputs: list[Node]) -> Node:
    groups = r.choice([1, 1, 1, 2, 3])
    per_group = r.choice([1, 2, 3, 4, 5, 8, 17, 32])
    depthwise = r.random() < 0.25
    if depthwise:
        groups, per_group = r.choice([4, 8, 16, 19, 40]), 1
    out = groups * (1 if depthwise else r.choice([1, 3, 8, 16, 20, 33]))
    kernel = (r.randint(1, 5), r.randint(1, 5)) if r.random() < 0.6 else r.choice([(1, 1), (3, 3)])
    dilation = (r.randint(1, 2), r.randint(1, 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [r.randint(max(1, k - 2), k + 12) for k in reach]
    pads = [(r.randint(0, 2), r.randint(0, 2)) for _ in range(2)]
    pads = [(a, max(b, k - s - a)) for (a, b), k, s in zip(pads, reach, size, strict=True)]
    x = source(r, (r.randint(1, 3), groups * per_group, *size), inputs)
    w = weights(r, (out, per_group, *kernel))()
    bias = [const(torch.randint(-90000, 90000, (out,)), DType.INT32)] if r.random() < 0.7 else []
    stride = (r.randint(1, 3), r.randint(1, 3))
    op = IntConv2d(stride, (pads[0], pads[1]), dilation, groups, False, zero_of(x))
    return requantized(r, op(x, w, *bias), out, 2)


def linear(r: random.Random, inputs: list[Node]) -> Node:
    k, n = r.choice([1, 3, 4, 7, 16, 33, 64, 130]), r.choice([1, 2, 8, 15, 16, 17, 48, 100])
    lead = r.choice([(1,), (5,), (2, 3), (7, 1), (33,)])
    x = source(r, (*lead, k), inputs)
    bias = [const(torch.randint(-90000, 90000, (n,)), DType.INT32)] if r.random() < 0.7 else []
    return requantized(r, IntLinear(zero_of(x))(x, weights(r, (n, k))(), *bias), n, 0)


def matmul(r: random.Random, inputs: list[Node]) -> Node:
    lead = r.choice([(), (1,), (3,), (2, 2)])
    m, k, n = (r.choice([1, 2, 5, 8, 16, 19, 40]) for _ in range(3))
    a, b = source(r, (*lead, m, k), inputs), source(r, (*lead, k, n), inputs)
    return requantized(r, IntMatmul(zero_of(a), zero_of(b))(a, b), 1, 0)


def elementwise(r: random.Random, inputs: list[Node]) -> Node:
    shape = tuple(r.randint(1, 9) for _ in range(r.randint(1, 4)))
    a = source(r, shape, inputs)
    b = source(r, tuple(r.choice([d, d, 1]) for d in shape), inputs)
    if r.random() < 0.5:
        return requantized(r, IntMul(zero_of(a), zero_of(b))(a, b), 1, 0)
    fine = QParams((1e-6,), 0, *INT32)
    op = IntAdd(zero_of(a), zero_of(b), r.randint(1, 1 << 20), r.randint(1, 1 << 20), fine)
    to = QParams((0.1,), r.randint(0, 255), 0, 255)
    return Requantize(DType.UINT8, to)(op(a, b), const(2.0**-20))


def pool(r: random.Random, inputs: list[Node]) -> Node:
    kernel = (r.randint(1, 4), r.randint(1, 4))
    pads = tuple((r.randint(0, k // 2), r.randint(0, k // 2)) for k in kernel)
    window = Window(
        kernel, (r.randint(1, 3), r.randint(1, 3)), (pads[0], pads[1]), ceil=r.random() < 0.4
    )
    x = source(
        r, (r.randint(1, 2), r.randint(1, 20), *(k + r.randint(0, 9) for k in kernel)), inputs
    )
    if r.random() < 0.5:
        return MaxPool2d(window)(x)
    return requantized(r, IntSumPool2d(window, zero_of(x))(x), 1, 0)


def table(r: random.Random, inputs: list[Node]) -> Node:
    x = source(r, tuple(r.randint(1, 40) for _ in range(r.randint(1, 3))), inputs)
    entries = torch.tensor([r.randint(0, 255) for _ in range(256)])
    return Lookup(DType.UINT8, codes(DType.UINT8, 7))(x, const(entries, DType.UINT8))


MAKERS = (conv, conv, conv, linear, linear, matmul, elementwise, pool, table)


def module(seed: int) -> Graph:
    r = random.Random(seed)
    torch.manual_seed(seed)
    inputs: list[Node] = []
    outputs = tuple(MAKERS[k % len(MAKERS)](r, inputs) for k in range(PER_MODULE))
    return named(Graph(tuple(inputs), outputs, level=Level.INTEGER))


def values(graph: Graph, seed: int) -> list[torch.Tensor]:
    """Random codes; in every third tensor only the two extremes."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for k, node in enumerate(graph.inputs):
        x = torch.randint(0, 256, node.tensor.ints, generator=g)
        result.append((torch.where(x > 127, 255, 0) if k % 3 == 0 else x).to(torch.uint8))
    return result
