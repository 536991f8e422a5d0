"""layout, fuse, pack: the same integers, channels last, few kernels."""

import pytest
import torch
from nets import ToyTarget, cnn, context, conv, encoder, samples, value

from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.ops import (
    Add,
    Clamp,
    Concat,
    Neg,
    Packing,
    Region,
    Resize,
    Softmax,
    Unpack,
    steps_of,
)
from qcompiler.passes.fuse import fuse
from qcompiler.passes.layout import layout
from qcompiler.passes.simplify import simplify
from qcompiler.pipeline import Pipeline
from qcompiler.rewrite import named
from qcompiler.types import DType


def kinds(graph):
    return [n.op.kind for n in graph.nodes() if n.op.kind not in ("input", "const")]


@pytest.mark.parametrize("make", [cnn, encoder])
@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_bits_stay(make, recipe):
    graph = make()
    quant = passes.quantize(graph, context(graph, recipe))
    fused = passes.build(quant, Context(ToyTarget()))
    sample = samples(graph, 1, seed=5)[0]
    a, b = interpret(quant, *sample), interpret(fused, *sample)
    if recipe == "int8":
        assert torch.equal(a, b)
    else:  # float convolutions may add in another order
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_one_permute_in_and_none_out():
    graph = cnn()
    quant = passes.quantize(graph, context(graph))
    assert kinds(Pipeline((*passes.BUILD[:3],))(quant, Context())).count("permute") == 1


def test_every_layer_takes_its_epilogue():
    graph = cnn()
    fused = passes.build(passes.quantize(graph, context(graph)), Context(ToyTarget()))
    for node in fused.nodes():
        ops = [s.op.kind for s in steps_of(node)]
        if "int_conv2d" in ops:
            assert ops[:2] == ["unpack", "int_conv2d"] and len(ops) > 2, ops


def test_names_of_layers_survive():
    graph = cnn()
    fused = passes.build(passes.quantize(graph, context(graph)), Context(ToyTarget()))
    names = {n.name for n in fused.nodes()}
    assert {"relu.q", "swish.q", "fc"} <= names


def fused(*outputs, x):
    from dataclasses import replace

    from qcompiler.graph import Level

    graph = replace(named(Graph((x,), outputs)), level=Level.INTEGER)
    result = Pipeline((layout, simplify, fuse))(graph, Context())
    sample = torch.randn(x.tensor.ints)
    for a, b in zip(
        as_tuple(interpret(graph, sample)), as_tuple(interpret(result, sample)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)
    return result


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def test_value_with_a_second_user_is_not_swallowed():
    x = value(4, 8)
    inner = Neg()(x)
    result = fused(Clamp(lo=0.0)(inner), inner, x=x)
    assert kinds(result) == ["neg", "clamp"]


def test_value_used_twice_by_one_op_is():
    x = value(4, 8)
    inner = Neg()(x)
    assert kinds(fused(Add()(inner, inner), x=x)) == ["region"]


def test_diamond_becomes_one_region():
    x = value(4, 8)
    result = fused(Add()(Clamp(lo=0.0)(x), Neg()(x)), x=x)
    assert kinds(result) == ["region"]
    (region,) = [n for n in result.nodes() if isinstance(n.op, Region)]
    assert region.inputs == (result.inputs[0],)


def test_broadcast_operand_is_computed_apart():
    x = value(4, 8)
    from qcompiler.ops import Slice

    column = Neg()(Slice(1, 0, 1)(x))
    assert kinds(fused(Add()(Neg()(x), column), x=x)) == ["slice", "neg", "region"]


def test_softmax_with_prologue_and_epilogue():
    x = value(4, 8)
    result = fused(Neg()(Softmax()(Neg()(x))), x=x)
    assert kinds(result) == ["region"]


def test_two_layers_are_two_regions():
    torch.manual_seed(0)
    x = value(1, 8, 6, 6)
    y = Add()(Clamp(0.0)(conv(x, 8, name="a")), Clamp(0.0)(conv(x, 8, name="b")))
    result = fused(y, x=x)
    assert kinds(result).count("region") == 2


def test_images_concat_and_resize_stay_channels_last():
    torch.manual_seed(0)
    x = value(1, 4, 6, 6)
    y = conv(x, 4, name="a")
    z = Concat(1)(Resize((12, 12))(y), conv(Resize((12, 12), bilinear=True)(x), 4, name="b"))
    result = fused(conv(z, 2, name="c"), x=x)
    assert kinds(result).count("permute") == 2  # one in, one out


@pytest.mark.parametrize(
    "shape, packing",
    [
        ((5, 7), Packing(16, 4)),
        ((32, 8, 3, 3), Packing(16, 4)),
        ((6, 3, 1, 5), Packing(8, 2, groups=3)),
        ((10, 3, 2, 5), Packing(8, 4, taps=True)),
        ((16, 1, 3, 3), Packing(8, 1, groups=16)),
    ],
)
def test_packing_is_undone_by_unpack(shape, packing):
    w = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed = packing.pack(w)
    assert tuple(packed.shape) == packing.shape(shape)
    assert torch.equal(Unpack(packing, shape).eval(packed), w)
    assert int(packed.long().abs().sum()) == int(w.long().abs().sum())  # the rest is zero


def test_weights_are_stored_once():
    graph = cnn()
    fused_ = passes.build(passes.quantize(graph, context(graph)), Context(ToyTarget()))
    packed = [n for n in fused_.nodes() if n.name.endswith(".packed")]
    layers = [n for n in fused_.nodes() if any(s.op.kind == "unpack" for s in steps_of(n))]
    assert len(packed) == len(layers) == 7
    assert all(n.tensor.dtype is DType.INT8 for n in packed)
