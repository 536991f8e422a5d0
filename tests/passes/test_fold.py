"""fold: constants, batch norm, scales and offsets; the numbers stay."""

import pytest
import torch
from nets import rand, value

from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.observers import difference
from qcompiler.ops import Add, BatchNorm, Conv2d, Expand, Full, Linear, Mul, Permute, const
from qcompiler.passes.decompose import decompose
from qcompiler.passes.fold import fold
from qcompiler.pipeline import Pipeline
from qcompiler.rewrite import named
from qcompiler.types import DType


def folded(*outputs, x):
    before = named(Graph((x,), outputs))
    after = Pipeline((fold,))(before, Context())
    assert difference(before, after, (torch.randn(x.tensor.ints),)) is None
    return [n.op.kind for n in after.nodes() if n.op.kind not in ("input", "const")]


def norm(channels):
    mean, w, b = (const(torch.randn(channels)) for _ in range(3))
    return mean, const(torch.rand(channels) + 0.1), w, b


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_joins_convolution(bias):
    torch.manual_seed(0)
    x = value(1, 3, 5, 5)
    extra = [rand(4)] if bias else []
    y = BatchNorm(1e-3)(Conv2d()(x, const(torch.randn(4, 3, 2, 2)), *extra), *norm(4))
    assert folded(y, x=x) == ["conv2d"]


def test_batch_norm_joins_linear():
    x = value(6, 3)
    assert folded(BatchNorm(1e-5)(Linear()(x, rand(4, 3)), *norm(4)), x=x) == ["linear"]


def test_batch_norm_alone_is_multiply_add():
    x = value(2, 4, 3, 3)
    assert folded(BatchNorm(1e-5)(x, *norm(4)), x=x) == ["mul", "add"]


def test_tiny_variance_and_dead_channels():
    torch.manual_seed(0)
    x = value(1, 3, 5, 5)
    w = torch.randn(4, 3, 2, 2)
    w[1] = 0
    mean, _, gamma, beta = norm(4)
    variance = const(torch.tensor([1e-12, 0.0, 1.0, 100.0]))
    assert folded(BatchNorm(1e-3)(Conv2d()(x, const(w)), mean, variance, gamma, beta), x=x) == [
        "conv2d"
    ]


def test_second_user_keeps_the_convolution():
    x = value(1, 3, 5, 5)
    y = Conv2d()(x, const(torch.randn(4, 3, 2, 2)))
    assert folded(BatchNorm(1e-5)(y, *norm(4)), y, x=x) == ["conv2d", "mul", "add"]


def test_factor_along_the_width_stays():
    x = value(1, 3, 5, 5)
    y = Conv2d()(x, const(torch.randn(4, 3, 2, 2)))  # [1, 4, 4, 4]
    assert folded(Mul()(y, rand(4)), x=x) == ["conv2d", "mul"]
    assert folded(Mul()(y, rand(4, 1, 1)), x=x) == ["conv2d"]
    assert folded(Mul()(y, const(3.0)), x=x) == ["conv2d"]


def test_offset_of_another_rank_stays():
    x = value(2, 3)
    y = Linear()(x, rand(4, 3), rand(4))
    assert folded(Add()(y, rand(2, 1)), x=x) == ["linear", "add"]
    assert folded(Add()(y, rand(4)), x=x) == ["linear"]
    assert folded(Add()(y, rand(1, 4)), x=x) == ["linear"]
    assert folded(Add()(y, rand(1, 1, 1)), x=x) == ["linear", "add"]
    assert folded(Mul()(y, rand(1, 1, 4)), x=x) == ["linear", "mul"]


def test_constants_are_computed():
    x = value(2, 3)
    w = Permute((1, 0))(Mul()(rand(3, 4), const(2.0)))
    assert folded(Linear()(x, w), x=x) == ["linear"]


def test_large_expansions_stay_ops():
    x = value(2000, 2000)
    assert folded(Add()(x, Expand((2000, 2000))(rand(1, 2000))), x=x) == ["expand", "add"]
    assert folded(Add()(x, Full((2000, 2000), 1.0, DType.FLOAT32)()), x=x) == ["full", "add"]


def test_decompose_attention():
    from qcompiler.ops import Attention

    torch.manual_seed(0)
    x = value(2, 2, 5, 8)
    masks = {
        "none": [],
        "float": [const(torch.randn(5, 5))],
        "bool": [const(torch.rand(5, 5) > 0.3)],
        "causal": [],
    }
    for name, mask in masks.items():
        graph = named(Graph((x,), (Attention(0.3, causal=name == "causal")(x, x, x, *mask),)))
        after = Pipeline((decompose,))(graph, Context())
        assert not any(isinstance(n.op, Attention) for n in after.nodes())
        assert difference(graph, after, (torch.randn(2, 2, 5, 8),)) is None, name
