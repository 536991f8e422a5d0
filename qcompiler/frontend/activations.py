"""Activations: one op each where the IR has it, else a short composition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Number, Value
from qcompiler.frontend.elementwise import clamp, same_dtype, times, unary
from qcompiler.frontend.errors import Absent, Refusal
from qcompiler.graph import Node
from qcompiler.ops import (
    Compare,
    Elu,
    Gelu,
    Hardsigmoid,
    Hardswish,
    LeakyRelu,
    Mul,
    Neg,
    Prelu,
    Relation,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
    Where,
)  # fmt: skip

aten = torch.ops.aten

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
LINEAR_FROM = 20  # PyTorch's default threshold of softplus, the IR's own


def elu(b: Builder, x: Node, alpha: float, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        raise Refusal("elu with an input scale")
    return times(b, b(Elu(float(alpha)), x), scale)


def celu(b: Builder, x: Node, alpha: float = 1.0) -> Value:
    return times(b, b(Elu(1.0), times(b, x, 1 / alpha)), alpha)


def softplus(b: Builder, x: Node, beta: float = 1, threshold: float = 20) -> Value:
    if threshold != LINEAR_FROM:
        raise Refusal(f"softplus with threshold {threshold}; only {LINEAR_FROM} is supported")
    return times(b, b(Softplus(), times(b, x, beta)), 1 / beta)


def prelu(b: Builder, x: Node, slope: Node) -> Value:
    rank = x.tensor.rank
    if rank > 2 and slope.tensor.shape != (1,):
        slope = b.reshape(slope, (*slope.tensor.shape, *[1] * (rank - 2)))
    return b(Prelu(), x, slope)


def threshold(b: Builder, x: Node, limit: Number, value: Number) -> Value:
    above = b(Compare(Relation.GT), x, b.const(limit, x.tensor.dtype))
    return b(Where(), above, x, b.const(value, x.tensor.dtype))


def gelu(b: Builder, x: Node, approximate: str = "none") -> Value:
    return b(Gelu(tanh=approximate == "tanh"), x)


def glu(b: Builder, x: Node, axis: int = -1) -> Value:
    axis = axis % x.tensor.rank
    half = b.out.shape[axis]
    gate = b.slice(x, axis, half, x.tensor.shape[axis])
    return b(Mul(), b.slice(x, axis, 0, half), b(Sigmoid(), gate))


def rrelu(b: Builder, x: Node, low: float, high: float, training: bool) -> Value:
    """In eval mode the slope is the middle of its range."""
    if training:
        raise Refusal("rrelu in training mode; export the model in eval mode")
    return b(LeakyRelu((low + high) / 2), x)


def rrelu_with_noise(
    b: Builder, x: Node, _: Any, low: float, high: float, training: bool, *__: Any
) -> Value:
    return rrelu(b, x, low, high, training), Absent("the noise of rrelu")


ROWS: Mapping[Any, Handler] = {
    aten.rrelu.default: lambda b, x, low, high, training, *_: rrelu(b, x, low, high, training),
    aten.rrelu_with_noise_functional.default: rrelu_with_noise,
    aten._prelu_kernel.default: lambda b, x, slope: b(Prelu(), x, slope),
    aten.celu.default: celu,
    aten.elu.default: elu,
    aten.gelu.default: gelu,
    aten.glu.default: glu,
    aten.hardsigmoid.default: same_dtype(Hardsigmoid()),
    aten.hardswish.default: same_dtype(Hardswish()),
    aten.hardtanh.default: clamp,
    aten.leaky_relu.default: lambda b, x, slope: b(LeakyRelu(float(slope)), x),
    aten.log_sigmoid.default: lambda b, x: b(Neg(), b(Softplus(), b(Neg(), x))),
    aten.mish.default: lambda b, x: b(Mul(), x, b(Tanh(), b(Softplus(), x))),
    aten.prelu.default: prelu,
    aten.relu.default: lambda b, x: clamp(b, x, 0),
    aten.relu6.default: lambda b, x: clamp(b, x, 0, 6),
    aten.selu.default: lambda b, x: elu(b, x, SELU_ALPHA, SELU_SCALE),
    aten.sigmoid.default: unary(Sigmoid()),
    aten.silu.default: same_dtype(Silu()),
    aten.softplus.default: softplus,
    aten.tanh.default: unary(Tanh()),
    aten.threshold.default: threshold,
}
