"""Nets that int8 is not for: channels that differ a hundredfold, and layers that integers slow."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import passes
from qcompiler.api import Stages, context, whole_times
from qcompiler.graph import Graph, Node
from qcompiler.interpret import run
from qcompiler.ops import IntConv2d, IntLinear, IntMatmul, Quantize
from qcompiler.passes.assign_precision import search_of
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import RangeMethod, Recipe, recipe_of
from qcompiler.targets import Target, get
from qcompiler.whole import program_name
from qcompiler.zoo import load

V3 = get("x86-64-v3")
SPREAD = 100.0


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * nn.functional.hardsigmoid(self.expand(y))


class Block(nn.Module):
    """An inverted bottleneck of MobileNetV3 (Howard et al. 2019)."""

    def __init__(self, inner: int, wide: int, outer: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inner, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide)
        self.excite = SqueezeExcite(wide)
        self.project = nn.Conv2d(wide, outer, 1)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.hardswish(self.expand(x))
        y = self.project(nn.functional.hardswish(self.excite(self.depthwise(y))))
        return x + y if self.residual else y


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [(16, 48, 16, 1), (16, 64, 24, 2), (24, 96, 24, 1), (24, 96, 40, 2)]
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.head, self.last = nn.Conv2d(40, 128, 1), nn.Linear(128, 50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(nn.functional.hardswish(self.stem(x)))
        return self.last(nn.functional.hardswish(self.head(y)).mean((2, 3)))


def heavy(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Student's t of three degrees of freedom, of variance 1."""
    squares = torch.randn((3, *shape), generator=generator).square().mean(0)
    return torch.randn(shape, generator=generator) / (3 * squares).sqrt()


@torch.no_grad()
def mobile() -> tuple[Graph, list[torch.Tensor]]:
    """Heavy-tailed weights; channels inside the blocks differ by up to SPREAD, which the layers
    that read them undo."""
    generator = torch.Generator().manual_seed(0)
    net = Mobile().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan = layer.weight[0].numel()
            layer.weight.copy_(heavy(generator, *layer.weight.shape) * math.sqrt(2 / fan))
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
    for block in net.blocks:
        for made, readers in (
            (block.expand, [block.depthwise]),
            (block.depthwise, [block.project, block.excite.reduce]),
        ):
            channels = made.out_channels
            scale = SPREAD ** (torch.rand(channels, generator=generator) - 0.5)
            made.weight.mul_(scale[:, None, None, None])
            made.bias.mul_(scale)
            for reader in readers:
                along = (-1, 1, 1, 1) if reader.groups > 1 else (1, -1, 1, 1)
                reader.weight.mul_((1 / scale).reshape(along))
    data = list(torch.randn(16, 3, 32, 32, generator=generator).split(1))
    return qc.trace(net, (data[0],)), data


def noise(graph: Graph, other: Graph, data: list[torch.Tensor]) -> float:
    """Decibels of signal over noise, of all samples together."""
    signal = error = 0.0
    for x in data:
        (y,), (z,) = run(graph, (x,)), run(other, (x,))
        signal += float(y.double().square().sum())
        error += float((y.double() - z.double()).square().sum())
    return 10 * math.log10(signal / error)


def in_float(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes() if n.note.reason and n.op.kind in ("conv2d", "linear")]


def best_of_weights(graph: Graph, data: list[torch.Tensor]) -> float:
    """Decibels where 8-bit weights are all that is lost, by the sample that is simulated."""
    ctx = context(graph, data, V3, "auto")
    before = passes.QUANTIZE[: passes.QUANTIZE.index(passes.by_name("assign-precision"))]
    search = search_of(Pipeline(before)(graph, ctx), ctx)
    safe = [unit.safe for unit in search.units]
    return -10 * math.log10(search.simulation.noise(search.units, safe, activations=False))


def test_auto_recovers_what_codes_of_activations_lose() -> None:
    graph, data = mobile()
    seen, held_out = data[:12], data[12:]
    best = best_of_weights(graph, seen)
    plain = Recipe("plain", recipe_of("int8").activations, RangeMethod.MINMAX)
    naive = noise(graph, qc.quantize(graph, seen, V3, plain), seen[:1])
    made = qc.quantize(graph, seen, V3, "auto")
    recovered = noise(graph, made, seen[:1])
    assert naive < best - 10
    assert recovered > best - 3
    layers = [n for n in graph.nodes() if n.op.kind in ("conv2d", "linear")]
    assert 0 < len(in_float(made)) < len(layers)  # not by giving up
    assert all("accuracy" in n.note.reason or "faster" in n.note.reason for n in in_float(made))
    assert noise(graph, made, held_out) > naive + 10


class Islands(nn.Module):
    """Tiny layers of odd sizes, and after each an op that has no integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.pointwise = nn.Conv2d(5, 7, 1)
        sizes = (7, 13, 7, 11, 3)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in sizes[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).softmax(1)
        y = self.depthwise(y).sin()
        y = self.pointwise(y).softmax(1).flatten(2).transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = norm(layer(y).sin())
        return y


def islands() -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(0)
    data = [torch.randn(1, 3, 17, 17) for _ in range(4)]
    return qc.trace(Islands().eval(), (data[0],)), data


class Slower(dict):
    """Times of all products there are: integers take a tenth longer, and conversions a little."""

    def get(self, product: str, default: object = None) -> dict[str, float]:
        if " by " not in product:
            return {"0x0": 0.1}
        return {"2x2": 1.0 if " by fma " in product else 1.1}

    def __bool__(self) -> bool:
        return True


@pytest.mark.parametrize("recipe", ["int8", "int8-fast", "auto"])
def test_layers_that_are_slower_in_integers_stay_float_and_say_why(recipe: str) -> None:
    graph, data = islands()
    made = qc.quantize(graph, data, replace(V3, times=Slower()), recipe)
    assert len(in_float(made)) == 7
    assert not any(isinstance(n.op, Quantize | IntConv2d | IntLinear) for n in made.nodes())
    for node in in_float(made):
        assert "(measured: 1 us in float32, 1.1 in integers)" in node.note.reason


def measured(recipe: str, integer: float, plain: float) -> Target:
    """A machine where the islands were measured as a whole."""
    graph, _ = islands()
    normal = Pipeline(passes.NORMALIZE)(graph)
    names = [program_name(normal, recipe_of(r)) for r in ("float32", recipe)]
    rows = zip(names, (plain, integer), strict=True)
    return V3.with_times({name: {"0x0": us} for name, us in rows})


@pytest.mark.parametrize("recipe", ["int8", "auto"])
def test_a_program_that_is_slower_as_a_whole_is_float_as_a_whole(recipe: str) -> None:
    graph, data = islands()
    made = qc.quantize(graph, data, measured(recipe, 30.0, 20.0), recipe)
    assert not any(isinstance(n.op, Quantize | IntConv2d | IntLinear) for n in made.nodes())
    (reason,) = {n.note.reason for n in in_float(made)}
    assert f"measured as a whole: 20 us in float32, 30 by recipe {recipe}" in reason
    kept = qc.quantize(graph, data, measured(recipe, 20.0, 30.0), recipe)
    assert any(isinstance(n.op, IntConv2d | IntLinear) for n in kept.nodes())


def test_the_name_of_a_program_knows_shapes_and_recipes_and_no_weights() -> None:
    def name(net: nn.Module, recipe: Recipe, size: int = 17) -> str:
        graph = qc.trace(net.eval(), (torch.zeros(1, 3, size, size),))
        return program_name(Pipeline(passes.NORMALIZE)(graph), recipe)

    int8, auto = recipe_of("int8"), recipe_of("auto")
    first, other = Islands(), Islands()
    assert name(first, int8) == name(other, int8)
    names = [
        name(first, int8), name(first, int8, 19), name(first, auto), name(first, auto.dropping(1)),
        name(first, recipe_of("float32")),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    # The same program, with other constants.
    assert name(first, replace(int8, rounding="gptq", scaling="smooth")) == name(first, int8)


def test_the_names_that_times_are_shipped_by_are_todays() -> None:
    graph = Pipeline(passes.NORMALIZE)(qc.trace(*load("mobilenet_v2")))
    for recipe in ("float32", "int8"):
        assert V3.least(program_name(graph, recipe_of(recipe))) is not None


def test_time_buys_accuracy_and_too_little_is_refused() -> None:
    graph, data = mobile()
    seen = data[:4]
    spent, lost = [], []
    for point in qc.front(graph, seen, V3, drops=(-20.0, 0.0)):
        spent.append(point.ms)
        made = qc.quantize(graph, seen, V3, "auto", max_time=point.ms)
        lost.append(noise(graph, made, seen[:1]))
    assert len(spent) == 2 and spent[0] < spent[1] and lost[0] < lost[1]
    with pytest.raises(ValueError, match=r"max_time: expected at least .* ms, .* got 1e-06"):
        qc.quantize(graph, seen, V3, "auto", max_time=1e-6)
    with pytest.raises(ValueError, match="recipe 'int8' has nothing to choose"):
        qc.quantize(graph, seen, V3, "int8", max_time=1.0)
    with pytest.raises(ValueError, match="expected max_time alone, got a loss"):
        qc.quantize(graph, seen, V3, "auto", max_time=1.0, max_drop=1.0)


class Products(nn.Module):
    """No weights, and outputs in which no noise of weights is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.transpose(-1, -2)


@pytest.mark.parametrize("net", [Products(), nn.Conv2d(8, 8, 1, bias=False)])
def test_weights_that_codes_hold_exactly_are_no_measure(net: nn.Module) -> None:
    """Of a sample far below the range of the others much is lost, and nothing of it by weights."""
    torch.manual_seed(0)
    for weight in net.parameters():
        nn.init.ones_(weight)
    data = [torch.randn(1, 8, 8, 8) * size for size in (0.01, 1.0, 1.0)]
    graph = qc.trace(net.eval(), (data[0],))
    made = qc.quantize(graph, data, V3, "auto")
    assert noise(graph, made, data[:1]) < 30
    assert any(isinstance(n.op, IntConv2d | IntMatmul) for n in made.nodes())
    assert torch.equal(qc.build(made)(data[0]), qc.interpret(made, data[0]))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x
        return self.layer(self.seen)


def test_what_is_measured_of_a_whole_program() -> None:
    """Nothing of one with state; else what recipe int8 makes, unless that is float."""
    x = torch.randn(1, 8)
    for net, slow, names in (
        (nn.Linear(8, 8), False, ["auto", "float32", "int8"]),
        (nn.Linear(8, 8), True, ["auto", "float32"]),
        (Counter(), False, []),
    ):
        graph = qc.trace(net.eval(), (x,))
        made = qc.quantize(graph, [x], V3, "auto")
        normal = Pipeline(passes.NORMALIZE)(graph)
        known = {program_name(normal, recipe_of(r)): {"0x0": us}
                 for r, us in (("float32", 1.0), ("int8", 2.0))}  # fmt: skip
        target = V3.with_times(known) if slow else V3
        times = whole_times(Stages(graph, made, target, qc.build(made, V3)), [x], "auto")
        assert sorted(name.rpartition(" of ")[2] for name in times) == names


def test_recipes_that_cannot_tell_accuracy_take_no_time() -> None:
    with pytest.raises(ValueError, match="recipe 'int8-dynamic' sees no data"):
        recipe_of("int8-dynamic").lasting(1.0)
    with pytest.raises(ValueError, match="max_time: expected milliseconds above 0, got inf"):
        recipe_of("auto").lasting(math.inf)
    with pytest.raises(ValueError, match="max_time: expected no max_drop beside it"):
        replace(recipe_of("auto"), max_time=1.0)
