"""Integerize: dequantize, op, quantize => the integer op and its requantize, by the law."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Const,
    Conv2d,
    Dequantize,
    Get,
    GroupedIntLinear,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    LeakyRelu,
    Linear,
    Matmul,
    Mul,
    Prelu,
    Quantize,
    Requantize,
    Rescale,
    WeightOnlyLinear,
    const,
)  # fmt: skip
from qcompiler.pipeline import Pass, declare
from qcompiler.rewrite import Miss, Rule, Sweep, rewrite
from qcompiler.types import DType, QParams

from .propagate import RULES as MOVES
from .tables import LIMITS, concat_of_codes, function_into_table

Result = Node | Miss | None


def wanted(node: Node) -> bool:
    """Whether the node was assigned to integers."""
    return node.note.precision is DType.INT8


def codes_of(node: Node) -> Node | None:
    """The 8-bit codes behind a dequantize with static per-tensor parameters."""
    if not isinstance(node.op, Dequantize):
        return None
    (codes, *_) = node.inputs
    quant = codes.tensor.quant
    narrow = codes.tensor.dtype.is_code and quant is not None and quant.per_tensor
    return codes if narrow else None


def sums_of(node: Node) -> Node | None:
    """The int32 sums behind a dequantize."""
    if not isinstance(node.op, Dequantize):
        return None
    (codes, *_) = node.inputs
    return codes if codes.tensor.dtype is DType.INT32 and codes.tensor.quant else None


def quant(node: Node) -> QParams:
    params = node.tensor.quant
    assert params is not None
    return params


def real(sums: Node) -> Node:
    """int32 sums as a float value: `float32(acc) * float32(scale)`, per channel."""
    params = quant(sums)
    scale = const(list(params.scale), DType.FLOAT32)
    after = 0 if params.axis is None else sums.tensor.rank - 1 - params.axis
    shape = () if params.axis is None else (len(params.scale), *[1] * after)
    assert isinstance(scale.op, Const)
    return Dequantize()(sums, const(scale.op.value.reshape(shape)), const(0))


def multiplier(sums: Node, out: QParams, factor: float = 1.0) -> Node:
    """The requantize multiplier of int32 sums, shaped to broadcast along their channels."""
    import torch

    params = quant(sums)
    scales = torch.tensor([s * factor for s in params.scale], dtype=torch.float64)
    m = arith.multiplier(1.0, scales, out.scale[0], what=f"%{sums.name}")
    after = 0 if params.axis is None else sums.tensor.rank - 1 - params.axis
    shape = () if params.axis is None else (-1, *[1] * after)
    return const(m.reshape(shape))


def weight_into_codes(node: Node, sweep: Sweep) -> Result:
    """quantize(W) => constant codes."""
    match node:
        case Node(Quantize() as op, (Node(Const() as w), Node(Const() as s), Node(Const() as z))):
            return Const(op.eval(w.value, s.value, z.value), quant(node))(name=node.name)
    return None


def bias_codes(anchor: Node, x: QParams, w: QParams) -> list[Node]:
    """The bias as int32 codes of scale sx * sw."""
    import torch

    biases = [b for b in anchor.inputs[2:] if isinstance(b.op, Const)]
    scales = torch.tensor(w.scale, dtype=torch.float64)
    return [
        const(arith.quantize_bias(b.op.value, x.scale[0], scales), DType.INT32, f"{b.name}.q")
        for b in biases
        if isinstance(b.op, Const)
    ]


def layer_into_sums(node: Node, sweep: Sweep) -> Result:
    """conv2d(dq(x), dq(W), b) => dq(int_conv2d(x, W, int32(b))); linear likewise."""
    if not wanted(node) or type(node.op) not in (Conv2d, Linear):
        return None
    x, w = codes_of(node.inputs[0]), node.inputs[1]
    if x is None or not isinstance(w.op, Dequantize):
        return Miss("an operand is not codes")
    codes = w.inputs[0]
    bias = bias_codes(node, quant(x), quant(codes))
    if len(bias) != len(node.inputs) - 2:
        return Miss("its bias is not constant")
    zero = quant(x).zero_point
    if isinstance(node.op, Conv2d):
        op = node.op
        form = IntConv2d(op.stride, op.padding, op.dilation, op.groups, op.channels_last, zero)
        return real(form(x, codes, *bias))
    return real(IntLinear(zero)(x, codes, *bias))


def rows_into_sums(node: Node, sweep: Sweep) -> Result:
    """linear(dq(rows), dq(W), b) => rescale(int_linear(codes, W), row scale, sw) + b."""
    if not wanted(node) or not isinstance(node.op, Linear):
        return None
    x, w, *bias = node.inputs
    if not (isinstance(x.op, Dequantize) and isinstance(x.inputs[0].op, Get)):
        return None
    if not isinstance(w.op, Dequantize):
        return Miss("its weight is not codes")
    if w.op.group is not None:
        sums, scales = grouped_sums(x.inputs[0], w, w.op.group)
    else:
        sums = IntLinear(0)(x.inputs[0], w.inputs[0])
        scales = const(list(quant(w.inputs[0]).scale), DType.FLOAT32)
    result = Rescale()(sums, x.inputs[1], scales)
    return Add()(result, *bias) if bias else result


def grouped_sums(x: Node, weight: Node, group: int) -> tuple[Node, Node]:
    """(sums of codes with the integer factors of the weight's groups, scale per channel)."""
    codes, scale, _ = weight.inputs
    assert isinstance(scale.op, Const)
    channel, factors = arith.factored(scale.op.value)
    named = const(factors, DType.INT8, f"{codes.name}.factors")
    return GroupedIntLinear(group)(x, codes, named), const(channel)


def weights_into_codes(node: Node, sweep: Sweep) -> Result:
    """linear(x, dq(W), b) => weight_only_linear(x, W, scale, b), for constant codes W."""
    if type(node.op) is not Linear or wanted(node):
        return None
    x, w, *bias = node.inputs
    if not isinstance(w.op, Dequantize) or not isinstance(w.inputs[0].op, Const):
        return None
    codes, scale, _ = w.inputs
    return WeightOnlyLinear(w.op.group)(x, codes, scale, *bias)


def matmul_into_sums(node: Node, sweep: Sweep) -> Result:
    """matmul(dq(a), dq(b)) => dq(int_matmul(a, b))."""
    if not wanted(node) or not isinstance(node.op, Matmul):
        return None
    a, b = map(codes_of, node.inputs)
    if a is None or b is None:
        return Miss("an operand is not codes")
    depth = a.tensor.shape[-1]
    if not isinstance(depth, int):
        return Miss("the inner dimension is symbolic, so int32 is not proven")
    (qa, qb) = (quant(a), quant(b))
    bounds = arith.matmul_bounds(
        depth, (qa.qmin, qa.qmax), qa.zero_point, (qb.qmin, qb.qmax), qb.zero_point
    )
    if not arith.fits_int32(*bounds):
        return Miss(f"{depth} products do not fit int32")
    return real(IntMatmul(qa.zero_point, qb.zero_point)(a, b))


def pool_into_sums(node: Node, sweep: Sweep) -> Result:
    """quantize(avg_pool(dq(x))) => requantize(int_sum_pool(x), sx / (n * sy))."""
    match unclamped(node):
        case (Node(AvgPool2d() as pool, (inner,)) as pooled, out) if wanted(pooled):
            x = codes_of(inner)
            if x is None:
                return Miss("its operand is not codes")
            height, width = inner.tensor.shape[-2:]
            if not isinstance(height, int) or not isinstance(width, int):
                return Miss("the size of its images is symbolic")
            sums = IntSumPool2d(pool.window, quant(x).zero_point, pool.channels_last)(x)
            counts = pool.counts(height, width).double()
            m = arith.multiplier(1.0, quant(x).scale[0] / counts.reshape(-1), out.scale[0])
            one = bool((counts == counts.reshape(-1)[0]).all())
            m = m[0] if one else m.reshape(counts.shape)
            return Requantize(node.tensor.dtype, out)(sums, const(m))
    return None


def unclamped(node: Node) -> tuple[Node, QParams] | None:
    """What a quantize reads, looking through a clamp; and parameters that include the clamp."""
    if not isinstance(node.op, Quantize) or node.tensor.quant is None:
        return None
    (source, out) = (node.inputs[0], node.tensor.quant)
    if not out.per_tensor:
        return None
    if isinstance(source.op, Clamp):
        low, high = arith.clamp_codes(
            source.op.lo, source.op.hi, out.scale[0], out.zero_point, out.qmin, out.qmax
        )
        return source.inputs[0], replace(out, qmin=low, qmax=high)
    return source, out


def quantize_into_requantize(node: Node, sweep: Sweep) -> Result:
    """quantize(clamp(dq(sums))) => requantize(sums, m)."""
    found = unclamped(node)
    sums = sums_of(found[0]) if found else None
    if found is None or sums is None:
        return None
    return Requantize(node.tensor.dtype, found[1])(sums, multiplier(sums, found[1]))


def prelu_into_requantize(node: Node, sweep: Sweep) -> Result:
    """quantize(prelu(dq(sums), a)) => requantize(sums, m, m * a)."""
    found = unclamped(node)
    if found is None or not isinstance(found[0].op, Prelu | LeakyRelu):
        return None
    act, out = found
    sums = sums_of(act.inputs[0])
    if sums is None:
        return None
    positive = multiplier(sums, out)
    assert isinstance(positive.op, Const)
    slope = const(act.op.slope) if isinstance(act.op, LeakyRelu) else act.inputs[1]
    if not isinstance(slope.op, Const):
        return Miss("its slope is not constant")
    m = positive.op.value.double() * slope.op.value.double()
    return Requantize(node.tensor.dtype, out)(sums, positive, const(m.float()))


def residual(codes: Node, sweep: Sweep) -> Node | None:
    """The int32 value with 8 fraction bits behind codes that only a residual add reads."""
    match codes:
        case Node(Requantize(out=out), (sums, Node(Const() as m))) if sweep.only_use(codes):
            if not isinstance(sums.op, IntConv2d | IntLinear | IntMatmul):
                return None
            scale, (low, high) = arith.residual_params(
                out.scale[0], out.zero_point, out.qmin, out.qmax
            )
            wide = QParams((scale,), 0, low, high)
            return Requantize(DType.INT32, wide)(sums, const(arith.residual_multiplier(m.value)))
    return None


def add_into_int_add(node: Node, sweep: Sweep) -> Result:
    """quantize(clamp(dq(a) + dq(b))) => requantize((a - za) * Ma + (b - zb) * Mb, 2^-F)."""
    match unclamped(node):
        case (Node(Add(), (p, q)) as add, out) if wanted(add):
            a, b = codes_of(p), codes_of(q)
            if a is None or b is None:
                return Miss("an operand is not codes")
            # The later layer is the one fused with the addition; the other is read from memory.
            wide = residual(b, sweep) if sweep.only_use(q) else None
            b = wide or b
            if wide is None and sweep.only_use(p):
                a = residual(a, sweep) or a
            return _int_add(node, a, b, out)
    return None


def _int_add(node: Node, a: Node, b: Node, out: QParams) -> Node:
    (qa, qb) = (quant(a), quant(b))
    ma, mb, shift = arith.add_multipliers(
        qa.scale[0], centred(qa), qb.scale[0], centred(qb), out.scale[0]
    )
    fine = QParams((out.scale[0] * 2.0**-shift,), 0, *LIMITS)
    sums = IntAdd(qa.zero_point, qb.zero_point, ma, mb, fine)(a, b)
    return Requantize(node.tensor.dtype, out)(sums, const(2.0**-shift))


def centred(params: QParams) -> tuple[int, int]:
    """The range of `q - zp`."""
    return params.qmin - params.zero_point, params.qmax - params.zero_point


def mul_into_int_mul(node: Node, sweep: Sweep) -> Result:
    """quantize(clamp(dq(a) * dq(b))) => requantize((a - za) * (b - zb), sa * sb / sy)."""
    match unclamped(node):
        case (Node(Mul(), (p, q)) as mul, out) if wanted(mul):
            a, b = codes_of(p), codes_of(q)
            if a is None or b is None:
                return Miss("an operand is not codes")
            sums = IntMul(quant(a).zero_point, quant(b).zero_point)(a, b)
            return Requantize(node.tensor.dtype, out)(sums, multiplier(sums, out))
    return None


RULES: tuple[Rule, ...] = (
    weight_into_codes, weights_into_codes, layer_into_sums, rows_into_sums, matmul_into_sums,
    pool_into_sums,
    quantize_into_requantize, prelu_into_requantize, add_into_int_add, mul_into_int_mul,
    concat_of_codes, function_into_table,
)  # fmt: skip


@declare("integerize", Level.QDQ, Level.INTEGER)
@dataclass(frozen=True)
class Integerize(Pass):
    """Apply the rules above until nothing changes."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        return rewrite(graph, (*MOVES, *RULES), ctx)


integerize = Integerize()
