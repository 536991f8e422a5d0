"""Scaling channels: where it is exact, that it is, and what it does for codes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import passes, targets
from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.interpret import interpret
from qcompiler.passes.channel_sites import Site, sites
from qcompiler.pipeline import Pass, Pipeline
from qcompiler.recipe import recipe_of
from qcompiler.report.quality import sqnr

WIDTH, HEADS = 16, 2


class WrittenOut(nn.Module):
    """RMSNorm as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """A pre-norm transformer block with a gated feed-forward net, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), WrittenOut()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Cnn(nn.Module):
    """Convolutions with what lies between them in real nets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.slope = nn.Conv2d(8, 12, 1), nn.PReLU(12)
        self.d, self.fc = nn.Conv2d(12, 6, 3, stride=2), nn.Linear(6 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.relu6(self.b(x))
        x = self.slope(self.c(x))
        return self.fc(torch.flatten(F.relu(self.d(x)), 1))


def graph_of(made: Callable[[], nn.Module], *shape: int) -> Graph:
    torch.manual_seed(0)
    module = made().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(torch.exp(torch.randn(p.shape[0])).reshape(-1, *[1] * (p.ndim - 1)))
    return Pipeline(passes.NORMALIZE)(qc.trace(module, (torch.randn(shape),)))


BLOCK, CNN = graph_of(Block, 1, 4, WIDTH), graph_of(Cnn, 1, 3, 16, 16)


def found(graph: Graph) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(readers by maker, reasons by maker)."""
    pairs: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for site in sites(graph):
        if isinstance(site, Site):
            pairs[site.maker.name] = sorted(r.layer.name for r in site.readers)
        else:
            reasons[site[0].name] = site[1].reason
    return pairs, reasons


def test_sites_are_norms_and_layers_whose_every_reader_can_take_the_factor() -> None:
    pairs, reasons = found(BLOCK)
    assert pairs == {
        "norm1": ["k", "q", "v"], "v": ["out"], "norm2.mul_1": ["gate", "up"], "up": ["down"],
    }  # fmt: skip
    assert "silu does not keep a factor" in reasons["gate"]
    assert "softmax" in reasons["q"] or "matmul" in reasons["q"]
    assert "does not keep a factor" in reasons["out"] or "is a result" in reasons["down"]


def test_between_convolutions_relu_and_pools_let_a_factor_through_and_relu6_does_not() -> None:
    pairs, reasons = found(CNN)
    assert pairs == {"a": ["b"], "c": ["d"], "d": ["fc"]}
    assert "clamp does not keep a factor" in reasons["b"]
    assert "is a result" in reasons["fc"]


def test_a_flattened_map_has_many_inputs_a_channel() -> None:
    (site,) = (s for s in sites(CNN) if isinstance(s, Site) and s.maker.name == "d")
    assert site.channels == 6
    assert site.readers[0].channels.tolist() == [k // 9 for k in range(54)]


class Shuffled(nn.Module):
    """A pixel shuffle, whose pools then run over several channels of the layer before."""

    def __init__(self, average: bool) -> None:
        super().__init__()
        self.a, self.b, self.average = nn.Conv2d(3, 16, 1), nn.Conv2d(4, 5, 1), average

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.a(x), 2)
        return self.b(F.avg_pool2d(x, 2) if self.average else F.max_pool2d(x, 2))


@pytest.mark.parametrize("average", [True, False])
def test_pools_over_several_channels_are_no_site(average: bool) -> None:
    pairs, reasons = found(graph_of(lambda: Shuffled(average), 1, 3, 8, 8))
    assert not pairs
    assert "does not keep a factor" in reasons["a"] or "mix channels" in reasons["a"]


def test_one_row_without_a_batch_is_a_site_too() -> None:
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)]
    pairs, _ = found(graph_of(lambda: nn.Sequential(*layers), 8))
    assert pairs == {"0": ["2"]}


METHODS: Mapping[str, Pass] = {"equalize": passes.equalize, "smooth": passes.smooth,
                               "awq": passes.awq}  # fmt: skip


@pytest.mark.parametrize("graph", [BLOCK, CNN], ids=["block", "cnn"])
@pytest.mark.parametrize("name", METHODS)
def test_the_float_outputs_stay(name: str, graph: Graph) -> None:
    step = METHODS[name]
    data = nets.samples(graph)
    ctx = Context(targets.get("x86-64-v3"), recipe_of("int8"), data)
    given = passes.calibrate.run(graph, ctx) if Level.CALIBRATED in step.needs else graph
    scaled = Pipeline((step,))(given, ctx)
    assert scaled.level is Level.FLOAT and str(scaled) != str(graph)
    assert all(n.note.stats is None for n in scaled.nodes())
    x = nets.samples(graph, 1, seed=2)[0]
    y, z = interpret(graph, *x), interpret(scaled, *x)
    assert float((y - z).abs().max()) < 1e-5 * float(y.abs().max())


def test_equalized_weights_are_of_one_size_on_either_side() -> None:
    graph = Pipeline((passes.equalize,))(CNN)
    layers = {n.name: [i.op.eval() for i in n.inputs[1:]] for n in graph.nodes()
              if n.op.kind == "conv2d"}  # fmt: skip
    weight, bias = layers["c"]
    made = torch.maximum(weight.flatten(1).abs().amax(1), bias.abs())
    assert torch.allclose(made, layers["d"][0].abs().amax((0, 2, 3)), rtol=2e-3)


def test_a_channel_that_is_all_bias_is_not_blown_up() -> None:
    """As batch norm leaves them: weights of 1e-9 and a bias that the next layer needs."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        first.weight[1] = 1e-9
        first.bias[1] = 0.5
    net = nn.Sequential(first, nn.ReLU(), second).eval()
    graph = Pipeline((*passes.NORMALIZE, passes.equalize))(
        qc.trace(net, (torch.randn(1, 3, 4, 4),))
    )
    bias = next(n for n in graph.nodes() if n.name == "0.bias").op.eval()
    assert float(bias.abs().max()) < 4


def outlier(width: int = 32) -> tuple[Graph, list[Tensor], list[Tensor]]:
    """A norm one of whose channels is 100 times the others, and a layer that makes little of it:
    what SmoothQuant was made for."""
    torch.manual_seed(1)
    norm, linear = nn.LayerNorm(width), nn.Linear(width, width)
    with torch.no_grad():
        norm.weight[3] = 100.0
        linear.weight[:, 3] /= 100.0
    net = nn.Sequential(norm, linear).eval()
    items = [torch.randn(4, width) for _ in range(12)]
    return qc.trace(net, (items[0],)), items[:8], items[8:]


def quality(graph: Graph, data: list[Tensor], held: list[Tensor], **changes: Any) -> float:
    recipe = replace(recipe_of("int8"), **changes)
    made = qc.quantize(graph, data, recipe=recipe)
    x = torch.cat(held)
    pairs = [(interpret(graph, p), interpret(made, p)) for p in x.split(4)]
    return sqnr(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))


def test_smoothing_recovers_what_an_outlier_channel_costs() -> None:
    graph, data, held = outlier()
    plain = quality(graph, data, held)
    assert quality(graph, data, held, scaling="smooth") > plain + 10


def test_awq_keeps_the_weights_that_large_channels_meet() -> None:
    """4-bit weights, some of them small where channels are large: steps are too wide for these."""
    torch.manual_seed(2)
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 64)
    with torch.no_grad():
        norm.weight[::8] *= 16
        linear.weight[:, ::8] /= 8
    graph = qc.trace(nn.Sequential(norm, linear).eval(), (torch.randn(4, 64),))
    data, held = ([torch.randn(4, 64) for _ in range(count)] for count in (32, 8))
    four = {"activations": "float", "weight_bits": 4, "group": 32}
    plain = quality(graph, data, held, **four)
    assert quality(graph, data, held, scaling="awq", **four) > plain + 3


@pytest.mark.parametrize("scaling", ["equalize", "smooth", "awq"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_programs_hold_what_was_chosen(scaling: str, rounding: str) -> None:
    """Every combination compiles to a program that gives the interpreter's integers."""
    torch.manual_seed(0)
    data = [torch.randn(1, 3, 16, 16) for _ in range(4)]
    recipe = replace(recipe_of("int8"), scaling=scaling, rounding=rounding)
    model = qc.compile(Cnn().eval(), (data[0],), data, target="x86-64-v3", recipe=recipe)
    assert model.report.integer_share == 1.0
    assert model.verify().holds
