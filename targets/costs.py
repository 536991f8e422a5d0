"""Costs: how long layers and conversions take on a target, measured or estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.graph import Node
from qcompiler.target import Sums, Times
from qcompiler.types import DType, Sym

from .database import CONVERTED, DEQUANTIZE, QUANTIZE
from .kernels.anchors import Product, geometry_of
from .kernels.dot import Dot
from .kernels.geometry import Conv, Linear
from .kernels.launch import Machine, Miss
from .kernels.plan import cycles, fitted
from .kernels.weights import moved, takes_codes

CYCLES = 2600.0
"""Of a microsecond, on the machines that the shipped times are from."""
CONVERSIONS = {QUANTIZE: 7.1, DEQUANTIZE: 3.0}
"""Microseconds of CONVERTED elements where they were not measured (AVX2, one core)."""


def microseconds(
    node: Node, choices: Sequence[Sums | None], codes: DType, machine: Machine
) -> Times | None:
    """Of a convolution or linear layer with a constant weight, on one core, for each choice.

    choices: how products of codes of that type are added; None: the layer computes in float32.
    The result is None where there is no kernel for one of them, or its sizes are not known. Times
    and estimates are never mixed: estimates of BERT's layers were 10 % off.
    """
    g = geometry_of(node)
    if isinstance(g, Miss) or any(isinstance(d, Sym) for d in node.tensor.shape):
        return None
    dots = [_dot(g, sums, codes, machine) for sums in choices]
    found = [dot for dot in dots if dot is not None]
    if len(found) < len(dots):
        return None
    products = [
        Product(g, fitted(g, dot), dot.a_dtype if sums is None else codes.value, 0, 0,
                machine.templates)
        for dot, sums in zip(found, choices, strict=True)
    ]  # fmt: skip
    least = [machine.least(p.name) for p in products]
    known = [us for us in least if us is not None]
    if len(known) == len(least):
        return Times(tuple(known), measured=True)
    return Times(tuple(cycles(p.g, p.dot) / CYCLES for p in products), measured=False)


def conversion(node: Node, name: str, machine: Machine) -> float:
    """Microseconds of converting the node's value: QUANTIZE or DEQUANTIZE."""
    us = machine.least(name)
    shape = [d for d in node.tensor.shape if not isinstance(d, Sym)]
    return (CONVERSIONS[name] if us is None else us) * math.prod(shape) / CONVERTED


def _dot(g: Conv | Linear, sums: Sums | None, codes: DType, machine: Machine) -> Dot | None:
    """The instruction that computes it where weights are proven for these sums."""
    isa = [dot for dot in machine.isa if machine.templates.takes(g, dot)]
    if sums is None:
        return next((d for d in isa if d.a_dtype == d.b_dtype == DType.FLOAT32.value), None)
    most = sums.rule.products if sums.rule is not None else 0
    fitting = [d for d in isa if takes_codes(d) and moved(d, codes.limits) is not None]
    return next((d for d in fitting if d.sums is None or d.sums.products <= most), None)
