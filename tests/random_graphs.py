"""Random small float graphs: odd shapes, odd bounds, shared and broadcast operands."""

import math
import random
from collections.abc import Callable

import torch
from nets import value

from qcompiler.graph import Graph, Node
from qcompiler.op import OpError
from qcompiler.ops import (
    Abs,
    Add,
    AvgPool2d,
    BatchNorm,
    Clamp,
    Concat,
    Conv2d,
    Dilate,
    Div,
    Elu,
    Expand,
    Flip,
    Gather,
    Gelu,
    Hardsigmoid,
    Hardswish,
    LayerNorm,
    LeakyRelu,
    Linear,
    Matmul,
    Maximum,
    MaxPool2d,
    Mul,
    Neg,
    Pad,
    Permute,
    Power,
    Prelu,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    RmsNorm,
    Sigmoid,
    Silu,
    Slice,
    Softmax,
    Softplus,
    Sub,
    Tanh,
    Window,
    const,
)
from qcompiler.rewrite import named

LARGEST = 4096  # elements of one value: what the oracle computes in a millisecond
ITEMS = 6  # calibration items
UNARY = (
    Hardswish(), Hardsigmoid(), Sigmoid(), Tanh(), Silu(), Gelu(), Gelu(True), Elu(), Softplus(),
    Abs(), Neg(), Power(2),
)  # fmt: skip
CLAMPS = (
    (0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (0.25, 2.0), (-2.0, -0.25), (0.5, 0.5),
    (-0.75, -0.75), (0.0, 0.0), (-math.inf, 0.0), (-0.5, math.inf), (-math.inf, -0.1),
    (0.3, math.inf),
)  # fmt: skip


class Maker:
    """Grows a graph node by node; every choice comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.inputs: list[Node] = []
        self.values: list[Node] = []

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.noise) * scale

    def some(self, rank: int | None = None) -> Node:
        """A value made so far, rather a late one."""
        fits = [v for v in self.values if rank is None or v.tensor.rank == rank]
        if not fits:
            raise OpError("none of that rank")
        return self.rng.choice(fits[-2:] if self.rng.random() < 0.7 else fits)

    def graph(self) -> Graph:
        r = self.rng
        spatial = (r.choice((1, 3, 4, 6)), r.randint(3, 9), r.randint(3, 9))
        self.inputs.append(value(r.choice((1, 2)), *spatial, name="image"))
        if r.random() < 0.6:
            self.inputs.append(value(2, r.randint(2, 5), r.choice((4, 6, 8)), name="rows"))
        if r.random() < 0.3:
            self.inputs.append(value(*self.inputs[0].tensor.ints, name="second"))
        self.values = list(self.inputs)
        wanted, made = r.randint(5, 25), 0
        while made < wanted:
            try:
                node = r.choice(STEPS)(self)
            except OpError:
                continue
            if 0 < node.tensor.size <= LARGEST:
                self.values.append(node)
                made += 1
        made_nodes = self.values[len(self.inputs) :]
        used = {i for v in made_nodes for i in v.inputs}
        ends = [v for v in made_nodes if v not in used]
        extra = [v for v in made_nodes if v in used and r.random() < 0.1]
        outputs = ends + extra
        if r.random() < 0.1:
            outputs.append(outputs[0])
        if r.random() < 0.1:
            outputs.append(self.inputs[0])
        return named(Graph(tuple(self.inputs), tuple(outputs)))


def conv(m: Maker) -> Node:
    r, x = m.rng, m.some(4)
    channels = x.tensor.ints[1]
    groups = r.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
    out = groups * r.choice((1, 2) if groups == channels > 1 else (1, 2, 3, 5, 8))
    kernel = (r.randint(1, 3), r.randint(1, 3))
    pads = tuple((r.randint(0, 2), r.randint(0, 2)) for _ in range(2))
    stride = (r.choice((1, 1, 2)), r.choice((1, 1, 2, 3)))
    dilation = (r.choice((1, 1, 2)), 1)
    fan = channels // groups * kernel[0] * kernel[1]
    w = const(m.randn(out, channels // groups, *kernel, scale=fan**-0.5))
    if r.random() < 0.1:
        w.op.value[0] = 0  # a dead channel
    bias = [const(m.randn(out, scale=r.choice((0.1, 3.0))))] if r.random() < 0.7 else []
    return Conv2d(stride, pads, dilation, groups)(x, w, *bias)


def linear(m: Maker) -> Node:
    x = m.some()
    k, n = x.tensor.ints[-1], m.rng.choice((1, 3, 4, 8, 17))
    if m.rng.random() < 0.2:
        return Matmul()(x, const(m.randn(k, n, scale=k**-0.5)))
    bias = [const(m.randn(n, scale=0.3))] if m.rng.random() < 0.6 else []
    return Linear()(x, const(m.randn(n, k, scale=k**-0.5)), *bias)


def matmul(m: Maker) -> Node:
    a = m.some()
    fits = [v for v in m.values if v.tensor.rank >= 2 and a.tensor.rank >= 2]
    ready = [v for v in fits if v.tensor.ints[-2] == a.tensor.ints[-1]]
    turned = [v for v in fits if v.tensor.ints[-1] == a.tensor.ints[-1]]
    if ready and m.rng.random() < 0.5:
        b = m.rng.choice(ready)
    elif turned:
        b = m.rng.choice(turned)
        rank = b.tensor.rank
        b = Permute((*range(rank - 2), rank - 1, rank - 2))(b)
    else:
        raise OpError("nothing fits")
    return Mul()(Matmul()(a, b), const(a.tensor.ints[-1] ** -0.5))


def partner(m: Maker, x: Node) -> Node:
    """Something that broadcasts with x: a value, a slice of it, or a constant."""
    r, shape = m.rng, x.tensor.ints
    same = [v for v in m.values if v.tensor.shape == shape]
    kind = r.random()
    if kind < 0.5:
        return r.choice(same)
    if kind < 0.65:
        axis = r.randrange(len(shape))
        return Slice(axis, 0, 1)(r.choice(same))
    if kind < 0.75:
        return const(float(m.randn(1)))
    small = [d if r.random() < 0.5 else 1 for d in shape][r.randrange(len(shape)) :]
    return const(m.randn(*small))


def pair(m: Maker) -> Node:
    x = m.some()
    y = partner(m, x)
    op = m.rng.choice((Add(), Add(), Add(), Mul(), Sub(), Maximum()))
    return op(x, y) if m.rng.random() < 0.6 else op(y, x)


def residual(m: Maker) -> Node:
    """A layer of the shape of its operand, and the sum of both."""
    r, x = m.rng, m.some(4)
    c = x.tensor.ints[1]
    w = const(m.randn(c, c, 3, 3, scale=(9 * c) ** -0.5))
    y = Conv2d((1, 1), ((1, 1), (1, 1)))(x, w, const(m.randn(c, scale=0.1)))
    y = Clamp(0.0)(y) if r.random() < 0.3 else y
    y = Add()(x, y) if r.random() < 0.5 else Add()(y, x)
    return Clamp(*r.choice(CLAMPS[:4]))(y) if r.random() < 0.5 else y


def excite(m: Maker) -> Node:
    x = m.some(4)
    c, h, w = x.tensor.ints[1:]
    gate = AvgPool2d(Window((h, w)))(x)
    gate = Conv2d()(gate, const(m.randn(c, c, 1, 1, scale=c**-0.5)), const(m.randn(c)))
    gate = m.rng.choice((Hardsigmoid(), Sigmoid()))(gate)
    return Mul()(x, gate) if m.rng.random() < 0.5 else Mul()(gate, x)


def clamp(m: Maker) -> Node:
    return Clamp(*m.rng.choice(CLAMPS))(m.some())


def unary(m: Maker) -> Node:
    return m.rng.choice(UNARY)(m.some())


def activation(m: Maker) -> Node:
    if m.rng.random() < 0.4:
        return LeakyRelu(m.rng.choice((0.1, 0.0, -0.5, 2.0)))(m.some())
    x = conv(m) if m.rng.random() < 0.6 else m.some(4)
    slope = m.randn(1 if m.rng.random() < 0.3 else x.tensor.ints[1], 1, 1, scale=0.4)
    return Prelu()(x, const(slope))


def window(m: Maker, x: Node) -> Window:
    r = m.rng
    kernel = (r.randint(1, 3), r.randint(1, 3))
    pads = tuple((p := r.randint(0, k // 2), p) for k in kernel)
    h, w = x.tensor.ints[2:]
    if h + 2 * pads[0][0] < kernel[0] or w + 2 * pads[1][0] < kernel[1]:
        raise OpError("a window that fits")
    return Window(kernel, (r.randint(1, 3), r.randint(1, 3)), pads, ceil=r.random() < 0.5)


def pool(m: Maker) -> Node:
    x = m.some(4)
    shape = window(m, x)
    if m.rng.random() < 0.5:
        return MaxPool2d(shape)(x)
    divisor = m.rng.choice((None, None, None, 3))
    return AvgPool2d(shape, m.rng.random() < 0.5, divisor)(x)


def concat(m: Maker) -> Node:
    r, x = m.rng, m.some()
    axis = r.randrange(x.tensor.rank)
    keep = [k for k in range(x.tensor.rank) if k != axis]
    fits = [
        v for v in m.values
        if v.tensor.rank == x.tensor.rank
        and all(v.tensor.shape[k] == x.tensor.shape[k] for k in keep)
    ]  # fmt: skip
    parts = [x, *(r.choice([x, *fits]) for _ in range(r.randint(1, 2)))]
    if r.random() < 0.2:
        parts.append(const(m.randn(*x.tensor.ints)))
    r.shuffle(parts)
    return Concat(axis)(*parts)


def cut(m: Maker) -> Node:
    x = m.some()
    axis = m.rng.randrange(x.tensor.rank)
    dim = x.tensor.ints[axis]
    start = m.rng.randrange(dim)
    return Slice(axis, start, m.rng.randint(start + 1, dim), m.rng.choice((1, 1, 2)))(x)


def pad(m: Maker) -> Node:
    r, x = m.rng, m.some()
    pads = tuple((r.choice((0, 0, 1)), r.choice((0, 0, 2))) for _ in x.tensor.shape)
    if x.tensor.rank == 4 and r.random() < 0.5:
        pads = ((0, 0), (0, 0), *pads[2:])
    return Pad(pads, r.choice((0.0, 0.0, 1.0, -0.7)))(x)


def permute(m: Maker) -> Node:
    x = m.some()
    dims = list(range(x.tensor.rank))
    m.rng.shuffle(dims)
    return Permute(tuple(dims))(x)


def reshape(m: Maker) -> Node:
    r, x = m.rng, m.some()
    shape = list(x.tensor.ints)
    if r.random() < 0.5 and len(shape) > 2:
        k = r.randrange(1, len(shape) - 1)
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
    elif len(shape) < 4:
        k = r.randrange(len(shape))
        d = r.choice([d for d in (1, 2, 3) if shape[k] % d == 0])
        shape[k : k + 1] = [d, shape[k] // d]
    return Reshape(tuple(shape))(x)


def flip(m: Maker) -> Node:
    x = m.some()
    return Flip((m.rng.randrange(x.tensor.rank),))(x)


def expand(m: Maker) -> Node:
    x = m.some()
    axis = m.rng.randrange(x.tensor.rank)
    shape = list(x.tensor.ints)
    shape[axis] = m.rng.randint(2, 4)
    return Expand(tuple(shape))(Slice(axis, 0, 1)(x))


def row(m: Maker) -> Node:
    x = m.some()
    k = x.tensor.ints[-1]
    w, b = const(1 + m.randn(k, scale=0.2)), const(m.randn(k, scale=0.2))
    makers: tuple[Callable[[], Node], ...] = (
        lambda: Softmax()(x), lambda: LayerNorm(1e-3)(x, w, b), lambda: RmsNorm(1e-3)(x, w),
        lambda: Reduce(m.rng.choice((Reduction.MEAN, Reduction.MAX)))(x),
    )  # fmt: skip
    return m.rng.choice(makers)()


def norm(m: Maker) -> Node:
    x = conv(m) if m.rng.random() < 0.7 else m.some(4)
    c = x.tensor.ints[1]
    params = (m.randn(c, scale=0.2), 0.5 + m.randn(c).abs(), 1 + m.randn(c, scale=0.3), m.randn(c))
    return BatchNorm(1e-3)(x, *map(const, params))


def resize(m: Maker) -> Node:
    r = m.rng
    size = (r.randint(2, 11), r.randint(2, 11))
    return Resize(size, r.random() < 0.4, r.random() < 0.3)(m.some(4))


def quotient(m: Maker) -> Node:
    return Div()(m.some(), const(m.rng.choice((0.7, -3.0))))


def dilate(m: Maker) -> Node:
    x = m.some()
    strides = tuple(m.rng.choice((1, 1, 2)) for _ in x.tensor.shape)
    return Dilate(strides, m.rng.choice((0.0, 0.4)))(x)


def gather(m: Maker) -> Node:
    x = m.some()
    axis = m.rng.randrange(x.tensor.rank)
    ids = [m.rng.randrange(x.tensor.ints[axis]) for _ in range(m.rng.randint(1, 4))]
    return Gather(axis)(x, const(torch.tensor(ids)))


def twins(m: Maker) -> Node:
    """Two layers of one weight, on values of unlike ranges."""
    x = m.some()
    k = x.tensor.ints[-1]
    w = const(m.randn(k, k, scale=k**-0.5))
    y = Linear()(x, w, const(m.randn(k)))
    return Add()(Linear()(Clamp(0.0)(y), w), x)


STEPS: tuple[Callable[[Maker], Node], ...] = (
    conv, conv, conv, conv, linear, linear, linear, matmul, matmul, pair, pair, pair, residual,
    residual, excite, clamp, clamp, clamp, unary, unary, activation, activation, pool, pool,
    concat, concat, cut, pad, permute, reshape, flip, expand, row, norm, resize, quotient, dilate,
    gather, twins,
)  # fmt: skip


def items(graph: Graph, seed: int) -> list[tuple[torch.Tensor, ...]]:
    noise = torch.Generator().manual_seed(seed)
    shapes = [n.tensor.ints for n in graph.inputs]
    return [tuple(torch.randn(*s, generator=noise) for s in shapes) for _ in range(ITEMS)]
