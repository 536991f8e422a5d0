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
from qcompiler.ops import Const, Conv2d, IntConv2d, IntLinear
from qcompiler.passes import AssignPrecision
from qcompiler.passes.assign_codes import Search
from qcompiler.passes.prices import times_of
from qcompiler.passes.units import units_of
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.report import sqnr_of_outputs
from qcompiler.targets import Target, get
from qcompiler.targets.kernels.anchors import product_of
from qcompiler.targets.kernels.weights import chosen, code_range

FAST = recipe_of("int8-fast")
SPEED = {
    "maddubs8": 0.95, "maddubs4": 1.0, "maddubs2": 1.1, "maddubs1": 1.4, "maddwd": 1.8, "fma": 9.0,
}  # fmt: skip
CHEAP = " -> 16"  # the channels of a layer that is faster in float32 where one is to be


class Measured(Mapping[str, Mapping[str, float]]):
    """Times of every product there is, by its instruction; of some they are less in float32."""

    def __init__(self, cheap: str = "nothing") -> None:
        self.cheap = cheap

    def __getitem__(self, product: str) -> Mapping[str, float]:
        if " by " not in product:
            return {"0x0": 0.1}
        speed = SPEED[product.split(" by ")[1].split(" ")[0]]
        return {"2x2": 0.5 if self.cheap in product and "fma" in product else 10.0 * speed}

    def get(self, product: str, default: object = None) -> Mapping[str, float]:
        return self[product]

    def __contains__(self, product: object) -> bool:
        return True

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
    search = Search.of(plan, units_of(plan, ctx), ctx)
    noise = search.simulated(search.as_fast())
    assert noise is not None
    predicted = -10 * math.log10(noise)
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


def reasons(graph: Graph, data: list[torch.Tensor], recipe: Recipe, target: Target) -> list[str]:
    """Why layers with weights compute in float32."""
    ctx = Context(target, recipe, data, sample=(data[0],))
    plan = Pipeline(passes.QUANTIZE[:AFTER])(graph, ctx)
    return [n.note.reason for n in plan.nodes() if isinstance(n.op, Conv2d) and n.note.reason]


@pytest.mark.parametrize("recipe", ["int8", "int8-fast", "auto"])
def test_a_layer_that_is_faster_in_float32_stays_so_and_says_why(recipe: str) -> None:
    graph, data = traced()
    target = replace(V3, times=Measured(CHEAP))
    (reason,) = reasons(graph, data, recipe_of(recipe), target)
    assert "faster in float32 (measured: 0.5 us in float32, " in reason and "in integers" in reason
    assert reasons(graph, data, recipe_of(recipe), TIMED) == []
    made = qc.quantize(graph, data, target, recipe)
    model = qc.build(made, target)
    assert torch.allclose(model(data[0]), qc.interpret(made, data[0]), rtol=1e-4, atol=1e-4)


def test_conversions_are_counted() -> None:
    graph, data = traced()
    slow = {"quantize": {"0x0": 1e6}, "dequantize": {"0x0": 1e6}}

    class Dear(Measured):
        def __getitem__(self, product: str) -> Mapping[str, float]:
            return slow.get(product) or super().__getitem__(product)

    target = replace(V3, times=Dear("32 -> 32"))  # layers between others that stay integers
    found = [reasons(graph, data, recipe_of("int8"), t) for t in (TIMED, target)]
    # Either all layers are float32 or none: codes and values never meet.
    assert [len(names) for names in found] in ([0, 0], [0, 7])


def test_estimates_alone_do_not_make_a_layer_float() -> None:
    graph, data = traced()
    assert reasons(graph, data, recipe_of("int8"), V3) == []


def test_auto_is_faster_than_int8_at_no_more_noise() -> None:
    graph, data = traced()
    samples = [(x,) for x in data]
    made = {r: qc.quantize(graph, data, TIMED, r) for r in ("int8", "auto")}
    spent = {r: sum(SPEED[name] for name in sums(g)) for r, g in made.items()}
    noise = {r: min(sqnr_of_outputs(graph, g, samples).values()) for r, g in made.items()}
    assert spent["auto"] < spent["int8"] - 0.05
    assert noise["auto"] > noise["int8"] - 0.5


def test_what_may_be_lost_buys_time() -> None:
    graph, data = traced()
    spent = []
    for drop in (-2.0, 0.0, 2.0, 8.0):
        recipe = replace(recipe_of("auto"), max_drop=drop)
        spent.append(sum(SPEED.get(s, 9.0) for s in sums(qc.quantize(graph, data, TIMED, recipe))))
    assert spent[1] > spent[2] > spent[3]


class Labels(nn.Module):
    """Class numbers, from which no noise can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).mean((2, 3)).argmax(1)


def test_where_outputs_tell_nothing_nothing_is_lost_for_speed() -> None:
    torch.manual_seed(1)
    data = [torch.randn(1, 8, 12, 12) for _ in range(4)]
    graph = qc.trace(Labels().eval(), (data[0],))
    assert sums(qc.quantize(graph, data, TIMED, "auto")) == sums(
        qc.quantize(graph, data, TIMED, "int8")
    )
    rule, best = (quantized(graph, data, TIMED, solve) for solve in (False, True))
    assert sums(rule) == sums(best)
