"""From CALIBRATED to INTEGER: what becomes integer, by which law, and how near to float."""

import pytest
import torch
from nets import ToyTarget, cnn, context, conv, encoder, rand, samples, value

from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Concat,
    Const,
    Input,
    IntAdd,
    IntSumPool2d,
    LeakyRelu,
    Linear,
    Mul,
    Pad,
    Prelu,
    Requantize,
    Reshape,
    Sigmoid,
    Silu,
    Slice,
    Softmax,
    Window,
    const,
)
from qcompiler.recipe import recipe_of
from qcompiler.rewrite import named
from qcompiler.types import DType, TensorType, symbol


def quantized(*outputs, x, recipe="int8"):
    graph = named(Graph((x,), outputs))
    return graph, passes.quantize(graph, context(graph, recipe))


def kinds(graph):
    return [n.op.kind for n in graph.nodes() if n.op.kind not in ("input", "const")]


def sqnr(graph, quant):
    (x,) = samples(graph, 1, seed=99)[0]
    a, b = interpret(graph, x), interpret(quant, x)
    return float(10 * torch.log10((a**2).sum() / ((a - b) ** 2).sum()))


@pytest.mark.parametrize("make, least", [(cnn, 28), (encoder, 25)])
def test_whole_nets_stay_near_float(make, least):
    graph = make()
    quant = passes.quantize(graph, context(graph))
    assert sqnr(graph, quant) > least


def test_cnn_is_integer_inside():
    graph = cnn()
    inner = kinds(passes.quantize(graph, context(graph)))
    assert inner.count("quantize") == 1 and inner.count("dequantize") == 1
    floats = {"conv2d", "linear", "add", "mul", "hardswish", "clamp", "avg_pool2d", "prelu"}
    assert not floats & set(inner)


def test_encoder_keeps_norms_and_softmax_in_float():
    graph = encoder()
    inner = kinds(passes.quantize(graph, context(graph)))
    assert inner.count("int_linear") == 6 and inner.count("int_matmul") == 2
    assert inner.count("layer_norm") == 2 and inner.count("softmax") == 1
    assert "lookup" in inner and "gelu" not in inner


def test_residual_enters_as_int32():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    y = Clamp(0.0)(conv(x, 8, name="a"))
    z = Add()(conv(y, 8, name="b"), y)
    _, quant = quantized(conv(Clamp(0.0)(z), 4, name="c"), x=x)
    (add,) = [n for n in quant.nodes() if isinstance(n.op, IntAdd)]
    wide, narrow = add.inputs
    assert isinstance(wide.op, Requantize) and wide.op.to is DType.INT32
    assert narrow.tensor.dtype is DType.UINT8
    own = wide.op.out
    assert own.zero_point == 0 and own.qmax - own.qmin == 255 * 256


def test_two_branches_only_one_is_wide():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    z = Add()(conv(x, 8, name="a"), conv(x, 8, name="b"))
    _, quant = quantized(conv(Clamp(0.0)(z), 4, name="c"), x=x)
    (add,) = [n for n in quant.nodes() if isinstance(n.op, IntAdd)]
    assert sorted(i.tensor.dtype.value for i in add.inputs) == ["int32", "uint8"]


def test_shared_layer_is_rounded_to_codes_first():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    y = conv(x, 8, name="a")
    z = Add()(y, conv(y, 8, name="b"))
    _, quant = quantized(conv(z, 4, name="c"), x=x)
    (add,) = [n for n in quant.nodes() if isinstance(n.op, IntAdd)]
    codes = [i for i in add.inputs if i.tensor.dtype is DType.UINT8]
    assert len(codes) == 1


@pytest.mark.parametrize("op", [Sigmoid(), Silu(), LeakyRelu(0.2)])
def test_unary_becomes_a_table_or_an_epilogue(op):
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    graph, quant = quantized(conv(op(conv(x, 8, name="a")), 4, 1, name="b"), x=x)
    assert op.kind not in kinds(quant)
    assert sqnr(graph, quant) > 30


def test_prelu_slopes_per_channel():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    slope = const(torch.tensor([-0.5, 0.0, 0.1, 0.25, 1.0, 2.0, 0.3, -2.0]).reshape(8, 1, 1))
    graph, quant = quantized(conv(Prelu()(conv(x, 8, name="a"), slope), 4, 1, name="b"), x=x)
    (select,) = [n for n in quant.nodes() if len(n.inputs) == 3 and isinstance(n.op, Requantize)]
    assert select.inputs[2].tensor.shape == (8, 1, 1)
    assert sqnr(graph, quant) > 30


def test_concat_requantizes_what_differs():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    a = Clamp(0.0)(conv(x, 8, name="a"))
    big = Clamp(0.0)(conv(Mul()(x, const(30.0)), 8, name="b"))
    graph, quant = quantized(conv(Concat(1)(a, big), 4, 1, name="c"), x=x)
    assert kinds(quant).count("concat") == 1 and "lookup" in kinds(quant)
    assert sqnr(graph, quant) > 25


def test_pools_pads_and_slices_move_codes():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    y = Clamp(0.0)(conv(x, 8, name="a"))
    y = Pad(((0, 0), (0, 0), (1, 0), (0, 1)))(Slice(2, 0, 6, 2)(y))
    y = AvgPool2d(Window((3, 3), (1, 1), ((1, 1), (1, 1))), count_padding=False)(y)
    graph, quant = quantized(conv(y, 4, 1, name="b"), x=x)
    assert {"pad", "slice", "int_sum_pool2d"} <= set(kinds(quant))
    assert kinds(quant).count("dequantize") == 1
    assert sqnr(graph, quant) > 30


def test_pad_with_a_value_that_is_no_code():
    torch.manual_seed(0)
    y = conv(value(2, 8, 6, 6, name="x"), 8, name="a")
    (x,) = y.inputs[:1]
    y = Pad(((0, 0), (0, 0), (1, 0), (0, 1)), -0.7)(y)
    graph, quant = quantized(conv(y, 4, 1, name="b"), x=x)
    assert "pad" in kinds(quant) and kinds(quant).count("dequantize") == 1
    assert sqnr(graph, quant) > 30


def test_float_island_reads_sums_directly():
    torch.manual_seed(0)
    x = value(3, 16)
    y = Softmax()(Linear()(x, rand(8, 16), rand(8), name="a"))
    graph, quant = quantized(Linear()(y, rand(4, 8), rand(4), name="b"), x=x)
    (softmax,) = [n for n in quant.nodes() if n.op.kind == "softmax"]
    assert softmax.inputs[0].op.kind == "dequantize"
    assert softmax.inputs[0].inputs[0].op.kind == "int_linear"
    assert sqnr(graph, quant) > 30


def test_softmax_range_is_known_without_data():
    x = value(3, 16)
    probs = Softmax()(x, name="probs")
    graph = named(Graph((x,), (Linear()(probs, rand(4, 16), name="fc"),)))
    quant = passes.quantize(graph, context(graph))
    (codes,) = [n for n in quant.nodes() if n.op.kind == "quantize"]
    assert codes.tensor.quant.zero_point == 0


def test_dynamic_rows():
    torch.manual_seed(0)
    x = value(3, 16)
    y = Linear()(x, rand(8, 16), rand(8), name="a")
    graph, quant = quantized(y, Linear()(x, rand(8, 16), name="b"), x=x, recipe="int8-dynamic")
    assert kinds(quant).count("dynamic_quantize") == 1  # two layers share the rows
    assert kinds(quant).count("rescale") == 2
    (sample,) = samples(graph, 1)[0]
    a, b = interpret(graph, sample)[0], interpret(quant, sample)[0]
    assert float((a - b).abs().max() / a.abs().max()) < 0.02


def test_float32_recipe_changes_nothing():
    graph = cnn()
    quant = passes.quantize(graph, context(graph, "float32"))
    sample = samples(graph, 1)[0]
    assert torch.allclose(interpret(graph, *sample), interpret(quant, *sample), atol=1e-5)
    assert not {"quantize", "requantize"} & set(kinds(quant))
    reasons = {n.note.reason for n in quant.nodes() if n.note.precision}
    assert reasons == {"recipe float32 keeps everything in float"}


def test_kept_in_float_by_name():
    import dataclasses

    graph = cnn()
    recipe = dataclasses.replace(recipe_of("int8"), keep_float=("last",))
    ctx = dataclasses.replace(context(graph), recipe=recipe)
    quant = passes.quantize(graph, ctx)
    (layer,) = [n for n in quant.nodes() if n.op.kind == "conv2d"]
    assert layer.note.reason == "kept in float by the recipe"


def test_target_refusal_is_the_reason():
    class NoMatmul(ToyTarget):
        def refuses_integer(self, node):
            return "no integer matmul here" if node.op.kind == "matmul" else None

    graph = encoder()
    base = context(graph)
    quant = passes.quantize(graph, Context(NoMatmul(), base.recipe, base.data))
    left = [n for n in quant.nodes() if n.op.kind == "matmul"]
    assert {n.note.reason for n in left} == {"no integer matmul here"}


def test_dead_channels_and_large_biases():
    torch.manual_seed(0)
    x = value(2, 8, 6, 6)
    w = torch.randn(8, 8, 3, 3) * 0.1
    w[2] = 0
    w[5] *= 1e-7
    b = torch.randn(8)
    b[2], b[5] = 40.0, -300.0
    from qcompiler.ops import Conv2d

    y = Conv2d(padding=((1, 1), (1, 1)))(x, const(w, name="w"), const(b, name="b"), name="layer")
    graph, quant = quantized(conv(Clamp(-400.0, 50.0)(y), 4, 1, name="after"), x=x)
    (sums,) = [n for n in quant.nodes() if n.op.kind == "int_conv2d" and "layer" in n.name]
    bias = sums.inputs[2].op
    assert isinstance(bias, Const) and int(bias.value.abs().max()) <= 1 << 25
    assert sqnr(graph, quant) > 20


def test_deterministic_and_independent_of_batching():
    graph = cnn()
    items = [x for (x,) in samples(graph, 8)]
    texts = set()
    for order in (items, items[::-1], [torch.cat(items)], [torch.cat(items[4:]), *items[:4]]):
        ctx = Context(ToyTarget(), recipe_of("int8"), order)
        quant = passes.quantize(graph, ctx)
        lines = [line.split("  # ")[0] for line in str(quant).splitlines()]
        texts.add("\n".join(lines))
    assert len(texts) == 1


def test_reshape_between_layers_moves_codes():
    x = value(2, 8)
    y = Reshape((4, 4))(Linear()(x, rand(8, 8), rand(8), name="a"))
    _, quant = quantized(Linear()(y, rand(3, 4), rand(3), name="b"), x=x)
    (moved,) = [n for n in quant.nodes() if n.op.kind == "reshape"]
    assert moved.tensor.dtype is DType.UINT8


def test_text_before_and_after(golden):
    torch.manual_seed(0)
    x = value(1, 4)
    w, b = const(torch.eye(4)[:2] * 0.5, name="w"), const([0.25, -1.0], name="b")
    _, quant = quantized(Clamp(0.0)(Linear()(x, w, b, name="fc"), name="relu"), x=x)
    golden("\n".join(line.split("  # ")[0] for line in str(quant).splitlines()) + "\n")


def test_padded_value_with_several_readers():
    """Its float readers keep the exact fill; its integer readers move the codes."""
    torch.manual_seed(0)
    x = value(4, 4)
    y = Clamp(0.0)(Linear()(x, rand(4, 4), rand(4), name="a"))
    z = Pad(((0, 0), (0, 1)), 1.3)(y)
    graph, quant = quantized(z, Linear()(z, rand(3, 5), rand(3), name="b"), x=x)
    (sample,) = samples(graph, 1)[0]
    (padded, _) = interpret(quant, sample)
    assert torch.allclose(padded[:, -1], torch.tensor(1.3), atol=0.02)
    assert kinds(quant).count("quantize") == 1


def test_average_pool_of_a_symbolic_batch():
    x = Input(TensorType((symbol("batch"), 4, 6, 6), DType.FLOAT32))(name="x")
    layer = conv(x, 4, name="first")
    pooled = AvgPool2d(Window((6, 6)))(layer, name="pool")
    graph = named(Graph((x,), (conv(pooled, 3, 1, name="last"),)))
    data = [(torch.randn(2, 4, 6, 6),)]
    ctx = Context(ToyTarget(), recipe_of("int8"), data)
    result = passes.quantize(graph, ctx)
    assert any(isinstance(n.op, IntSumPool2d) for n in result.nodes())
