"""Small graphs that many tests share, built op by op."""

from collections.abc import Sequence

import torch

from qcompiler.arith import SumRule
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Gelu,
    Hardsigmoid,
    Hardswish,
    Input,
    LayerNorm,
    Linear,
    Matmul,
    MaxPool2d,
    Mul,
    Packing,
    Permute,
    Prelu,
    Reshape,
    Softmax,
    Window,
    const,
)
from qcompiler.recipe import recipe_of
from qcompiler.rewrite import named
from qcompiler.target import Sums
from qcompiler.types import DType, TensorType


class ToyTarget:
    """A machine with AVX2's sum rule and no opinion on anything else."""

    name = "toy"

    def refuses(self, node: Node) -> str | None:
        return None

    def refuses_integer(self, node: Node) -> str | None:
        return None

    def sums(self, low: int, high: int) -> tuple[Sums, ...]:
        return (Sums(SumRule(2), low, high),)

    def microseconds(self, node: Node, choices: Sequence[Sums | None], codes: DType) -> None:
        return None

    def least(self, what: str) -> None:
        return None

    def quantizing(self, node: Node) -> float:
        return 0.0

    def dequantizing(self, node: Node) -> float:
        return 0.0

    def packing(self, node: Node) -> Packing | None:
        return Packing(16, 4)


def value(*shape: int, name: str = "x", dtype: DType = DType.FLOAT32) -> Node:
    return Input(TensorType(shape, dtype))(name=name)


def rand(*shape: int) -> Node:
    return const(torch.randn(*shape) / max(shape[-1], 1) ** 0.5)


def conv(x: Node, out: int, k: int = 3, groups: int = 1, stride: int = 1, name: str = "") -> Node:
    channels = x.tensor.shape[1]
    assert isinstance(channels, int)
    fan = channels // groups * k * k
    w = const(torch.randn(out, channels // groups, k, k) / fan**0.5, name=f"{name}.w")
    b = const(torch.randn(out) * 0.1, name=f"{name}.b")
    pads = ((k // 2, k // 2), (k // 2, k // 2))
    return Conv2d((stride, stride), pads, (1, 1), groups)(x, w, b, name=name)


def cnn(batch: int = 2) -> Graph:
    """Convolutions, depthwise, squeeze-excite, residual, concat, PReLU, pools, a linear."""
    torch.manual_seed(0)
    x = value(batch, 3, 16, 16)
    y = Clamp(0.0, 6.0)(conv(x, 8, name="stem"), name="relu")
    y = MaxPool2d(Window((2, 2), (2, 2)))(y, name="pool")
    z = Hardswish()(conv(y, 8, groups=8, name="depthwise"), name="swish")
    gate = AvgPool2d(Window((8, 8)))(z, name="squeeze")
    gate = Clamp(0.0)(conv(gate, 4, 1, name="reduce"), name="reduce_relu")
    gate = Hardsigmoid()(conv(gate, 8, 1, name="expand"), name="gate")
    z = conv(Mul()(z, gate, name="excite"), 8, 1, name="project")
    z = Clamp(0.0)(Add()(z, y, name="add"), name="add_relu")
    z = conv(Concat(1)(z, y, name="cat"), 8, name="last")
    z = Prelu()(z, const(torch.rand(8, 1, 1), name="slope"), name="prelu")
    z = Reshape((batch, 8))(AvgPool2d(Window((8, 8)))(z, name="mean"), name="flat")
    w, b = const(torch.randn(10, 8), name="fc.w"), const(torch.randn(10), name="fc.b")
    return named(Graph((x,), (Linear()(z, w, b, name="fc"),)))


def encoder(length: int = 6, width: int = 32, heads: int = 2) -> Graph:
    """One transformer block: attention, residuals, layer norm, gelu MLP."""
    torch.manual_seed(1)
    x = value(2, length, width)
    per_head = width // heads

    def split(name: str) -> Node:
        y = Linear()(x, rand(width, width), rand(width), name=name)
        return Permute((0, 2, 1, 3))(Reshape((2, length, heads, per_head))(y))

    q, k, v = map(split, "qkv")
    scores = Mul()(Matmul()(q, Permute((0, 1, 3, 2))(k)), const(per_head**-0.5))
    mixed = Matmul()(Softmax()(scores, name="probs"), v, name="mixed")
    joined = Reshape((2, length, width))(Permute((0, 2, 1, 3))(mixed))
    y = Add()(Linear()(joined, rand(width, width), rand(width), name="out"), x)
    y = LayerNorm(1e-5)(y, const(torch.ones(width)), const(torch.zeros(width)), name="norm")
    h = Gelu()(Linear()(y, rand(4 * width, width), rand(4 * width), name="up"), name="gelu")
    z = Add()(Linear()(h, rand(width, 4 * width), rand(width), name="down"), y)
    ones, zeros = const(torch.ones(width)), const(torch.zeros(width))
    return named(Graph((x,), (LayerNorm(1e-5)(z, ones, zeros, name="norm2"),)))


def samples(graph: Graph, count: int = 4, seed: int = 7) -> list[tuple[torch.Tensor, ...]]:
    """Calibration items: normally distributed values for each input."""
    g = torch.Generator().manual_seed(seed)
    shapes = [n.tensor.ints for n in graph.inputs]
    return [tuple(torch.randn(*s, generator=g) for s in shapes) for _ in range(count)]


def context(graph: Graph, recipe: str = "int8") -> Context:
    data = samples(graph)
    return Context(ToyTarget(), recipe_of(recipe), data, sample=data[0])
