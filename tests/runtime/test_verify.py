"""Verification: a right program is confirmed, a wrong one is caught at the kernel that is wrong."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.graph import Graph
from qcompiler.ops import Add, Gather, Input, const
from qcompiler.runtime import CompiledModel, InputError, engine
from qcompiler.runtime.samples import random_inputs
from qcompiler.runtime.verify import Comparison, compare
from qcompiler.types import DType, TensorType, symbol


@pytest.mark.parametrize("name", ["layers", "mixed", "counter", "embed", "batch"])
def test_right_programs_are_confirmed_in_every_bit(load, name: str) -> None:
    model = load(name)
    verdict = model.verify()
    assert verdict.holds
    assert verdict.kernels
    assert all(c.exact and c.differing == 0 for c in (*verdict.kernels, *verdict.outputs))
    assert len(verdict.outputs) == len(model.graph.results)


def spoiled(model: CompiledModel) -> CompiledModel:
    """The same graph over a program whose largest weight has some wrong codes."""
    digest = max(model.manifest.tensors, key=lambda d: model.manifest.tensors[d].size)
    weights = dict(model.bundle.tensors)
    graph = model.graph
    weights[digest] = weights[digest].copy()
    weights[digest][:256] ^= 0x10
    raw = engine.aligned(weights[digest].nbytes)
    raw[:] = weights[digest]
    return CompiledModel(replace(model.bundle, tensors={**weights, digest: raw}), graph)


def test_a_wrong_weight_is_caught_at_its_kernel(load) -> None:
    verdict = spoiled(load("layers")).verify()
    assert not verdict.holds
    assert [c.name for c in verdict.failures] == ["3", "3"]  # the kernel, and the output it is
    assert "differ, expected none" in str(verdict.failures[0])


def test_float_products_have_a_tolerance_and_what_follows_has_not() -> None:
    net = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Softmax(-1)).eval()
    torch.manual_seed(0)
    verdict = qc.compile(net, (torch.randn(4, 32),), recipe="float32").verify()
    assert verdict.holds
    assert {c.exact for c in verdict.kernels} == {True, False}
    assert not verdict.outputs[0].exact


def test_the_inputs_may_be_given_and_must_fit(load) -> None:
    model, x = load("layers"), torch.randn(1, 3, 6, 6)
    assert model.verify([x]).holds
    assert model.verify([x.numpy()]).holds
    with pytest.raises(InputError, match=r"input %input: expected float32\[1,3,6,6\]"):
        model.verify([x[0]])


def test_verifying_leaves_the_state_alone(load) -> None:
    model, x = load("counter"), torch.ones(8)
    model(x)
    assert model.verify().holds
    assert float(model(x)[0]) == 12.0


def value(tensor: torch.Tensor, other: torch.Tensor, exact: bool) -> Comparison:
    node = Input(TensorType(tuple(other.shape), DType.FLOAT32))(name="v")
    return compare(node, tensor, other, exact)


def test_comparisons() -> None:
    x = torch.tensor([1.0, -100.0, float("nan"), float("inf")])
    assert value(x, x, exact=True).holds
    finite = torch.tensor([1.0, -100.0])
    near, far = finite + torch.tensor([0.009, 0]), finite + torch.tensor([0.011, 0])
    assert not value(near, finite, exact=True).holds
    assert value(near, finite, exact=False).holds
    assert not value(far, finite, exact=False).holds
    assert not value(torch.tensor([1.0, float("nan")]), finite, exact=False).holds
    assert not value(finite.double(), finite, exact=False).holds
    assert not value(finite[None], finite, exact=False).holds
    codes = torch.tensor([0, 200], dtype=torch.uint8)
    assert value(codes + 1, codes, exact=False).holds
    assert not value(codes + 2, codes, exact=False).holds
    assert not value(codes + 1, codes, exact=True).holds


def test_random_inputs_fit_the_graph() -> None:
    batch = symbol("batch", 1, 4)
    ids = Input(TensorType((batch, 9), DType.INT64))(name="ids")
    mask = Input(TensorType((batch, 9), DType.INT64))(name="mask")
    flag = Input(TensorType((3,), DType.BOOL))(name="flag")
    x = Input(TensorType((batch, 5), DType.FLOAT32))(name="x")
    small, large = const(torch.zeros(3, 2)), const(torch.zeros(1000, 2))
    outputs = (Gather(0)(small, ids), Gather(0)(large, ids), Add()(mask, mask))
    graph = Graph((ids, mask, flag, x), outputs)
    for seed in range(20):
        a, b, c, d = random_inputs(graph, seed)
        assert [t.dtype for t in (a, b, c, d)] == [
            torch.int64,
            torch.int64,
            torch.bool,
            torch.float32,
        ]
        assert (tuple(a.shape), tuple(c.shape), tuple(d.shape)) == ((2, 9), (3,), (2, 5))
        assert int(a.min()) >= 0
        assert int(a.max()) <= 2
        assert set(b.unique().tolist()) <= {0, 1}
    assert torch.equal(random_inputs(graph, 3)[3], random_inputs(graph, 3)[3])
    assert not torch.equal(random_inputs(graph, 3)[3], random_inputs(graph, 4)[3])
