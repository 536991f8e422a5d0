"""The export signature: arguments, nested results, state, repeated and unused tensors."""

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler.frontend import TraceError, trace
from qcompiler.frontend.trees import TreeError, flatten, unflatten
from qcompiler.interpret import interpret
from qcompiler.types import DType


@dataclasses.dataclass
class Scores:
    logits: Tensor
    hidden: Any = None


@dataclasses.dataclass
class Batch:
    left: Tensor
    right: Tensor


Pair = collections.namedtuple("Pair", "first second")


class Everything(nn.Module):
    """Two states, constants of all kinds, and a result that nests them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.ones(3))
        self.register_buffer("last", torch.zeros(3))
        self.scale = torch.full((3,), 5.0)

    def forward(self, x: Tensor, n: int = 3, *, unused: Any = None) -> Any:
        self.total.add_(x)
        self.last.copy_(x)
        y = self.total * 2 + self.scale * n
        return {
            "y": y,
            "x": x,
            "n": n,
            "none": None,
            "list": [y, (1.5,)],
            "pair": Pair(x, y),
            "scores": Scores(y, {"again": y}),
        }


def test_everything_at_once():
    x = torch.arange(3.0)
    graph = trace(Everything().eval(), (x, 4), {"unused": torch.zeros(2, dtype=torch.int32)})
    assert [i.name for i in graph.inputs] == ["x", "unused"]
    assert graph.inputs[1].tensor.dtype is DType.INT32
    assert [(i.name, o.name) for i, o in graph.state] == [("total", "add"), ("last", "x")]
    assert [n.name for n in graph.initial] == ["total.initial", "last.initial"]

    module = Everything().eval()
    state: Any = [n.op.value for n in graph.initial]
    for step in range(3):
        x = torch.randn(3)
        outputs, state = interpret(graph, x, torch.zeros(2, dtype=torch.int32), state=state)
        got, want = unflatten(graph.trees[1], outputs), module(x, 4)
        assert list(got) == list(want), step
        assert got["n"] == 4 and got["none"] is None and got["list"][1] == (1.5,)
        assert isinstance(got["pair"], Pair) and isinstance(got["scores"], Scores)
        assert torch.equal(got["x"], x) and torch.equal(got["pair"].first, x)
        for y in (got["y"], got["list"][0], got["pair"].second, got["scores"].hidden["again"]):
            torch.testing.assert_close(y, want["y"])
        torch.testing.assert_close(state[0], module.total)
        assert torch.equal(state[1], x)


def test_arguments_are_flattened_as_traced():
    x = torch.arange(3.0)
    graph = trace(Everything().eval(), (x, 4), {"unused": torch.zeros(2)})
    other = torch.ones(2)
    assert flatten(graph.trees[0], (x, 4), {"unused": other}) == [x, other]
    with pytest.raises(TreeError, match="traced for the constant 4, got 5"):
        flatten(graph.trees[0], (x, 5), {"unused": other})
    with pytest.raises(TreeError, match=r"and unused by keyword.*, got 2 positional arguments$"):
        flatten(graph.trees[0], (x, 4))
    with pytest.raises(TreeError, match=r"expected 2 positional.*, got 3 positional"):
        flatten(graph.trees[0], (x, 4, x), {"unused": other})


def test_dataclass_arguments_and_results(agrees):
    class Swap(nn.Module):
        def forward(self, batch: Batch) -> Any:
            return Batch(batch.right, batch.left + 1), batch

    graph = agrees(Swap(), Batch(torch.ones(2), torch.zeros(3)))
    first, second = torch.rand(2), torch.rand(3)
    assert flatten(graph.trees[0], (Batch(first, second),)) == [first, second]
    swapped, same = unflatten(graph.trees[1], interpret(graph, first, second))
    assert torch.equal(swapped.left, second) and torch.equal(same.left, first)


def test_a_class_that_is_not_loaded_becomes_a_dict():
    text = '{"class":"no.such.module:Thing","fields":[["a",{"tensor":0}],["b",{"value":2}]]}'
    assert unflatten(text, ["t"]) == {"a": "t", "b": 2}


def test_keyword_arguments_only(agrees):
    class Named(nn.Module):
        def forward(self, *, ids: Tensor, mask: Tensor) -> Tensor:
            return ids.float() * mask

    ids, mask = torch.arange(4), torch.rand(4)
    graph = agrees(Named(), kwargs={"mask": mask, "ids": ids})
    given = {i.name for i in graph.inputs}
    assert given == {"ids", "mask"}
    again = trace(Named().eval(), {"ids": ids, "mask": mask})
    assert [i.name for i in again.inputs] == ["ids", "mask"]


def test_repeated_and_untouched_results(agrees):
    graph = agrees(lambda x, y: (x, x + y, x, y), torch.ones(2), torch.zeros(2))
    assert graph.outputs[0] is graph.inputs[0] is graph.outputs[2]
    assert graph.outputs[3] is graph.inputs[1]


def test_constant_result(agrees):
    agrees(lambda x: (torch.arange(4) * 2, x), torch.ones(2))


def test_a_tensor_alone_is_one_argument():
    assert len(trace(nn.ReLU().eval(), torch.ones(2)).inputs) == 1


def test_exported_program_and_its_module():
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.ReLU()).eval()
    x = torch.randn(4, 3)
    program = torch.export.export(module, (x,))
    for graph in (trace(program), trace(program.module(), x)):
        torch.testing.assert_close(interpret(graph, x), module(x))


def test_traced_graph_module():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    x = torch.randn(4, 3)
    graph = trace(fx.symbolic_trace(module), x)
    torch.testing.assert_close(interpret(graph, x), module(x))
    assert [n.name for n in graph.nodes() if n.inputs] == ["0", "1"]


def test_modes_set_inside_vanish(agrees):
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", enabled=False):
            return y + 1

    graph = agrees(function, torch.ones(2))
    assert [n.op.kind for n in graph.nodes() if n.inputs] == ["mul", "add"]


def test_updated_input_is_refused():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    with pytest.raises(TraceError, match="writes into its input 'x'"):
        trace(Writes().eval(), torch.ones(2))


def test_the_same_model_gives_the_same_text():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()).eval()
    x = torch.randn(1, 3, 8, 8)
    assert str(trace(module, x)) == str(trace(module, x))


def test_one_tensor_given_twice_is_two_inputs():
    class Difference(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y

    x = torch.randn(3)
    graph = trace(Difference().eval(), (x, x))
    torch.testing.assert_close(interpret(graph, x, torch.zeros(3)), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {(2, 3): x, "a": x + 1}, lambda x: {((1, "b"), None): x, 2: {1.5: x}},
        lambda x: collections.OrderedDict([((1, 2), x)]),
        lambda x: collections.defaultdict(list, {(1, 2): x, "a": x}), lambda x: {},
    ],
)  # fmt: skip
def test_keys_of_dicts(make):
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, make(x)

    x = torch.ones(2)
    graph = trace(Made().eval(), x)
    _, got = unflatten(graph.trees[1], interpret(graph, x))
    assert str(got) == str(dict(make(x)))
    assert list(got) == list(make(x))


def test_tuples_are_keys_of_arguments(agrees):
    graph = agrees(lambda d: d[1, 2] * 2, {(1, 2): torch.ones(2)})
    other = torch.zeros(2)
    assert flatten(graph.trees[0], ({(1, 2): other},)) == [other]


@pytest.mark.parametrize("key", [b"k", torch.float32, frozenset([1]), (1, b"k")], ids=str)
def test_keys_that_no_text_holds_are_refused(key):
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {key: x}

    with pytest.raises(TraceError, match=r"a dict with the key .*; keys may be") as caught:
        trace(Made().eval(), torch.ones(2))
    assert "\n" not in str(caught.value)
