"""The verifier rejects every corrupted graph, and says which node and why."""

from dataclasses import replace

import pytest
import torch
from nets import cnn, context, value

from qcompiler import passes
from qcompiler.graph import Graph, Level
from qcompiler.op import OpError
from qcompiler.ops import (
    Add,
    BatchNorm,
    Clamp,
    Const,
    Conv2d,
    Dequantize,
    DynamicQuantize,
    Input,
    IntConv2d,
    LayerNorm,
    Linear,
    Quantize,
    Requantize,
    const,
)
from qcompiler.rewrite import named
from qcompiler.types import DType, QParams, TensorType
from qcompiler.verify import VerifyError, verify


def one(node, level=Level.FLOAT):
    return named(Graph(tuple(n for n in [X] if True), (node,), level=level))


X = value(4)


def rejects(graph, *fragments):
    with pytest.raises(VerifyError) as e:
        verify(graph)
    for fragment in fragments:
        assert fragment in str(e.value), str(e.value)


def test_good_graphs_pass():
    graph = cnn()
    verify(graph)
    for stage in passes.quantize.stages(graph, context(graph)):
        verify(stage)


def test_wrong_shape():
    bad = replace(Clamp(lo=0.0)(X), type=TensorType((5,), DType.FLOAT32))
    rejects(one(bad), "%clamp", "expected type float32[4]", "got float32[5]")


def test_wrong_dtype():
    bad = replace(Clamp(lo=0.0)(X), type=TensorType((4,), DType.INT8))
    rejects(one(bad), "expected type float32[4]", "got int8[4]")


def test_names():
    a = Clamp(lo=0.0)(X, name="a")
    rejects(Graph((X,), (Add()(a, Clamp(lo=1.0)(X, name="a"), name="s"),)), "name is taken")
    rejects(Graph((X,), (Clamp(lo=0.0)(X),)), "without a name")


def test_undeclared_input():
    y = value(4, name="y")
    rejects(named(Graph((X,), (Add()(X, y),))), "%y", "does not declare")


def test_several_results_need_get():
    rows = DynamicQuantize()(X)
    bad = replace(Clamp(lo=0.0)(X), inputs=(rows,))
    rejects(one(bad, Level.INTEGER), "several results")


@pytest.mark.parametrize("level", [Level.FLOAT, Level.CALIBRATED, Level.PLANNED])
def test_no_codes_before_qdq(level):
    q = Quantize(DType.UINT8, 0, 255)(X, const(0.1), const(3))
    rejects(one(q, level), "quantize may not occur", level.name)


def test_no_integer_ops_at_qdq():
    acc = value(4, dtype=DType.INT32)
    out = replace(quant(3), qmin=0)
    bad = Requantize(DType.UINT8, out)(acc, const(0.5))
    rejects(named(Graph((acc,), (bad,), level=Level.QDQ)), "requantize may not occur")


def test_no_batch_norm_at_integer():
    x = value(1, 4)
    stats = [const(torch.ones(4)) for _ in range(4)]
    rejects(
        named(Graph((x,), (BatchNorm(1e-5)(x, *stats),), level=Level.INTEGER)),
        "batch_norm may not occur",
    )


def quant(zero_point):
    return QParams((0.1,), zero_point, 0, 255)


def test_quantize_of_dequantize_is_left_over():
    q = Quantize(DType.UINT8, 0, 255)(X, const(0.1), const(3))
    again = Quantize(DType.UINT8, 0, 255)(
        Dequantize()(q, const(0.1), const(3)), const(0.2), const(3)
    )
    rejects(one(again, Level.INTEGER), "integerize should have merged")


def test_zero_point_of_the_operand():
    x = value(1, 2, 4, 4)
    q = Quantize(DType.UINT8, 0, 255)(x, const(0.1), const(3))
    w = Const(torch.ones(2, 2, 1, 1, dtype=torch.int8), QParams((0.1, 0.1), 0, -127, 127, 0))()
    good = IntConv2d(zero_point=3)(q, w)
    verify(named(Graph((x,), (good,), level=Level.INTEGER)))
    bad = IntConv2d(zero_point=4)(q, w)
    rejects(named(Graph((x,), (bad,), level=Level.INTEGER)), "zero point 4", "has 3")


def test_codes_need_parameters():
    codes = value(1, 2, 4, 4, dtype=DType.UINT8)
    w = const(torch.ones(2, 2, 1, 1), DType.INT8)
    bad = IntConv2d()(codes, w)
    rejects(named(Graph((codes,), (bad,), level=Level.INTEGER)), "without quantization parameters")


def test_weights_are_folded():
    w = const(torch.ones(4))
    bad = Add()(
        Dequantize()(
            Quantize(DType.INT8, -127, 127)(w, const(1.0), const(0)), const(1.0), const(0)
        ),
        X,
    )
    rejects(one(bad, Level.INTEGER), "integerize should have folded it")


def test_state_types_agree():
    s = value(4, name="s")
    graph = Graph(
        (X,), (X,), state=((s, Clamp(lo=0.0)(s, name="u")),), initial=(const([1, 2], name="i"),)
    )
    rejects(graph, "starts as")


def typed(shape, dtype=DType.UINT8, **changes):
    params = {"scale": (0.1,), "zero_point": 0, "qmin": 0, "qmax": 255, **changes}
    return Input(TensorType(shape, dtype, QParams(**params)))(name="q")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (typed((2,), qmax=300), "codes in 0..300 are no uint8"),
        (typed((2,), DType.INT8, qmin=-129, qmax=5), "codes in -129..5 are no int8"),
        (typed((8,), scale=(0.1, 0.2, 0.3), axis=0), "3 scales along axis 0 of uint8[8]"),
        (typed((8,), scale=(0.1,) * 8, axis=1), "8 scales along axis 1"),
        (value(2, -2), "expected sizes or symbols as dimensions, got -2"),
        (value(2, True), "expected sizes or symbols as dimensions, got True"),
    ],
)
def test_types_that_no_tensor_has(node, message):
    rejects(Graph((node,), (node,), level=Level.INTEGER), message)


def test_an_input_counts_once():
    rejects(Graph((X, X), (X,)), "declared as an input twice")


def test_state_starts_from_a_constant():
    s = value(4, name="s")
    after = Clamp(lo=0.0)(s, name="u")
    rejects(Graph((X,), (X,), state=((s, after),), initial=(X,)), "expected a Const initial value")


def layer(w=1, bias=0, qmin=-127, zero_point=0, padding=0):
    x = typed((1, 2, 4, 4), zero_point=zero_point)
    params = QParams((0.1,) * 2, 0, qmin, 127, 0)
    weight = Const(torch.full((2, 2, 1, 1), w, dtype=torch.int8), params)(name="w")
    pads = ((padding, padding), (padding, padding))
    op = IntConv2d(padding=pads, zero_point=zero_point)
    return x, op(x, weight, const([bias, 0], DType.INT32, "b"), name="y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w": -128}, "holds codes outside -127..127"),
        ({"bias": 2**31 - 1}, "beyond int32"),
        ({"bias": 2**31 - 1, "w": 0}, None),
        ({"zero_point": 255, "bias": 2**31 - 1 - 255}, "its sums reach 2147483902, beyond int32"),
    ],
)
def test_constants_of_a_layer(options, message):
    x, y = layer(**options)
    graph = Graph((x,), (y,), level=Level.INTEGER)
    if message is None:
        verify(graph)
    else:
        rejects(graph, message)


def test_operands_that_no_layer_takes():
    x, w = value(1, 2, 4, 4), const(torch.ones(3, 2, 1, 1))
    for bias in (const(torch.ones(4)), const(torch.ones(1, 3)), const([1, 2, 3])):
        with pytest.raises(OpError):
            Conv2d()(x, w, bias)
        with pytest.raises(OpError):
            Linear()(value(2, 5), const(torch.ones(3, 5)), bias)
    with pytest.raises(OpError, match=r"vectors of shape \[4\]"):
        LayerNorm(1e-5)(X, const(torch.ones(4)), const(torch.ones(3)))
    q = typed((1, 2, 4, 4))
    with pytest.raises(OpError, match="broadcast to the codes"):
        Dequantize()(q, const(torch.ones(3, 1, 2, 4, 4)), const(0))
    acc = value(4, dtype=DType.INT32)
    for m in (const(torch.ones(4).double()), const([1, 2, 3, 4])):
        with pytest.raises(OpError, match="float32 multipliers"):
            Requantize(DType.UINT8, quant(3))(acc, m)


def test_multipliers_are_numbers():
    acc = value(4, dtype=DType.INT32)
    bad = Requantize(DType.UINT8, quant(3))(acc, const(float("nan"), name="m"))
    rejects(named(Graph((acc,), (bad,), level=Level.INTEGER)), "multiplier %m is not finite")


def test_a_clamp_between_codes_is_no_excuse():
    q = Quantize(DType.UINT8, 0, 255)(X, const(0.1), const(3))
    real = Clamp(lo=0.0)(Dequantize()(q, const(0.1), const(3)))
    again = Quantize(DType.UINT8, 0, 255)(real, const(0.2), const(3))
    rejects(one(again, Level.INTEGER), "integerize should have merged")
    kept = real.with_note(precision=DType.FLOAT32)
    again = Quantize(DType.UINT8, 0, 255)(kept, const(0.2), const(3))
    verify(one(again, Level.INTEGER))
