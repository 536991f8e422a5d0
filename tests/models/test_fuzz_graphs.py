"""Random small graphs: passes keep types and numbers, programs give the interpreter's bits."""

import math
from dataclasses import replace

import pytest
import torch
from random_graphs import Maker, items

import qcompiler as qc
from qcompiler import passes, targets
from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.interpret import run
from qcompiler.observers import Checker, follows_float_anchor
from qcompiler.ops import Conv2d
from qcompiler.parse import parse
from qcompiler.recipe import recipe_of
from qcompiler.rewrite import named
from qcompiler.runtime.verify import verify
from qcompiler.text import constants_of

RECIPES = ("int8", "int8-dynamic", "float32")
SEEDS = (0, 1, 2, 3)
LEAST_SQNR = {"int8": 10.0, "int8-dynamic": 10.0, "float32": 100.0}
"""dB. Other seeds can fall below at int8 where an output reads a small part of a tensor's range."""


def quantized(graph: Graph, recipe: str, data: list[tuple[torch.Tensor, ...]]) -> Graph:
    """Through all passes, each one verified, and checked on numbers where it is exact."""
    ctx = Context(targets.get("native"), recipe_of(recipe), data, sample=data[0])
    return passes.quantize(graph, ctx, [Checker()])


def round_trips(graph: Graph) -> bool:
    return str(parse(str(graph), constants_of(graph))) == str(graph)


def sqnr(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """dB, of the values less their mean: an offset is no signal; but what is nearly constant is
    allowed the noise of a tenth of its power."""
    wanted, got = wanted.double(), got.double()
    noise = float((wanted - got).square().sum())
    signal = (wanted - wanted.mean()).square().sum()
    signal = float(torch.maximum(signal, 0.1 * wanted.square().sum()))
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def joined(graphs: list[Graph]) -> Graph:
    """The graphs side by side as one: one library, compiled once."""
    parts = [g.map(lambda n, k=k: replace(n, name=f"g{k}.{n.name}")) for k, g in enumerate(graphs)]
    inputs = tuple(n for p in parts for n in p.inputs)
    outputs = tuple(n for p in parts for n in p.outputs)
    return named(Graph(inputs, outputs, level=Level.INTEGER))


def programs(seeds: tuple[int, ...], recipe: str) -> tuple[Graph, list[torch.Tensor]]:
    """The quantized graphs of some seeds side by side, and inputs; what passes promise holds."""
    graphs: list[Graph] = []
    inputs: list[torch.Tensor] = []
    for seed in seeds:
        graph = Maker(seed).graph()
        data = items(graph, seed)
        quant = quantized(graph, recipe, data)
        assert round_trips(quant), seed
        wanted, got = run(graph, data[0]), run(quant, data[0])
        for node, a, b in zip(graph.outputs, wanted, got, strict=True):
            assert sqnr(a, b) > LEAST_SQNR[recipe], (seed, node, sqnr(a, b))
        graphs.append(quant)
        inputs += data[0]
    return joined(graphs), inputs


@pytest.mark.parametrize("recipe", RECIPES)
def test_random_graphs(recipe):
    graph, inputs = programs(SEEDS, recipe)
    fused = passes.build(graph, Context(targets.get("native"), sample=tuple(inputs)), [Checker()])
    assert round_trips(fused)
    model = qc.build(graph, "native")
    verdict = verify(model, inputs)
    assert verdict.kernels and verdict.holds, "\n".join(map(str, verdict.failures))
    for node, ours, oracle in zip(graph.outputs, model(*inputs), run(graph, inputs), strict=True):
        assert follows_float_anchor(node) or torch.equal(ours, oracle), node


def test_one_channel_in_channels_last():
    """oneDNN reads [N,1,H,W] wrongly when its strides are those of channels last (seed 5035)."""
    noise = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 5, 3, 1, generator=noise), torch.randn(8, 1, 2, 3, generator=noise)
    op = Conv2d((1, 2), ((2, 1), (0, 0)))
    last = replace(op, channels_last=True).eval(x, w).permute(0, 3, 1, 2)
    wanted = op.eval(x.double().permute(0, 3, 1, 2), w.double()).float()
    assert torch.allclose(last, wanted, atol=1e-5)
