"""w8a16, w4a16 and w4a8: compiled programs against the interpreter, their size, their accuracy.

Where only weights are codes a layer is a float product, held to 1e-4 of its largest result; where
rows are codes too every kernel gives the interpreter's bits. `verify` holds both.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.graph import Graph
from qcompiler.ops import GroupedIntLinear, WeightOnlyLinear
from qcompiler.recipe import Activations, Recipe, recipe_of
from qcompiler.text import constants_of
from qcompiler.zoo import load

NAMES = ("w8a16", "w4a16", "w4a8")
# (K, N): whole groups, a short last group, odd sizes, one channel, less than a group.
SHAPES = ((128, 64), (96, 40), (100, 33), (77, 9), (33, 1), (7, 24), (257, 130))
# dB that a layer of normal weights and rows keeps. Steps of absmax / 127 over 256 values leave 44
# dB; scales of least squared error leave 4-bit codes in groups of 32 about 20 dB, and rounding
# those scales to an integer times a channel's costs w4a8 a little more (VS-Quant 2021, table 3).
LEAST_SQNR = {"w8a16": 38.0, "w4a16": 18.5, "w4a8": 18.0}


class Many(nn.Module):
    """Linear layers of all shapes, each on a piece of the input."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k, n, bias=bias) for k, n in SHAPES)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x[..., : layer.in_features]) for layer in self.layers]


def many(bias: bool) -> nn.Module:
    torch.manual_seed(1)
    net = Many(bias).eval()
    with torch.no_grad():
        net.layers[0].weight[3] = 0  # a dead channel
        net.layers[1].weight[:, 32:64] = 0  # dead groups
    return net


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 257, generator=torch.Generator().manual_seed(count))


def quantized(net: nn.Module, x: torch.Tensor, recipe: str | Recipe, **options: object) -> Graph:
    return qc.quantize(qc.trace(net, (x,), **options), None, "x86-64-v3", recipe)


def kinds(graph: Graph) -> list[type]:
    found = (type(n.op) for n in graph.nodes())
    return [k for k in found if k in (WeightOnlyLinear, GroupedIntLinear)]


@pytest.mark.parametrize("count", [1, 3, 17, 130])
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_is_right(name: str, count: int) -> None:
    x = rows(count)
    graph = quantized(many(count != 3), x, name)
    kind = GroupedIntLinear if name == "w4a8" else WeightOnlyLinear
    assert kinds(graph) == [kind] * len(SHAPES)
    verdict = qc.build(graph, "x86-64-v3").verify([x])
    assert verdict.holds and len(verdict.kernels) >= len(SHAPES), verdict.failures


@pytest.mark.parametrize("name", NAMES)
def test_a_symbolic_batch(name: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = quantized(many(True), rows(4), name, dynamic_shapes=({0: batch},))
    model = qc.build(graph, "x86-64-v3")
    for count in (1, 2, 19, 64):
        assert model.verify([rows(count)]).holds


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("activations", [Activations.FLOAT, Activations.DYNAMIC])
def test_groups_of_other_sizes(activations: Activations, group: int) -> None:
    recipe = Recipe("mine", activations, weight_bits=4, group=group)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    for count in (1, 6):
        x = rows(count)
        assert qc.build(quantized(many(True), x, recipe), "x86-64-v3").verify([x]).holds


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_what_the_codes_allow(name: str) -> None:
    torch.manual_seed(2)
    net = nn.Linear(256, 256, bias=False).eval()
    nn.init.normal_(net.weight)
    x = torch.randn(64, 256)
    exact = net(x).detach().double()
    ours = qc.compile(net, (x,), target="x86-64-v3", recipe=name)(x).double()
    sqnr = float(10 * torch.log10(exact.square().sum() / (exact - ours).square().sum()))
    assert sqnr > LEAST_SQNR[name]


@pytest.mark.parametrize(("name", "most"), [("w8a16", 1.02), ("w4a16", 0.64), ("w4a8", 0.56)])
def test_weights_lie_packed_in_the_artifact(name: str, most: float, tmp_path) -> None:
    """Bytes a weight: 1, 1/2 and a float32 scale a group of 32, 1/2 and a byte a group."""
    net = nn.Linear(2048, 1024, bias=False).eval()
    x = torch.randn(1, 2048)
    sizes = []
    for path, made in ((tmp_path / "m.qcm", net), (tmp_path / "n.qcm", nn.Linear(32, 8).eval())):
        inputs = (x[:, : made.in_features],)
        qc.compile(made, inputs, target="x86-64-v3", recipe=name).save(path)
        sizes.append(path.stat().st_size)
    # What every artifact holds beside weights goes out; kernels differ by some KiB.
    assert sizes[0] - sizes[1] < most * 2048 * 1024 + (32 << 10)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_runs_again(name: str) -> None:
    x = rows(3)
    graph = quantized(many(True), x, name)
    again = qc.parse(str(graph), constants_of(graph))
    assert str(again) == str(graph)
    for a, b in zip(qc.interpret(again, x), qc.interpret(graph, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("target", ["x86-64-avxvnni", "x86-64-v4", "armv8.2-dotprod", "cuda-sm80"])
@pytest.mark.parametrize("name", NAMES)
def test_other_machines_build_the_graph(name: str, target: str) -> None:
    assert qc.build(quantized(many(True), rows(1), name), target).manifest.target == target


@pytest.mark.parametrize("name", NAMES)
def test_a_language_model(name: str) -> None:
    net, inputs = load("llama_tiny")
    model = qc.compile(net, inputs, target="x86-64-v3", recipe=name)
    verdict = model.verify(list(inputs))
    assert verdict.holds and len(verdict.kernels) > 20, verdict.failures


def test_names_are_done() -> None:
    assert recipe_of("w4a16").group == recipe_of("w4a8").group == 32
    assert recipe_of("w8a16").weight_bits == 8
