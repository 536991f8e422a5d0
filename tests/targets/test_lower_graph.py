"""Whole graphs: levels, refusals, weights, sharing of kernels and memory, results, completeness."""

import dataclasses

import pytest
import torch
import tvm
from lowering import BATCH, TARGET, Cases, fused, region

from qcompiler import targets
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node, Note
from qcompiler.interpret import interpret
from qcompiler.op import Elementwise, Op
from qcompiler.ops import (
    ALL,
    Add,
    And,
    Arange,
    Attention,
    AvgPool2d,
    BatchNorm,
    Cast,
    Clamp,
    Compare,
    Concat,
    Const,
    Conv2d,
    Cumsum,
    Dequantize,
    Dilate,
    Div,
    DynamicQuantize,
    Exp,
    Expand,
    Flip,
    Full,
    Gather,
    GatherElements,
    Gelu,
    Get,
    GroupedIntLinear,
    Input,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    LayerNorm,
    Linear,
    Lookup,
    Matmul,
    MaxPool2d,
    Mul,
    Not,
    Or,
    Pad,
    Permute,
    Prelu,
    Quantize,
    Reduce,
    Reduction,
    Region,
    Relation,
    Requantize,
    Rescale,
    Reshape,
    Resize,
    RmsNorm,
    Slice,
    Softmax,
    Sub,
    TruncDiv,
    Tuple,
    WeightOnlyLinear,
    Where,
    Window,
    const,
)  # fmt: skip
from qcompiler.passes.pack import packed as pack
from qcompiler.targets import LowerError
from qcompiler.targets.base import STRUCTURAL
from qcompiler.targets.build import _pipeline, build, compiled, load, runner
from qcompiler.targets.lower import Lowered, lower
from qcompiler.types import DType, QParams, TensorType, symbol

CODES = QParams((0.1,), 7, 0, 255)


def floats(*shape, dtype: DType = DType.FLOAT32) -> Node:
    return Input(TensorType(shape, dtype))(name="x")


def run(lowered: Lowered, *values: torch.Tensor):
    return runner(compiled(lowered, TARGET), lowered.weights)(*values)


# ------------------------------------------------------------------------------------- refusals


def test_only_fused_graphs_of_this_target_are_lowered() -> None:
    x = floats(3)
    graph = fused([x], [Gelu()(x)])
    with pytest.raises(LowerError, match="needs a FUSED graph, got INTEGER"):
        lower(dataclasses.replace(graph, level=Level.INTEGER), TARGET)
    with pytest.raises(LowerError, match="fused for 'armv8-a', not for 'x86-64-v3'"):
        lower(dataclasses.replace(graph, target="armv8-a"), TARGET)


def test_every_node_without_a_kernel_is_listed_with_its_origin() -> None:
    x = floats(2, 4, 5, 6)
    half = Input(TensorType((3,), DType.FLOAT16))(name="half")
    stats = [const(torch.ones(4)) for _ in range(4)]
    norm = BatchNorm(1e-5)(x, *stats, name="bn", note=Note(origin="net.norm"))
    attended = Attention(1.0)(x, x, x, name="sdpa")
    conv = Conv2d()(x, const(torch.randn(3, 4, 1, 1)), name="conv")
    outputs = [norm, attended, conv, Gelu()(half, name="gelu16"), Gelu()(x)]
    with pytest.raises(LowerError) as caught:
        lower(fused([x, half], outputs), TARGET)
    text = str(caught.value)
    assert "no kernel for 4 nodes" in text
    assert "%bn = batch_norm(float32[2,4,5,6], " in text
    assert "(net.norm): batch norm is folded before it is lowered" in text
    assert "%sdpa = attention(" in text and "attention is decomposed before" in text
    assert "%conv = conv2d(" in text and "run the layout pass" in text
    assert "%gelu16 = gelu(float16[3]) : float16[3]: no kernel computes in float16" in text


def test_a_symbolic_dimension_that_is_not_the_first_is_refused_in_one_line() -> None:
    x = floats(3, symbol("length"))
    with pytest.raises(LowerError, match=r"%x = input.*only the first dimension may be") as caught:
        lower(fused([x], [Gelu()(Gelu()(x))]), TARGET)
    assert "gelu" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(LowerError, match=r"%none = slice.*an empty tensor, float32\[0,4\]"):
        lower(fused([y := floats(3, 4)], [Slice(0, 1, 1)(y, name="none")]), TARGET)
    first = floats(symbol("length"), 3)
    view = Reshape((3, symbol("length")))(first, name="view")
    with pytest.raises(LowerError, match=r"%view = reshape.*only the first dimension"):
        lower(fused([first], [view]), TARGET)


def test_many_symbols_in_the_wrong_place_are_refused_in_one_line() -> None:
    x = floats(symbol("batch"), 3)
    note = Note(origin="net.mean net.py:7")
    turned = Permute((1, 0))(x, name="turn", note=note)
    outputs = [Softmax()(turned), Reduce(Reduction.MEAN)(turned), Permute((1, 0))(x, name="again")]
    with pytest.raises(LowerError) as caught:
        lower(fused([x], outputs), TARGET)
    text = str(caught.value)
    assert "no kernel for %turn = permute" in text and "net.mean net.py:7" in text
    assert "trace with fixed sizes" in text and "\n" not in text and "again" not in text
    norm = BatchNorm(1e-5)(x, *[const(torch.ones(3)) for _ in range(4)], name="bn")
    with pytest.raises(LowerError) as caught:
        lower(fused([x], [*outputs, norm]), TARGET)
    head, first, second = str(caught.value).splitlines()
    assert "for 2 nodes" in head and "%turn" in first and "%bn" in second


# ------------------------------------------------------------------------------ weights, sharing


def test_equal_kernels_and_equal_weights_are_emitted_once() -> None:
    x = floats(2, 16)
    w = torch.randn(16, 16)
    y = x
    for k in range(4):
        y = Gelu()(Linear()(y, const(w if k % 2 else w.clone()), name=f"fc{k}"))
    lowered = lower(fused([x], [y]), TARGET)
    functions = [f for f in lowered.mod.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(functions) == 2
    assert len(lowered.weights) == 1
    value = torch.randn(2, 16)
    assert torch.allclose(run(lowered, value)[0], interpret(fused([x], [y]), value), atol=1e-5)


def test_kernels_that_differ_only_in_what_code_does_not_show_are_one() -> None:
    acc, m = Input(TensorType((2, 16), DType.INT32))(), const(0.01)
    scales = (0.1, 0.2)
    outputs = [Requantize(DType.UINT8, QParams((s,), 7, 0, 255))(acc, m) for s in scales]
    assert len(lower(fused([acc], outputs), TARGET).mod.functions) == 2
    outputs = [Requantize(DType.UINT8, QParams((0.1,), z, 0, 255))(acc, m) for z in (7, 8)]
    assert len(lower(fused([acc], outputs), TARGET).mod.functions) == 3


def test_weights_are_outside_the_library_and_scalars_inside() -> None:
    x = floats(2, 1000)
    w = torch.randn(1000)
    graph = fused([x], [Mul()(Add()(x, const(w, name="w")), const(1.5))])
    library = build(graph, TARGET)
    ((digest, tensor),) = library.weights
    assert torch.equal(tensor, w) and digest == Const(w).digest
    assert w.numpy().tobytes()[:256] not in library.code
    assert library.target == "x86-64-v3" and "avx2" in library.features
    value = torch.randn(2, 1000)
    assert torch.equal(load(library)(value)[0], interpret(graph, value))


def test_memory_of_intermediate_values_is_reused() -> None:
    for shape in ((4, 64), (BATCH, 64)):
        y = x = floats(*shape)
        for _ in range(12):
            y = Gelu()(y)
        lowered = lower(fused([x], [y]), TARGET)
        planned = _pipeline().passes[:4]
        mod = lowered.mod
        for step in planned:
            mod = step(mod)
        text = mod["main"].script()
        assert text.count("alloc_storage") == 2, text


# ---------------------------------------------------------------------------- inputs and results


def test_state_results_views_and_constants_come_back_in_order() -> None:
    x, old = floats(BATCH, 6), Input(TensorType((4,), DType.FLOAT32))(name="old")
    w = const(torch.arange(4.0), name="w")
    new = Add()(old, w, name="new")
    view = Reshape((BATCH, 2, 3))(x)
    initial = Const(torch.zeros(4))(name="zero")
    graph = Graph((x,), (x, view, w, Gelu()(x), view), ((old, new),), Level.FUSED, "x86-64-v3",
                  initial=(initial,))  # fmt: skip
    values = torch.randn(3, 6), torch.ones(4)
    got = run(lower(graph, TARGET), *values)
    outputs, (after,) = interpret(graph, values[0], state=[values[1]])
    for a, b in zip(got, [*outputs, after], strict=True):
        assert torch.equal(a, b)


def test_one_library_takes_every_batch_size() -> None:
    x = floats(BATCH, 3, 8)
    soft = Softmax()(Reshape((BATCH * 3, 8))(x))
    fc = Linear()(Reshape((BATCH, 24))(soft), const(torch.randn(5, 24)))
    graph = fused([x], [soft, fc, Permute((0, 2, 1))(x)])
    call = load(build(graph, TARGET))
    for batch in (1, 2, 7, 33):
        value = torch.randn(batch, 3, 8)
        for a, b in zip(call(value), interpret(graph, value), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_threads_change_nothing() -> None:
    cases = Cases(0)
    x = cases.floats(64, 4000)
    graph = fused(cases.inputs, [Gelu()(x), Softmax()(x), Permute((1, 0))(x)])
    lowered = lower(graph, TARGET)
    assert "T.parallel" in lowered.mod.script()
    for a, b in zip(run(lowered, *cases.values), interpret(graph, *cases.values), strict=True):
        assert torch.equal(a, b)


def test_code_has_no_512_bit_registers() -> None:
    cases = Cases(1)
    x = cases.floats(2, 1000)
    q = Quantize(DType.UINT8, 0, 255)(Exp()(x), const(0.1), const(3))
    fc = IntLinear(3)(q, const(torch.ones(16, 1000, dtype=torch.int8)))
    lowered = lower(fused(cases.inputs, [Softmax()(x), fc]), TARGET)
    kernels = {g: f for g, f in lowered.mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    named = {g: f.with_attr("global_symbol", g.name_hint) for g, f in kernels.items()}
    target = tvm.target.Target(dict(TARGET.tvm))
    assembly = tvm.compile(tvm.IRModule(named), target=target).mod.inspect_source("asm")
    assert "%ymm" in assembly and "%zmm" not in assembly


# ---------------------------------------------------------------------------------- completeness


def _examples() -> list[Node]:
    """A node of every op that has a kernel; elementwise formulas have one kernel for all."""
    x, y = floats(2, 4), floats(2, 4)
    image, last = floats(1, 4, 4, 8), const(torch.ones(8, 8, 1, 1))
    truth = Input(TensorType((2, 4), DType.BOOL))()
    q = Input(TensorType((2, 4), DType.UINT8, CODES))()
    qimage = Input(TensorType((1, 4, 4, 8), DType.UINT8, CODES))()
    acc = Input(TensorType((2, 4), DType.INT32))()
    ids = Input(TensorType((2, 4), DType.INT64))()
    w, code = const(torch.ones(3, 4)), const(torch.ones(3, 4, dtype=torch.int8))
    s, z, row = const(0.1), const(3), const(torch.ones(4))
    wimage = const(torch.ones(8, 8, 1, 1, dtype=torch.int8))
    linear = IntLinear()(q, code)
    packed = region(rq := Requantize(DType.UINT8, CODES)(linear, s), [linear, rq])
    found = [
        Permute((1, 0))(x), Slice(0, 0, 1)(x), Concat(0)(x, y), Pad(((1, 0), (0, 0)))(x),
        Expand((3, 2, 4))(x), Flip((0,))(x), Dilate((2, 1))(x), Gather(0)(x, ids),
        GatherElements(0)(x, ids), Arange(0, 1, 5)(), Full((2,), 1.0, DType.FLOAT32)(),
        Add()(x, y), Sub()(x, y), Where()(truth, x, y), Compare(Relation.LT)(x, y),
        Not()(truth), Prelu()(x, row), Clamp(0.0)(x), Div()(x, y),
        Conv2d(channels_last=True)(image, last), Linear()(x, w), Matmul()(floats(4, 2), x),
        LayerNorm(1e-5)(x, row, row), RmsNorm(1e-5)(x, row), Softmax()(x),
        Reduce(Reduction.SUM)(x), MaxPool2d(Window((2, 2)), True)(image),
        AvgPool2d(Window((2, 2)), channels_last=True)(image), Resize((2, 2))(image), Cumsum(1)(x),
        Quantize(DType.UINT8, 0, 255)(x, s, z), Dequantize()(q, s, z), rq,
        Lookup(DType.UINT8, CODES)(q, const(torch.zeros(256, dtype=torch.uint8))),
        IntConv2d(channels_last=True)(qimage, wimage), linear,
        IntMatmul()(Input(TensorType((4, 2), DType.UINT8, CODES))(), q),
        IntAdd(0, 0, 1, 1, CODES)(q, q), IntMul(0, 0)(q, q),
        IntSumPool2d(Window((2, 2)), channels_last=True)(qimage), DynamicQuantize()(x),
        Rescale()(acc, s, s), packed, pack(packed, Context(TARGET)),
        WeightOnlyLinear()(x, code, const(torch.ones(3))),
        GroupedIntLinear(2)(q, code, const(torch.ones(3, 2, dtype=torch.int8))),
    ]  # fmt: skip
    found += [And()(truth, truth), Or()(truth, truth), Cast(DType.INT32)(x)]
    found += [TruncDiv()(whole := Input(TensorType((2, 4), DType.INT64))(), whole)]
    rest = [op for op in ALL if issubclass(op, Elementwise)]
    return found + [_formula(op, x) for op in rest if op not in {type(n.op) for n in found}]


def _formula(op: type[Op], x: Node) -> Node:
    """An elementwise op of float operands whose fields, if any, only need some number."""
    fields = {f.name: 2 for f in dataclasses.fields(op) if f.default is dataclasses.MISSING}
    return op(**fields)(*[x] * op.arity[0])


@pytest.mark.parametrize("target", targets.DONE, ids=lambda t: t.name)
def test_every_op_has_a_lowering_or_a_listed_refusal(target) -> None:
    covered = {type(step.op) for node in _examples() for step in _steps(node)}
    covered |= {Region}
    for op in ALL:
        listed = op in target.support or op in STRUCTURAL
        assert op in covered or listed, f"{op.__name__}: no example and no refusal"
        assert not (op in covered and op in target.support), op
    for node in _examples():
        assert target.refuses(node) is None, node


def _steps(node: Node) -> list[Node]:
    return list(node.op.body(node.inputs)) if isinstance(node.op, Region) else [node]


def test_structural_ops_need_no_kernel() -> None:
    x = floats(2, 4)
    both = Tuple()(x, Gelu()(x))
    lowered = lower(fused([x], [Get(1)(both), Get(0)(both)]), TARGET)
    value = torch.randn(2, 4)
    got = run(lowered, value)
    assert torch.equal(got[1], value) and torch.equal(got[0], Gelu().eval(value))


def test_facts_for_the_passes() -> None:
    sums = TARGET.sums(0, 255)
    assert [s.rule.products if s.rule else None for s in sums] == [16, 8, 4, 2, None]
    assert {(s.low, s.high) for s in sums} == {(0, 255)}
    *moved, exact = TARGET.sums(-127, 127)
    assert {(s.low, s.high) for s in moved} == {(0, 254)}
    assert (exact.rule, exact.low, exact.high) == (None, -127, 127)
    assert TARGET.packing(Gelu()(floats(2, 4))) is None
    assert TARGET.refuses(Reshape((4, 2))(floats(2, 4))) is None
    assert TARGET.refuses_integer(Linear()(floats(2, 4), const(torch.ones(3, 4)))) is None


