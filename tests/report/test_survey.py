"""What a report says about a graph, held to counts made by hand."""

import pytest
import torch

import qcompiler as qc
from qcompiler import passes
from qcompiler.graph import Graph
from qcompiler.ops import Attention, Linear, Quantize, const
from qcompiler.report import Report, describe
from qcompiler.rewrite import named
from qcompiler.types import DType, TensorType, symbol
from qcompiler.zoo.blocks import conv_bn
from tests import nets


def quantized(graph: Graph, recipe: str = "int8") -> Graph:
    return passes.quantize(graph, nets.context(graph, recipe))


def rows(report: Report) -> dict[str, tuple[str, str, int]]:
    return {layer.name: (layer.op, layer.precision, layer.macs) for layer in report.layers}


# Batch 2: multiply-adds of the graph nets.cnn, by hand.
CNN = {
    "stem": 2 * 16 * 16 * 8 * 3 * 9,
    "depthwise": 2 * 8 * 8 * 8 * 9,
    "reduce": 2 * 8 * 4,
    "expand": 2 * 4 * 8,
    "project": 2 * 8 * 8 * 8 * 8,
    "last": 2 * 8 * 8 * 8 * 16 * 9,
    "fc": 2 * 8 * 10,
}


@pytest.mark.parametrize("recipe", ["int8", "float32"])
def test_multiply_adds_are_the_same_before_and_after(recipe: str) -> None:
    graph = nets.cnn()
    before, after = describe(graph), describe(quantized(graph, recipe), graph)
    for report in (before, after):
        found = {name: macs for name, (_, _, macs) in rows(report).items() if macs}
        assert found == CNN
    assert before.integer_share == 0.0
    assert after.integer_share == (1.0 if recipe == "int8" else 0.0)


def test_integer_ops_go_by_the_names_of_what_they_compute() -> None:
    graph = nets.cnn()
    found = rows(describe(quantized(graph), graph))
    assert {name: op for name, (op, _, _) in found.items()} == {
        "stem": "conv2d", "pool": "max_pool2d", "depthwise": "conv2d", "swish": "hardswish",
        "squeeze": "avg_pool2d", "reduce": "conv2d", "expand": "conv2d", "gate": "hardsigmoid",
        "excite": "mul", "project": "conv2d", "add_relu": "add", "cat": "concat",
        "last": "conv2d", "mean": "avg_pool2d", "fc": "linear",
    }  # fmt: skip
    assert {precision for _, precision, _ in found.values()} == {"int8"}
    assert rows(describe(quantized(graph)))["swish"][0] == "table"


def test_what_stays_float_says_why() -> None:
    report = describe(quantized(nets.encoder()))
    kept = {layer.name: layer.reason for layer in report.floats}
    assert kept["probs"] == "softmax is exponential in its input"
    assert kept["norm"] == "normalisation needs more range than 8 bits hold"
    assert set(kept) == {"probs", "norm", "norm2", "mul", "add", "add_2"}
    assert all(kept.values())
    assert report.integer_share == 1.0


def test_rows_quantized_at_run_time_count_as_integer() -> None:
    report = describe(quantized(nets.encoder(), "int8-dynamic"))
    kept = {layer.name for layer in report.floats if layer.macs}
    assert kept == {"matmul", "mixed"}
    assert all(layer.reason for layer in report.floats)
    assert report.quantizes == 4 and report.dequantizes == 6


def test_conversions_left_are_counted() -> None:
    graph = quantized(nets.cnn())
    report = describe(graph)
    assert sum(isinstance(n.op, Quantize) for n in graph.nodes()) == report.quantizes == 1
    assert report.dequantizes == 1


def test_bytes_are_those_of_the_constants() -> None:
    x = nets.value(1, 6)
    graph = named(Graph((x,), (Linear()(x, nets.rand(5, 6), nets.rand(5), name="fc"),)))
    report = describe(quantized(graph), graph)
    (layer,) = report.layers
    assert layer.bytes_float32 == report.bytes_float32 == 4 * (30 + 5)
    assert layer.bytes_now == 30 + 4 * 5
    # Beside the layer: five output scales, the input's scale, and the zero points 0 and its own.
    assert report.bytes_now == layer.bytes_now + 4 * 5 + 4 + 2 * 4
    assert describe(quantized(graph)).bytes_float32 == 4 * 35


def test_a_layer_is_called_as_its_module() -> None:
    module = torch.nn.Sequential(*conv_bn(3, 4, 3)).eval()
    graph = qc.trace(module, (torch.randn(1, 3, 8, 8),))
    (layer,) = describe(quantized(graph), graph).layers
    assert layer.name == "0"
    assert layer.detail == "3x3, 3 -> 4"
    assert layer.origin


def test_attention_counts_both_products() -> None:
    q, k, v = (nets.value(2, 3, length, 8, name=n) for n, length in (("q", 5), ("k", 7), ("v", 7)))
    graph = named(Graph((q, k, v), (Attention(0.5)(q, k, v, name="a"),)))
    assert describe(graph).macs == 2 * (2 * 3 * 5 * 7 * 8)


def test_a_symbolic_batch_counts_as_one() -> None:
    x = qc.Node(nets.Input(t := TensorType((symbol("n"), 6), DType.FLOAT32)), (), t, "x")
    graph = named(Graph((x,), (Linear()(x, const(torch.ones(5, 6))),)))
    assert describe(graph).macs == 30


def test_the_same_graph_gives_the_same_report() -> None:
    graph = nets.cnn()
    first, second = (describe(quantized(nets.cnn()), graph, "here") for _ in range(2))
    assert first == second and str(first) == str(second)
    assert first.target == "here" and first.recipe == "int8"


@pytest.mark.parametrize(
    ("module", "shape", "detail"),
    [
        (torch.nn.Conv2d(4, 8, (3, 5), stride=2), (1, 4, 9, 9), "3x5 /2, 4 -> 8"),
        (
            torch.nn.Conv2d(4, 4, 3, groups=4, dilation=2),
            (1, 4, 9, 9),
            "depthwise 3x3, dilated 2, 4",
        ),
        (
            torch.nn.Conv2d(4, 8, 1, stride=(1, 2), groups=2),
            (1, 4, 9, 9),
            "1x1 /1x2, 4 -> 8, 2 groups",
        ),
        (torch.nn.Linear(6, 3), (2, 6), "6 -> 3"),
        (torch.nn.MaxPool2d((2, 3)), (1, 4, 6, 6), "2x3"),
        (torch.nn.Softmax(-1), (2, 6), "2x6"),
    ],
)
def test_details_say_what_shapes_are(module, shape: tuple[int, ...], detail: str) -> None:
    graph = qc.trace(module.eval(), (torch.randn(shape),))
    assert [layer.detail for layer in describe(graph).layers] == [detail]


def test_ops_of_one_module_keep_names_of_their_own() -> None:
    report = describe(quantized(nets.encoder()))
    names = [layer.name for layer in report.layers]
    assert len(set(names)) == len(names)
