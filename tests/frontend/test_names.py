"""Names and origins: what a reader of a dump sees."""

import re
from pathlib import Path

import torch
from torch import nn

from qcompiler.frontend import trace
from qcompiler.frontend.builder import FOLD_LIMIT
from qcompiler.ops import Const, Expand


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.conv1(x))
        return self.relu(y + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())

    def forward(self, pixels):
        return self.layer1(pixels).mean((2, 3)) * 2


def test_names_come_from_the_modules():
    graph = trace(Net().eval(), torch.randn(1, 4, 5, 5))
    assert [n.name for n in graph.nodes() if not n.name.startswith("layer1.1")] == [
        "pixels",
        "layer1.0.conv1.weight",
        "layer1.0.conv1.bias",
        "layer1.0.conv1",
        "layer1.0.relu",
        "layer1.0.add",
        "layer1.0.relu_1",
        "mean.avg_pool2d",
        "mean",
        "mul.const",
        "mul",
    ]


def test_origins_are_module_and_source_line():
    graph = trace(Net().eval(), torch.randn(1, 4, 5, 5))
    lines = Path(__file__).read_text().splitlines()
    calls = next(k for k, x in enumerate(lines, 1) if "self.relu(self.conv1(x))" in x)
    origins = {n.name: n.note.origin for n in graph.nodes() if n.inputs}
    assert origins["layer1.0.conv1"] == f"layer1.0.conv1 test_names.py:{calls}"
    assert origins["layer1.1.add"] == f"layer1.1 test_names.py:{calls + 1}"
    assert all(re.fullmatch(r"([\w.]+ )?test_names\.py:\d+", o) for o in origins.values())


def test_names_hold_only_what_a_dump_can():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a-b": nn.Linear(2, 2), "c d": nn.Linear(2, 2)})

        def forward(self, x):
            return self.parts["c d"](self.parts["a-b"](x))

    graph = trace(Odd().eval(), torch.ones(1, 2))
    assert [n.name for n in graph.nodes() if n.inputs] == ["parts.a_b", "parts.c_d"]


def test_an_op_never_takes_the_name_of_an_input():
    class Add(nn.Module):
        def forward(self, add, mul):
            return (add + mul) * mul

    graph = trace(Add().eval(), (torch.ones(2), torch.ones(2)))
    assert [n.name for n in graph.nodes()] == ["add", "mul", "add_1", "mul_1"]


def test_constants_fold_within_a_bound():
    small, wide = 100, FOLD_LIMIT
    side = int(wide**0.5) + 1

    def function(x):
        rows = torch.arange(side)
        return x + (rows[:, None] <= rows)[0, 0], x + torch.arange(small).float().sum()

    class Call(nn.Module):
        def forward(self, x):
            return function(x)

    graph = trace(Call().eval(), torch.ones(1))
    sizes = [n.tensor.size for n in graph.nodes() if isinstance(n.op, Const)]
    assert max(sizes) <= 2 * side, "a mask above the bound is computed, not stored"
    assert any(n.op.kind == "compare" for n in graph.nodes())
    (total,) = [n for n in graph.nodes() if isinstance(n.op, Const) and n.tensor.dtype.is_float]
    assert total.op.value.item() == small * (small - 1) / 2


def test_repetition_is_not_stored():
    graph = trace(nn.Sequential(Scale()).eval(), torch.ones(1000, 1000))
    (const,) = [n for n in graph.nodes() if isinstance(n.op, Const)]
    assert const.tensor.size == 1000
    assert sum(isinstance(n.op, Expand) for n in graph.nodes()) == 1


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1000))

    def forward(self, x):
        return torch.maximum(x, self.weight.expand(1000, 1000))
