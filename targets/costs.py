"""Costs: how long a layer takes with each of its sums, by the times measured of its products."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.graph import Node
from qcompiler.target import Sums
from qcompiler.types import DType

from .kernels.anchors import Product, geometry_of
from .kernels.dot import Dot
from .kernels.geometry import Conv, Linear
from .kernels.launch import Machine, Miss
from .kernels.plan import fitted
from .kernels.weights import moved, takes_codes


def microseconds(
    node: Node, choices: Sequence[Sums], codes: DType, machine: Machine
) -> list[float] | None:
    """Of a convolution or linear layer with a constant weight, on one core, for each choice.

    choices: how products of codes of that type are added. None: they were not all measured; times
    and estimates are not to be compared (estimates of BERT's layers were 10 % off).
    """
    g = geometry_of(node)
    if isinstance(g, Miss):
        return None
    times = []
    for sums in choices:
        dot = _dot(g, sums, codes, machine)
        if dot is None:
            return None
        name = Product(g, fitted(g, dot), codes.value, 0, 0, machine.templates).name
        times.append(machine.least(name))
    known = [us for us in times if us is not None]
    return known if len(known) == len(times) else None


def _dot(g: Conv | Linear, sums: Sums, codes: DType, machine: Machine) -> Dot | None:
    """The instruction that computes it where weights are proven for these sums."""
    isa = [dot for dot in machine.isa if machine.templates.takes(g, dot)]
    most = sums.rule.products if sums.rule is not None else 0
    fitting = [d for d in isa if takes_codes(d) and moved(d, codes.limits) is not None]
    return next((d for d in fitting if d.sums is None or d.sums.products <= most), None)
