"""Assign codes: what measured times and gradients choose, against the rule of one loss for all."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.ops import Const, IntConv2d, IntLinear
from qcompiler.passes import AssignPrecision
from qcompiler.passes.assign_codes import solved, times_of, units_of
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.report import sqnr_of_outputs
from qcompiler.sensitivity import sensitivities
from qcompiler.targets import Target, get
from qcompiler.targets.kernels.anchors import product_of
from qcompiler.targets.kernels.weights import chosen, code_range

FAST = recipe_of("int8-fast")
SPEED = {"maddubs8": 0.95, "maddubs4": 1.0, "maddubs2": 1.1, "maddubs1": 1.4, "maddwd": 1.8}


class Measured(Mapping[str, Mapping[str, float]]):
    """Times of every integer product there is, by its instruction alone."""

    def __getitem__(self, product: str) -> Mapping[str, float]:
        return {"2x2": 10.0 * SPEED[product.split(" by ")[1].split(" ")[0]]}

    def __contains__(self, product: object) -> bool:
        return " by fma" not in str(product)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


V3 = replace(get("x86-64-v3"), times={})
TIMED = replace(V3, times=Measured())


class Branches(nn.Module):
    """Two branches of equal layers; one of them is a tenth of the other in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = branch(), branch()
        self.last = nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.large(x) + 0.1 * self.small(x))


def branch() -> nn.Module:
    layers: list[nn.Module] = []
    for inner in (8, 32, 32):
        layers += [nn.Conv2d(inner, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def net() -> nn.Module:
    torch.manual_seed(0)
    made = Branches().eval()
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
    return made


def traced() -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(1)
    data = [torch.randn(1, 8, 12, 12) for _ in range(4)]
    return qc.trace(net(), (data[0],)), data


def quantized(graph: Graph, data: list[torch.Tensor], target: Target, solve: bool) -> Graph:
    steps = (*passes.QUANTIZE[: AFTER - 1], AssignPrecision(solve), *passes.QUANTIZE[AFTER:])
    return Pipeline(steps)(graph, Context(target, FAST, data, sample=(data[0],)))


AFTER = [p.name for p in passes.QUANTIZE].index("assign-precision") + 1


def planned(graph: Graph, data: list[torch.Tensor], recipe: Recipe) -> Graph:
    ctx = Context(TIMED, recipe, data, sample=(data[0],))
    return Pipeline(passes.QUANTIZE[:AFTER])(graph, ctx)


def sums(graph: Graph) -> list[str]:
    found = []
    for node in graph.nodes():
        if isinstance(node.op, IntConv2d | IntLinear) and isinstance(node.inputs[1].op, Const):
            dot = chosen(V3.isa, node.inputs[1].op.value, code_range(node.inputs[0]))
            assert dot is not None
            found.append(dot[0].name)
    return found


def test_the_same_time_is_spent_where_less_noise_comes_of_it() -> None:
    graph, data = traced()
    rule, best = (quantized(graph, data, TIMED, solve) for solve in (False, True))
    assert sums(rule) != sums(best)
    spent = [sum(SPEED[name] for name in sums(g)) for g in (rule, best)]
    assert spent[1] <= spent[0] + 1e-9
    samples = [(x,) for x in data]
    before, after = (min(sqnr_of_outputs(graph, g, samples).values()) for g in (rule, best))
    assert after > before + 0.3


def test_the_noise_that_is_predicted_is_the_noise_that_is_measured() -> None:
    graph, data = traced()
    plan = planned(graph, data, replace(FAST, sums_loss=0.0))
    ctx = Context(TIMED, FAST, data, sample=(data[0],))
    units = units_of(plan, ctx)
    times = [times_of(unit, ctx) for unit in units]
    options = solved(units, times, sensitivities(plan, [(x,) for x in data]))
    predicted = -10 * math.log10(sum(option.noise for option in options))
    made = quantized(graph, data, TIMED, True)
    measured = min(sqnr_of_outputs(graph, made, [(x,) for x in data]).values())
    assert predicted == pytest.approx(measured, abs=3.0)


def test_without_times_nothing_is_solved() -> None:
    graph, data = traced()
    rule, best = (quantized(graph, data, V3, solve) for solve in (False, True))
    assert str(rule) == str(best)


def test_without_a_sample_the_rule_holds() -> None:
    graph, data = traced()
    bare = Pipeline(passes.QUANTIZE)(graph, Context(TIMED, FAST, data))
    assert str(bare) == str(quantized(graph, data, TIMED, False))


def test_it_is_deterministic_and_bit_exact() -> None:
    graph, data = traced()
    one, two = (quantized(graph, data, TIMED, True) for _ in range(2))
    assert str(one) == str(two)
    model = qc.build(one, TIMED)
    for x in data:
        assert torch.equal(model(x), qc.interpret(one, x))


def test_the_plan_says_what_every_weight_proves() -> None:
    graph, data = traced()
    plan = planned(graph, data, FAST)
    weights = [n for n in plan.nodes() if isinstance(n.op, Const) and n.note.scheme is not None]
    given = {n.note.scheme.products for n in weights if n.note.scheme is not None}
    assert len(weights) == 7 and given <= {0, 2, 4, 8, 16} and len(given) > 1
    assert "products=" in str(plan)
    for products, name in ((0, "maddwd"), (2, "maddubs1"), (8, "maddubs4")):
        notes = {
            n: replace(n.note, scheme=replace(n.note.scheme, products=products))
            for n in weights if n.note.scheme is not None
        }  # fmt: skip
        made = Pipeline(passes.QUANTIZE[AFTER:])(plan.noted(notes), Context(TIMED, FAST, data))
        if products:
            assert set(sums(made)) <= {name, *list(SPEED)[: list(SPEED).index(name)]}
        else:
            assert name in sums(made)


class Tied(nn.Module):
    """One weight, read by a layer of many rows and by one of a single row, whose sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        nn.init.normal_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y + self.layer(y.mean(0, keepdim=True))


def test_a_weight_of_two_layers_is_proven_for_the_faster() -> None:
    torch.manual_seed(0)
    net, x = Tied().eval(), torch.randn(32, 64)
    made = qc.quantize(qc.trace(net, (x,)), [x], V3, "int8-fast")
    found = sums(made)
    assert len(found) == 2 and found[0] in ("maddubs2", "maddubs4", "maddubs8")
    assert torch.equal(qc.build(made, V3)(x), qc.interpret(made, x))


def test_times_are_asked_by_the_names_that_tune_gives_them() -> None:
    graph, data = traced()
    ctx = Context(TIMED, FAST, data, sample=(data[0],))
    units = units_of(planned(graph, data, replace(FAST, sums_loss=0.0)), ctx)
    asked: set[str] = set()

    class Asked(Measured):
        def __getitem__(self, product: str) -> Mapping[str, float]:
            asked.add(product)
            return super().__getitem__(product)

    for unit in units:
        assert times_of(unit, replace(ctx, target=replace(V3, times=Asked())))
    fused = passes.regions(quantized(graph, data, TIMED, True), Context(V3))
    made = [product_of(node, V3) for node in fused.nodes()]
    names = {product.name for product in made if product is not None}
    assert len(names) >= 3 and names <= asked
