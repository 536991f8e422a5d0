"""The verifier rejects every corrupted graph, and says which node and why."""

from dataclasses import replace

import pytest
import torch
from nets import cnn, context, value

from qcompiler import passes
from qcompiler.graph import Graph, Level
from qcompiler.ops import (
    Add,
    BatchNorm,
    Clamp,
    Dequantize,
    DynamicQuantize,
    IntConv2d,
    Quantize,
    Requantize,
    const,
)
from qcompiler.rewrite import named
from qcompiler.types import DType, TensorType
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
    from qcompiler.types import QParams

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
    from qcompiler.ops import Const
    from qcompiler.types import QParams

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
