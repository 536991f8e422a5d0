"""The ledger: its parts add up to the error, and a planted culprit stands first, with its cause."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler import passes, targets
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.ledger import Ledger
from qcompiler.ops import Const, Dequantize, Quantize, const
from qcompiler.passes.explain import Stages, explained, ledger_of
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import recipe_of
from qcompiler.zoo.mtcnn import onet

TARGET = targets.get("x86-64-v3")
ADDS_UP = 0.1
"""Of the error, that the parts may leave out."""


class Net(nn.Module):
    """Convolutions with a residual, a norm and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = self.norm(x.flatten(2).transpose(1, 2))
        return self.down(torch.nn.functional.gelu(self.up(x)))


def traced() -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    data = [torch.randn(1, 3, 12, 12) for _ in range(8)]
    return qc.trace(Net().eval(), (data[0],)), data


def stages(recipe: str = "int8") -> tuple[Stages, Context, list[tuple[Tensor, ...]]]:
    graph, data = traced()
    ctx = Context(TARGET, recipe_of(recipe), data, sample=(data[0],))
    kept = Stages()
    passes.quantizing(ctx.recipe)(graph, ctx, (kept,))
    return kept, ctx, [(x,) for x in data[:3]]


def ledger(kept: Stages, ctx: Context, samples: list[tuple[Tensor, ...]]) -> Ledger:
    assert kept.planned is not None and kept.qdq is not None
    rest = Pipeline((passes.by_name("propagate"), passes.by_name("integerize")))
    return ledger_of(kept.planned, kept.qdq, rest(kept.qdq, ctx), samples, ctx)


@pytest.mark.parametrize("recipe", ["int8", "int8-fast", "int8-dynamic", "w8a16", "w4a8"])
def test_the_parts_add_up_to_the_error(recipe: str) -> None:
    graph, data = traced()
    found = qc.explain(graph, data, recipe=recipe)
    assert found.total > 0 and found.samples == 4
    assert abs(found.residual) < ADDS_UP * found.total
    assert abs(found.integers) < ADDS_UP * found.total
    kinds = {(e.kind, part) for e in found.entries for part, v in e.parts.items() if v}
    assert ("weights", "weights") in kinds
    assert (("activation", "activations") in kinds) == (recipe != "w8a16")
    assert Ledger.from_json(found.to_json()) == found


def test_of_a_real_model_too() -> None:
    module, inputs = onet()
    g = torch.Generator().manual_seed(0)
    data = [torch.randn(inputs[0].shape, generator=g) for _ in range(8)]
    found = qc.explain(qc.trace(module, inputs), data)
    assert abs(found.residual) < ADDS_UP * found.total


def changed(kept: Stages, wanted: Callable[[Node], bool], change: Callable[[Node], Node]) -> Stages:
    """The stages with another constant in the QDQ graph."""
    assert kept.qdq is not None

    def swap(node: Node) -> Node:
        if not isinstance(node.op, Quantize | Dequantize):
            return node
        return node.with_inputs([change(i) if wanted(i) else i for i in node.inputs])

    return Stages(kept.planned, kept.qdq.map(swap))


def times(factor: float) -> Callable[[Node], Node]:
    def change(node: Node) -> Node:
        assert isinstance(node.op, Const)
        return const(node.op.value * factor, name=node.name)

    return change


def moved(codes: int) -> Callable[[Node], Node]:
    def change(node: Node) -> Node:
        assert isinstance(node.op, Const)
        return const(node.op.value + codes, name=node.name)

    return change


def test_a_scale_that_is_too_wide_stands_first() -> None:
    kept, ctx, samples = stages()
    planted = changed(kept, lambda n: n.name == "norm.scale", times(8.0))
    first = ledger(planted, ctx, samples).ranked()[0]
    assert (first.name, first.kind, first.largest_part) == ("norm", "activation", "activations")
    assert "its scale is" in first.cause and "times what its values need" in first.cause
    assert any(r.what.startswith("range=") and r.gain_db > 3 for r in first.remedies)


def test_weights_whose_scale_is_too_wide_stand_first() -> None:
    kept, ctx, samples = stages()
    planted = changed(kept, lambda n: n.name == "a.weight.scale", times(8.0))
    first = ledger(planted, ctx, samples).ranked()[0]
    assert (first.name, first.kind, first.largest_part) == ("a", "weights", "proof")
    assert "times what its weights need" in first.cause
    assert first.alone is not None and first.alone > 0.5 * first.share


def test_a_zero_point_that_is_off_stands_first() -> None:
    kept, ctx, samples = stages()
    planted = changed(kept, lambda n: n.name == "x.zero", moved(80))
    first = ledger(planted, ctx, samples).ranked()[0]
    assert (first.name, first.largest_part) == ("x", "clipping")
    assert "its zero point is off" in first.cause


def test_an_outlier_channel_stands_first() -> None:
    """One channel of what the norm gives is 100 times as large, the layer makes up for it."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.weight[5] *= 100
        net.norm.bias[5] *= 100
        net.up.weight[:, 5] /= 100
    data = [torch.randn(1, 3, 12, 12) for _ in range(8)]
    found = qc.explain(qc.trace(net, (data[0],)), data)
    first = found.ranked()[0]
    assert (first.name, first.kind) == ("norm", "activation")
    assert "one channel" in first.cause and "times the median one" in first.cause
    best = first.remedies[0]
    assert best.gain_db > 3
    assert any("scaling='smooth'" in r.what for r in first.remedies)


def test_a_float_model_has_no_error() -> None:
    graph, data = traced()
    recipe = replace(recipe_of("int8"), keep_float=("stem", "a", "b", "up", "down"))
    ctx = Context(TARGET, recipe, data, sample=(data[0],))
    found = explained(graph, ctx, passes.quantizing(recipe), data)
    assert found.total < 1e-12 and not found.entries


def test_masked_outputs_are_neither_signal_nor_noise() -> None:
    torch.manual_seed(0)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 8)
            self.register_buffer("mask", torch.arange(8) < 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).masked_fill(self.mask, -torch.inf)

    data = [torch.randn(64, 16) for _ in range(4)]
    found = qc.explain(qc.trace(Masked().eval(), (data[0],)), data)
    assert 20 < found.sqnr_db < 60
    assert abs(found.residual) < ADDS_UP * found.total


def test_what_is_explained_is_what_is_made() -> None:
    """Without data for the recipe, means are not known, and biases not corrected by them."""
    graph, data = traced()
    ctx = Context(TARGET, recipe_of("int8-dynamic"))
    kept = Stages()
    passes.quantizing(ctx.recipe)(graph, ctx, (kept,))
    made = qc.quantize(graph, data, recipe="int8-dynamic")
    assert kept.qdq is not None
    rest = Pipeline((passes.by_name("propagate"), passes.by_name("integerize"),
                     passes.by_name("simplify")))  # fmt: skip
    assert [n.name for n in rest(kept.qdq, ctx).nodes()] == [n.name for n in made.nodes()]
    found = qc.explain(graph, data, recipe="int8-dynamic")
    samples = [(x,) for x in data[:4]]
    assert kept.planned is not None
    assert found.total == pytest.approx(
        ledger_of(kept.planned, kept.qdq, made, samples, ctx).total, rel=1e-6
    )
