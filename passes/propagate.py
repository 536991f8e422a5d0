"""Propagate: move quantize up and dequantize down through data movement, so that codes move."""

from __future__ import annotations

from dataclasses import replace

from qcompiler import arith
from qcompiler.graph import Level, Node
from qcompiler.op import Movement
from qcompiler.ops import Concat, Const, Dequantize, Dilate, GatherElements, Pad, Quantize
from qcompiler.pipeline import rewrites
from qcompiler.rewrite import Miss, Sweep
from qcompiler.types import QParams


def static_params(node: Node) -> QParams | None:
    """The per-tensor parameters of a quantize or dequantize with constant operands."""
    codes = node if isinstance(node.op, Quantize) else node.inputs[0]
    quant = codes.tensor.quant
    constant = all(isinstance(i.op, Const) for i in node.inputs[1:])
    return quant if quant is not None and quant.per_tensor and constant else None


def single(node: Node) -> bool:
    """Movement of one tensor; other operands, if any, are indices."""
    return isinstance(node.op, Movement) and not isinstance(node.op, Concat)


def on_codes(op: Movement, params: QParams) -> Movement:
    """The movement as it applies to codes: a border of a value is one of that value's code."""
    if not isinstance(op, Pad | Dilate):
        return op
    code, _ = arith.clamp_codes(
        op.value, op.value, params.scale[0], params.zero_point, params.qmin, params.qmax
    )
    return replace(op, value=float(code))


def keeps_fill(op: Movement, params: QParams) -> bool:
    """Whether the value that the movement fills in, if any, is one that a code stands for."""
    if not isinstance(op, Pad | Dilate):
        return True
    filled = on_codes(op, params)
    assert isinstance(filled, Pad | Dilate)
    return (filled.value - params.zero_point) * params.scale[0] == op.value


def dequantize_below(node: Node, sweep: Sweep) -> Node | Miss | None:
    """move(dequantize(q)) => dequantize(move(q))."""
    if not single(node) or not isinstance(node.inputs[0].op, Dequantize):
        return None
    dequantize = node.inputs[0]
    params = static_params(dequantize)
    if params is None:
        return Miss("the scale is not one constant")
    assert isinstance(node.op, Movement)
    if not keeps_fill(node.op, params):
        return Miss("its fill value is no code")
    op = on_codes(node.op, params)
    codes = op(dequantize.inputs[0], *node.inputs[1:], note=replace(node.note, scheme=None))
    return dequantize.op(codes, *dequantize.inputs[1:])


def moves_codes(node: Node) -> bool:
    """Whether the node moves what was codes: moving those a second time costs less than
    quantizing the float value, which another reader keeps."""
    while single(node):
        node = node.inputs[0]
    return isinstance(node.op, Dequantize)


def quantize_above(node: Node, sweep: Sweep) -> Node | Miss | None:
    """quantize(move(x)) => move(quantize(x)); a value filled in is rounded, too."""
    match node:
        case Node(Quantize() as quantize, (moved, scale, zero)) if single(moved):
            if isinstance(moved.op, GatherElements):
                return Miss("its indices are counted in elements")
            if not sweep.only_use(moved) and not moves_codes(moved):
                return Miss(f"%{moved.name} has a second user")
            params = static_params(node)
            if params is None:
                return Miss("the scale is not one constant")
            assert isinstance(moved.op, Movement)
            op = on_codes(moved.op, params)
            return op(quantize(moved.inputs[0], scale, zero), *moved.inputs[1:])
    return None


def quantize_of_dequantize(node: Node, sweep: Sweep) -> Node | Miss | None:
    """quantize(dequantize(q)) => q, for equal parameters."""
    match node:
        case Node(Quantize(), (Node(Dequantize(), (codes, *_)) as inner, *_)):
            (a, b) = (static_params(node), static_params(inner))
            same = a is not None and b is not None and _covers(a, b)
            if not same or codes.tensor.dtype is not node.tensor.dtype:
                return Miss("the parameters differ")
            return codes
    return None


def _covers(outer: QParams, inner: QParams) -> bool:
    """Whether requantizing from inner to outer changes no code."""
    same = (outer.scale, outer.zero_point) == (inner.scale, inner.zero_point)
    return same and outer.qmin <= inner.qmin and inner.qmax <= outer.qmax


RULES = (dequantize_below, quantize_above, quantize_of_dequantize)
propagate = rewrites("propagate", RULES, needs=Level.QDQ)
