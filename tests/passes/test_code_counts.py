"""How fast sums are bought: fewer codes, larger weight scales, within the recipe's loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import arith, passes
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.ops import Concat, Const, DynamicQuantize, IntConv2d, IntLinear
from qcompiler.passes.code_counts import layers_of
from qcompiler.passes.intervals import intervals
from qcompiler.passes.share_scales import shared_scales
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import Activations, Recipe, recipe_of
from qcompiler.targets import get
from qcompiler.targets.kernels.avx import FMA, MADDWD, MADDWD_WIDE
from qcompiler.targets.kernels.weights import chosen, code_range

V3 = get("x86-64-v3")
WIDE = replace(V3, name="wide", isa=(MADDWD, MADDWD_WIDE, FMA))  # adds in 32 bits
DYNAMIC, STATIC = recipe_of("int8-dynamic"), recipe_of("int8")


class Heads(nn.Module):
    """Three linear layers that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(256, n, bias=False) for n in (64, 32, 48))
        for head in self.heads:
            nn.init.normal_(head.weight)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head(x) for head in self.heads]


def heads() -> tuple[Graph, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    return qc.trace(Heads().eval(), (x,)), x


def quantized(graph: Graph, x: torch.Tensor, recipe: Recipe, target: object = V3) -> Graph:
    return qc.quantize(graph, [x], target, recipe)


def largest(graph: Graph) -> set[int]:
    return {n.op.qmax for n in graph.nodes() if isinstance(n.op, DynamicQuantize)}


def read(graph: Graph) -> list[tuple[int, int]]:
    """Bounds of the codes that each layer reads."""
    layers = [n for n in graph.nodes() if isinstance(n.op, IntLinear | IntConv2d)]
    return [code_range(n.inputs[0]) for n in layers]


def products(graph: Graph) -> list[int]:
    """Of each layer, how many products the instruction that is exact for it adds in 16 bits."""
    layers = [n for n in graph.nodes() if isinstance(n.op, IntLinear | IntConv2d)]
    dots = [chosen(V3.isa, weight(n), code_range(n.inputs[0])) for n in layers]
    return [d[0].sums.products if d and d[0].sums else 1 for d in dots]


def weight(node: Node) -> torch.Tensor:
    assert isinstance(node.inputs[1].op, Const)
    return node.inputs[1].op.value


def sqnr(graph: Graph, oracle: Graph, x: torch.Tensor) -> float:
    ours, exact = (torch.cat(qc.interpret(g, x), -1).double() for g in (graph, oracle))
    return float(10 * torch.log10(exact.square().sum() / (ours - exact).square().sum()))


@pytest.mark.parametrize(("loss", "fast"), [(0.5, 1), (1.5, 2), (3.0, 4), (4.5, 8)])
def test_the_loss_is_kept_and_buys_products(loss: float, fast: int) -> None:
    graph, x = heads()
    exact = quantized(graph, x, DYNAMIC, WIDE)
    assert largest(exact) == {127}
    made = quantized(graph, x, replace(DYNAMIC, sums_loss=loss))
    assert len(largest(made)) == 1 and products(made) == [fast] * 3
    lost = sqnr(exact, graph, x) - sqnr(made, graph, x)
    assert lost <= loss + 0.3  # rows are finite samples of what the rule assumes


def test_fewer_codes_are_better_than_larger_scales_alone() -> None:
    """With 8 products: -80..80 loses less than -127..127 (a dB in theory, passes/code_counts)."""
    graph, x = heads()
    made = quantized(graph, x, replace(DYNAMIC, sums_loss=4.5))
    assert largest(made) < {88} | set(range(64, 97))
    layer = nn.Linear(256, 64)
    w = layer.weight.detach()
    scales = [arith.least_scale(w, 0, 2 * q, arith.SumRule(8, runs=4, stride=4)) for q in (127, 80)]
    assert torch.allclose(scales[0] / scales[1], torch.tensor(127 / 80, dtype=torch.float64))


def test_instructions_that_add_in_32_bits_cost_nothing() -> None:
    graph, x = heads()
    made = quantized(graph, x, DYNAMIC, WIDE)
    for node in made.nodes():
        if isinstance(node.op, IntLinear):
            assert int(weight(node).abs().amax(1).min()) == 127


@pytest.mark.parametrize("recipe", ["int8", "int8-fast", "int8-dynamic"])
def test_one_row_takes_exact_sums_which_wait_for_memory_as_all_others_do(recipe: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(256, 64, bias=False).eval(), torch.randn(8, 256)
    nn.init.normal_(net.weight)
    found = [qc.quantize(qc.trace(net, (r,)), [r], V3, recipe) for r in (x[:1], x)]
    codes = [read(g)[0] for g in found]
    sums = [products(g)[0] for g in found]
    assert sums[0] == 1 < sums[1] and codes[0] in ((-127, 127), (0, 255))
    single, many = (next(n for n in g.nodes() if isinstance(n.op, IntLinear)) for g in found)
    assert (weight(single).abs().amax(1) == 127).all()
    assert not (weight(many).abs().amax(1) == 127).all()


def test_one_row_is_proven_where_no_instruction_is_exact() -> None:
    proven = replace(V3, name="proven", isa=tuple(d for d in V3.isa if d.sums or d is FMA))
    torch.manual_seed(0)
    net, x = nn.Linear(256, 64).eval(), torch.randn(1, 256)
    graph = qc.quantize(qc.trace(net, (x,)), [x], proven, "int8")
    assert torch.equal(qc.build(graph, proven)(x), qc.interpret(graph, x))


def test_a_recipe_without_loss_adds_the_fewest_products() -> None:
    graph, x = heads()
    made = quantized(graph, x, Recipe("plain", Activations.DYNAMIC))
    assert largest(made) == {127}
    assert products(made) == [2, 2, 2]


def test_int8_fast_adds_more_products_than_int8() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1)).eval()
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.weight)
    x = torch.randn(1, 16, 12, 12)
    graph = qc.trace(net, (x,))
    safe, fast = (quantized(graph, x, recipe_of(name)) for name in ("int8", "int8-fast"))
    assert max(products(fast)) >= 4
    assert sum(products(safe)) < sum(products(fast))
    model = qc.build(fast, V3)
    assert torch.equal(model(x), qc.interpret(fast, x))


class Chain(nn.Module):
    """A tensor that two layers read, one that a layer and an addition do, and a result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.last = (nn.Linear(256, 256) for _ in range(4))
        for layer in (self.first, self.left, self.right, self.last):
            nn.init.normal_(layer.weight, std=1 / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.first(x).relu()
        added = self.left(shared) + self.right(shared)
        return self.last(added) + added


def test_codes_are_fewer_only_where_layers_alone_read_them() -> None:
    torch.manual_seed(0)
    net, x = Chain().eval(), torch.randn(32, 256)
    graph = quantized(qc.trace(net, (x,)), x, recipe_of("int8-fast"))
    codes = dict(zip(("first", "left", "right", "last"), read(graph), strict=True))
    assert codes["left"] == codes["right"] and codes["last"] == (0, 255)
    assert codes["first"][0] == codes["left"][0] == 0
    assert 127 <= codes["first"][1] < 255 and 127 <= codes["left"][1] < 255
    plain = quantized(qc.trace(net, (x,)), x, recipe_of("int8"))
    assert set(read(plain)) == {(0, 255)}
    assert torch.equal(qc.build(graph, V3)(x), qc.interpret(graph, x))


def test_rows_of_unequal_size_get_scales_of_their_own() -> None:
    graph, x = heads()
    sizes = torch.logspace(0, 3, len(x))[:, None]
    fast, plain = recipe_of("int8-fast"), replace(STATIC, sums_loss=0.0)
    assert largest(quantized(graph, x, fast)) == set()
    assert largest(quantized(graph, x * sizes, plain)) == set()
    made = quantized(graph, x * sizes, fast)
    assert len(largest(made)) == 1 and len(set(read(made))) == 1
    assert max(products(made)) > 2
    assert torch.equal(qc.build(made, V3)(x * sizes)[0], qc.interpret(made, x * sizes)[0])
    once = replace(fast, keep_float=("heads.0",))  # the other layers still read its rows
    assert len(largest(quantized(graph, x * sizes, once))) == 1


class Joined(nn.Module):
    """A layer and an addition whose results share their operand's scale through a concat."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 1)
        self.last = nn.Conv2d(64, 32, 1)
        self.adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        other = self.inner(y).relu()
        other = y + other if self.adds else other
        return self.last(torch.cat((other, nn.functional.max_pool2d(y, 3, 1, 1)), 1))


@pytest.mark.parametrize("adds", [False, True])
def test_what_computes_with_codes_counts_though_its_result_shares_their_scale(adds: bool) -> None:
    torch.manual_seed(0)
    net, x = Joined(adds).eval(), torch.randn(2, 8, 9, 9)
    graph = qc.trace(net, (x,))
    ctx = Context(V3, recipe_of("int8-fast"), [x])
    until = [p.name for p in passes.QUANTIZE].index("assign-precision") + 1
    planned = Pipeline(passes.QUANTIZE[:until])(graph, ctx)
    (joined,) = (n for n in planned.nodes() if isinstance(n.op, Concat))
    classes = shared_scales(planned, intervals(planned))
    (members,) = (c for c in classes if joined in c)
    assert len(members) >= 3
    found = {n.name for n in layers_of(members, planned, planned.users())}
    assert found == (set() if adds else {"inner", "last"})
    made = quantized(graph, x, recipe_of("int8-fast"))
    assert torch.equal(qc.build(made, V3)(x), qc.interpret(made, x))


def test_where_sums_are_exact_int8_fast_is_int8() -> None:
    graph, x = heads()
    x = x * torch.logspace(0, 3, len(x))[:, None]
    for target in (WIDE, get("x86-64-avx512vnni")):
        fast, plain = (quantized(graph, x, recipe_of(r), target) for r in ("int8-fast", "int8"))
        assert str(fast).partition("{")[2] == str(plain).partition("{")[2]


def test_fewer_static_codes_lose_less_than_larger_scales_alone() -> None:
    graph, x = heads()
    exact = quantized(graph, x, STATIC, WIDE)
    made = quantized(graph, x, replace(STATIC, sums_loss=4.5))
    (top,) = {high for _, high in read(made)}
    assert 127 <= top < 255 and set(read(exact)) == {(0, 255)}
    assert products(made) == [8] * 3
    assert sqnr(exact, graph, x) - sqnr(made, graph, x) <= 4.5 + 0.3


@pytest.mark.parametrize("rule", [arith.SumRule(2), arith.SumRule(4, runs=2, stride=4)])
def test_the_estimate_is_near_the_scale_that_is_proven(rule: arith.SumRule) -> None:
    w = torch.randn(200, 96, generator=torch.Generator().manual_seed(3))
    for low, high in ((0, 255), (-127, 127), (0, 160)):
        proven = arith.proof_scale(w, 127, low, high, rule).double()
        about = torch.maximum(arith.least_scale(w, low, high, rule), w.abs().amax(1).double() / 127)
        assert bool(((proven / about - 1).abs() < 0.03).all())


def test_bad_losses_are_refused() -> None:
    for bad in (-1, 101, "3", True, math.nan):
        with pytest.raises(ValueError, match="sums_loss: expected decibels from 0 to 100, got"):
            Recipe("x", Activations.DYNAMIC, sums_loss=bad)
    assert recipe_of("int8").sums_loss == 0
