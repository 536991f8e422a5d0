"""Symbolic sizes: named, bounded, and right at every size."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from qcompiler.data import DataError, pieces
from qcompiler.frontend import trace
from qcompiler.frontend.dims import Dims
from qcompiler.frontend.errors import Refusal
from qcompiler.interpret import InputError, interpret
from qcompiler.ops import Conv2d
from qcompiler.parse import parse
from qcompiler.text import constants_of
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


def limits(dim, **options):
    """Bounds of the symbolic first axis of a traced net."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Softmax(1)).eval()
    graph = trace(net, torch.randn(4, 3, 2), dynamic_shapes=({0: dim},), **options)
    (size, *_) = graph.inputs[0].tensor.shape
    assert isinstance(size, Sym)
    return graph, net, (size.min, size.max)


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC, Dim.DYNAMIC(max=9)], ids=str)
def test_a_batch_without_a_lower_bound_may_be_1(dim):
    graph, net, (low, _) = limits(dim)
    assert low == 1
    for n in (1, 3):
        x = torch.randn(n, 3, 2)
        torch.testing.assert_close(interpret(graph, x), net(x))
    sizes = [len(x) for (x,) in pieces([torch.randn(1, 3, 2), torch.randn(2, 3, 2)], graph)]
    assert sizes == [1, 1, 1]
    text = str(graph)
    assert str(parse(text, constants_of(graph))) == text


def test_an_exported_program_of_a_batch_without_a_lower_bound():
    x = torch.randn(4, 3)
    program = torch.export.export(nn.Tanh().eval(), (x,), dynamic_shapes=({0: Dim.AUTO},))
    torch.testing.assert_close(interpret(trace(program), x[:1]), x[:1].tanh())


@pytest.mark.parametrize(
    ("dim", "want"),
    [
        (Dim("n", min=2), (2, None)), (Dim("n", min=3, max=9), (3, 9)), (Dim("n"), (1, None)),
        (Dim.AUTO(min=2), (2, None)), (Dim.AUTO(min=3), (3, None)),
    ],
    ids=str,
)  # fmt: skip
def test_a_lower_bound_that_was_given_holds(dim, want):
    graph, _, found = limits(dim)
    assert found == want
    with pytest.raises(InputError, match=f"in {want[0]}"):
        interpret(graph, torch.randn(want[0] - 1, 3, 2))


def test_a_piece_of_calibration_data_below_the_least_batch():
    graph, *_ = limits(Dim("images", min=2))
    want = "axis 0 has 1, expected a multiple of 2, the least images that.*put 2 samples in an item"
    with pytest.raises(DataError, match=want):
        list(pieces([torch.randn(1, 3, 2)], graph))


@pytest.mark.parametrize("name", ["inf", "nan", "int8", "bool", "lambda", "None"])
def test_names_of_symbols_that_a_text_reads_otherwise(agrees, name):
    class Ones(nn.Module):
        def forward(self, x):
            return x.mean(1) + torch.zeros(x.shape[0]), x.reshape(-1)

    graph = agrees(Ones(), torch.randn(4, 3), dynamic=({0: Dim(name, min=1)},))
    assert repr(graph.inputs[0].tensor) == f"float32[{name}_,3]"


@pytest.mark.parametrize("name", ["sum", "mean", "lt", "floor", "q", "inputs", "where"])
def test_names_of_symbols_that_a_text_has_elsewhere(agrees, name):
    class Ones(nn.Module):
        def forward(self, x):
            return x.sum(1) + torch.zeros(x.shape[0]), x.reshape(-1), x < 0, x.mean(1)

    graph = agrees(Ones(), torch.randn(4, 3), dynamic=({0: Dim(name, min=1)},))
    assert repr(graph.inputs[0].tensor) == f"float32[{name},3]"


def test_a_renamed_symbol_stays_apart_from_others(agrees):
    dims = {0: Dim("nan", min=1), 1: Dim("nan_", min=1), 2: Dim("größe", min=1)}
    graph = agrees(nn.ReLU(), torch.randn(4, 3, 2), dynamic=(dims,))
    assert repr(graph.inputs[0].tensor) == "float32[nan__,nan_,s0]"
