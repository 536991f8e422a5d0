"""Symbolic sizes: named, bounded, and right at every size."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from qcompiler.frontend import trace
from qcompiler.frontend.dims import Dims
from qcompiler.frontend.errors import Refusal
from qcompiler.interpret import InputError, interpret
from qcompiler.ops import Conv2d
from qcompiler.types import Sym, symbol
from qcompiler.zoo import hf

BATCH = Dim("batch", min=1, max=16)
LENGTH = Dim("length", min=8, max=64)


class Speech(nn.Module):
    """A strided Conv1d, so that sizes are expressions; every kind of shape arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x).transpose(1, 2)
        ones = torch.ones(y.shape[0], y.shape[1])
        place = torch.arange(y.shape[1]) + 1
        return (
            self.head(y.mean(1)),
            y.flatten(1),
            torch.cat([y, y * 2], 1).softmax(1),
            y * ones[..., None] / place[:, None],
            y[:, 1:-1].sum(2),
            y.reshape(-1, 2, 2).sum(0),
            torch.zeros_like(y) + y.amax(1, keepdim=True),
        )


def test_batch_and_length(agrees):
    sizes = [(1, 8), (3, 9), (16, 64), (2, 33)]
    graph = agrees(
        Speech(), torch.randn(2, 3, 16), dynamic={"x": {0: BATCH, 2: LENGTH}},
        others=[(torch.randn(n, 3, length),) for n, length in sizes],
    )  # fmt: skip
    assert "where batch in 1..16, length in 8..64" in str(graph).splitlines()[0]
    assert repr(graph.inputs[0].tensor) == "float32[batch,3,length]"
    for shape in ((17, 3, 16), (2, 3, 7)):
        with pytest.raises(InputError, match="expected"):
            interpret(graph, torch.randn(shape))


def test_symbolic_batch_of_a_convolutional_net(agrees):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5), nn.Softmax(1),
    )  # fmt: skip
    graph = agrees(
        module, torch.randn(2, 3, 8, 8), dynamic=({0: BATCH},),
        others=[(torch.randn(n, 3, 8, 8),) for n in (1, 5)],
    )  # fmt: skip
    (conv,) = [n for n in graph.nodes() if isinstance(n.op, Conv2d)]
    assert repr(conv.tensor) == "float32[batch,4,4,4]"


@pytest.mark.parametrize("make", [hf.bert_base, hf.llama_tiny], ids=["bert", "llama"])
def test_batch_and_length_of_a_transformer(agrees, make):
    module, inputs = make(reduced=True)
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=2, max=32)
    axes = {0: batch, 1: length}

    def ids(n, size):
        # Two sequences, so that the export does not take the batch for a constant 1.
        x = torch.randint(100, (n, size), generator=torch.Generator().manual_seed(size))
        return (x, (x > 10).long().index_fill(1, torch.tensor([0]), 1))[: len(inputs)]

    agrees(module, *ids(2, 8), dynamic=(axes,) * len(inputs), others=[ids(1, 5), ids(3, 11)])


def test_names_of_symbols():
    module = nn.ReLU().eval()
    x = torch.randn(2, 3, 4)
    graph = trace(module, x, dynamic_shapes={"input": {0: Dim.AUTO, 1: BATCH, 2: Dim.AUTO}})
    assert repr(graph.inputs[0].tensor) == "float32[s0,batch,s1]"
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: BATCH}})
    graph = trace(program)
    (size, *_) = graph.inputs[0].tensor.shape
    assert isinstance(size, Sym) and (repr(size), size.min, size.max) == ("s0", 1, 16)


def test_axes_of_nested_arguments():
    class Sum(nn.Module):
        def forward(self, parts, *, weight):
            return parts["a"] * weight + parts["b"]

    axes = {0: BATCH}
    graph = trace(
        Sum().eval(), ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)},),
        {"weight": torch.ones(2, 1)},
        dynamic_shapes={"parts": {"a": axes, "b": axes}, "weight": axes},
    )  # fmt: skip
    assert [repr(i.tensor) for i in graph.inputs] == [
        "float32[batch,3]", "float32[batch,3]", "float32[batch,1]",
    ]  # fmt: skip


def test_unbacked_sizes_are_refused():
    from sympy import Symbol

    known = Symbol("s1", integer=True, positive=True)
    dims = Dims({known: symbol("n", 2, 9)})
    assert repr(dims.of((known + 1) * 2)) == "2*n+2"
    assert dims.of(known - known) == 0
    with pytest.raises(Refusal, match="depends on the data"):
        dims.of(Symbol("u0", integer=True))
