"""The verifier: types inferred again, names, and one spec per level."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler import arith
from qcompiler.graph import Graph, Level, Node
from qcompiler.op import Movement, Op, OpError
from qcompiler.ops import (
    BatchNorm,
    Clamp,
    Const,
    Dequantize,
    DynamicQuantize,
    Get,
    Input,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Lookup,
    Quantize,
    Region,
    Requantize,
    Rescale,
    Unpack,
)  # fmt: skip
from qcompiler.types import DType, Sym, TensorType, TupleType

INTEGER_OPS: tuple[type[Op], ...] = (
    IntConv2d, IntLinear, IntMatmul, IntAdd, IntMul, IntSumPool2d, Requantize, Lookup,
    DynamicQuantize, Rescale,
)  # fmt: skip
QDQ_OPS: tuple[type[Op], ...] = (Quantize, Dequantize)
FUSED_OPS: tuple[type[Op], ...] = (Region, Unpack)

FORBIDDEN: dict[Level, tuple[type[Op], ...]] = {
    Level.FLOAT: INTEGER_OPS + QDQ_OPS + FUSED_OPS,
    Level.CALIBRATED: INTEGER_OPS + QDQ_OPS + FUSED_OPS,
    Level.PLANNED: INTEGER_OPS + QDQ_OPS + FUSED_OPS,
    Level.QDQ: (*(op for op in INTEGER_OPS if op is not DynamicQuantize), *FUSED_OPS, BatchNorm),
    Level.INTEGER: (*FUSED_OPS, BatchNorm),
    Level.FUSED: (BatchNorm,),
}


class VerifyError(ValueError):
    """A graph breaks a rule every graph keeps."""


def verify(graph: Graph) -> None:
    """Raises VerifyError naming the node, its op, what was expected and what was found."""
    _names(graph)
    inputs = set(graph.parameters)
    if len(inputs) < len(graph.parameters):
        twice = next(n for n in graph.parameters if graph.parameters.count(n) > 1)
        raise VerifyError(f"{twice!r}: declared as an input twice")
    for node in graph.nodes():
        _operands(node)
        _type(node)
        if isinstance(node.op, Input) and node not in inputs:
            raise VerifyError(f"{node!r}: an input that the graph does not declare")
        if isinstance(node.op, FORBIDDEN[graph.level]):
            level = graph.level.name
            raise VerifyError(f"{node!r}: {node.op.kind} may not occur at level {level}")
        body = node.op.body(node.inputs) if isinstance(node.op, Region) else (node,)
        for check in CHECKS[graph.level]:
            problem = next(filter(None, map(check, body)), None)
            if problem:
                raise VerifyError(f"{node!r}: {problem}")
    _state(graph)


def _names(graph: Graph) -> None:
    seen: dict[str, Node] = {}
    for node in graph.nodes():
        if not node.name:
            raise VerifyError(f"{node!r}: a node without a name; passes end with named(graph)")
        if node.name in seen:
            raise VerifyError(f"{node!r}: the name is taken by {seen[node.name]!r}")
        seen[node.name] = node


def _operands(node: Node) -> None:
    for i in node.inputs:
        if isinstance(i.type, TupleType) and not isinstance(node.op, Get):
            raise VerifyError(f"{node!r}: operand %{i.name} has several results; use get")


def _type(node: Node) -> None:
    try:
        expected = node.op.type_of(node.inputs)
    except (OpError, ValueError, TypeError) as e:
        raise VerifyError(f"{node!r}: {e}") from e
    for t in node.type.items if isinstance(node.type, TupleType) else (node.type,):
        problem = _malformed(t)
        if problem:
            raise VerifyError(f"{node!r}: {problem}")
    if expected != node.type:
        raise VerifyError(f"{node!r}: expected type {show(expected)}, got {show(node.type)}")


def _malformed(t: TensorType) -> str | None:
    """What no tensor can be: sizes that are no sizes, parameters that do not fit the codes."""
    for d in t.shape:
        if not isinstance(d, Sym) and (type(d) is not int or d < 0):
            return f"expected sizes or symbols as dimensions, got {d!r} in {t!r}"
    q = t.quant
    if q is None or t.dtype.is_float:
        return None
    low, high = t.dtype.limits
    if not low <= q.qmin <= q.qmax <= high:
        return f"codes in {q.qmin}..{q.qmax} are no {t.dtype.value}"
    if q.axis is None or q.group is not None:
        return None
    if not 0 <= q.axis < t.rank or t.shape[q.axis] != len(q.scale):
        return f"{len(q.scale)} scales along axis {q.axis} of {t!r}"
    return None


def show(type_: object) -> str:
    quant = type_.quant if isinstance(type_, TensorType) else None
    return f"{type_!r} {quant}" if quant else repr(type_)


def _state(graph: Graph) -> None:
    if len(graph.initial) != len(graph.state):
        raise VerifyError(f"{len(graph.state)} states but {len(graph.initial)} initial values")
    for (before, after), first in zip(graph.state, graph.initial, strict=True):
        if not isinstance(first.op, Const):
            raise VerifyError(f"state {before!r}: expected a Const initial value, got {first!r}")
        if not (before.type == after.type == first.type):
            raise VerifyError(f"state {before!r}: updated as {after!r}, starts as {first!r}")


def codes_have_params(node: Node) -> str | None:
    """A tensor of codes that integer arithmetic reads says what its codes stand for."""
    reads = (IntConv2d, IntLinear, IntMatmul, IntAdd, IntMul, IntSumPool2d, Lookup)
    if not isinstance(node.op, reads):
        return None
    for i in node.inputs[: 1 if isinstance(node.op, Lookup) else 2]:
        if i.tensor.dtype.is_code and i.tensor.quant is None and not _dynamic(i):
            return f"operand %{i.name} holds codes without quantization parameters"
    return None


def _dynamic(node: Node) -> bool:
    while node.inputs and not isinstance(node.op, DynamicQuantize | Get):
        node = node.inputs[0]
    return isinstance(node.op, Get | DynamicQuantize)


def zero_points_agree(node: Node) -> str | None:
    """An integer op subtracts the zero point its operand's codes have."""
    op = node.op
    pairs: list[tuple[int, Node]] = []
    if isinstance(op, IntConv2d | IntLinear | IntSumPool2d):
        pairs = [(op.zero_point, node.inputs[0])]
    elif isinstance(op, IntMatmul | IntAdd | IntMul):
        pairs = [(op.za, node.inputs[0]), (op.zb, node.inputs[1])]
    for zero_point, operand in pairs:
        quant = operand.tensor.quant
        if quant is not None and quant.zero_point != zero_point:
            expected = quant.zero_point
            return f"zero point {zero_point}, but %{operand.name} has {expected}"
    return None


def no_quantize_between_integers(node: Node) -> str | None:
    """No float detour: a quantize of a dequantize is a requantize or a table."""
    if not isinstance(node.op, Quantize):
        return None
    source = node.inputs[0]
    while len(source.inputs) == 1 and isinstance(source.op, Movement | Clamp):
        if source.note.precision is DType.FLOAT32:
            return None  # it was asked to stay float
        source = source.inputs[0]
    if isinstance(source.op, Dequantize):
        return f"quantizes the dequantized %{source.name}; integerize should have merged them"
    return None


def accumulators_are_int32(node: Node) -> str | None:
    """Sums of products are int32."""
    sums = (IntConv2d, IntLinear, IntMatmul, IntAdd, IntMul, IntSumPool2d)
    if isinstance(node.op, sums) and node.tensor.dtype is not DType.INT32:
        return f"expected an int32 accumulator, got {node.tensor.dtype.value}"
    return None


def quantizers_are_const(node: Node) -> str | None:
    """Scale and zero point of quantize and dequantize are Const operands."""
    if isinstance(node.op, Quantize) and not all(isinstance(i.op, Const) for i in node.inputs[1:]):
        return "expected Const scale and zero point"
    return None


def weights_are_codes(node: Node) -> str | None:
    """No float weight is quantized at run time."""
    if isinstance(node.op, Quantize) and isinstance(node.inputs[0].op, Const):
        return f"quantizes the constant %{node.inputs[0].name}; integerize should have folded it"
    return None


def codes_are_in_range(node: Node) -> str | None:
    """Constant codes keep the bounds that their type promises, and proofs rest on."""
    if not isinstance(node.op, Const) or node.op.quant_params is None:
        return None
    q, (low, high) = node.op.quant_params, node.op.bounds_of_value
    return None if q.qmin <= low <= high <= q.qmax else f"holds codes outside {q.qmin}..{q.qmax}"


def multipliers_are_finite(node: Node) -> str | None:
    """What accumulators are multiplied with is a number."""
    if not isinstance(node.op, Requantize | Rescale):
        return None
    for m in node.inputs[1:]:
        if isinstance(m.op, Const) and not bool(m.op.value.isfinite().all()):
            return f"the multiplier %{m.name} is not finite"
    return None


def sums_fit_int32(node: Node) -> str | None:
    """The int32 sums of constant weights are proven, whatever codes arrive."""
    if not isinstance(node.op, IntConv2d | IntLinear):
        return None
    x, *_ = node.inputs
    constants = [i.op for i in node.inputs[1:] if isinstance(i.op, Const)]
    if len(constants) < len(node.inputs) - 1:
        return None  # packed weights: proven before they were
    q = x.tensor.quant
    low, high = (q.qmin, q.qmax) if q else x.tensor.dtype.limits
    zero = node.op.zero_point  # what a border holds
    reach = _reach(constants, zero, min(low, zero), max(high, zero))
    return f"its sums reach {reach}, beyond int32" if reach >= 1 << 31 else None


def _reach(constants: list[Const], zero_point: int, low: int, high: int) -> int:
    """The largest magnitude of any sum on the way; constants: weight, and bias if there is one."""
    weight, *bias = (c.value for c in constants)
    rows = weight.reshape(weight.shape[0], -1)
    lows, highs = arith.int32_bounds(rows, bias[0] if bias else None, zero_point, low, high)
    return max(-int(lows.min()) - 1, int(highs.max()))


Check = Callable[[Node], "str | None"]
_FLOAT: tuple[Check, ...] = ()
_INTEGER: tuple[Check, ...] = (
    codes_have_params, zero_points_agree, no_quantize_between_integers, accumulators_are_int32,
    quantizers_are_const, weights_are_codes, codes_are_in_range, multipliers_are_finite,
    sums_fit_int32,
)  # fmt: skip
CHECKS: dict[Level, tuple[Check, ...]] = {
    Level.FLOAT: _FLOAT,
    Level.CALIBRATED: _FLOAT,
    Level.PLANNED: _FLOAT,
    Level.QDQ: (quantizers_are_const,),
    Level.INTEGER: _INTEGER,
    Level.FUSED: _INTEGER,
}
