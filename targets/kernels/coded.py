"""Linear layers whose weights are codes: float sums of decoded ones, or int32 sums in groups."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.ops import GroupedIntLinear, Packing, WeightOnlyLinear

from .decode import OFFSET, Coding
from .dot import Dot
from .gemv import gemv
from .geometry import Linear
from .launch import Answer, Launch, Machine, Miss, dims
from .matmul import linear
from .plan import plan_linear, row_lanes
from .weights import Weight, chosen, code_range

if TYPE_CHECKING:
    from .anchors import Epilogue

CODED = (WeightOnlyLinear, GroupedIntLinear)
# Codes that 4 bits hold.
NARROW = 7


@dataclass(frozen=True)
class CodedProduct:
    """Sizes, instruction and coding of one such layer; shift is added to the codes of x."""

    g: Linear
    dot: Dot
    coding: Coding
    in_dtype: str
    shift: int = 0

    @property
    def single(self) -> bool:
        """Whether there is one row, so that weights are decoded where they are used."""
        return self.g.single

    @property
    def packing(self) -> Packing:
        if self.single:
            return self.coding.packing(row_lanes(self.g, self.dot), self.dot)
        plan = plan_linear(self.g, self.dot, self.in_dtype)
        return self.coding.packing(plan.lanes, self.dot)

    @property
    def key(self) -> Hashable:
        return self.g, self.dot.name, self.coding, self.in_dtype, self.shift

    @staticmethod
    def of(anchor: Node, weight: Weight, machine: Machine) -> CodedProduct | Miss:
        x, w, scale, *_ = anchor.inputs
        n, k = w.tensor.ints
        narrow = weight.value.numel() == 0 or int(weight.value.abs().max()) <= NARROW
        bits = 4 if anchor.op.group is not None and narrow else 8  # type: ignore[attr-defined]
        group = anchor.op.group  # type: ignore[attr-defined]
        g = Linear(dims(x.tensor.shape[:-1]), k, n)
        coding = Coding(bits, group, scale.tensor.dtype.value)
        made = CodedProduct(g, machine.isa[0], coding, x.tensor.dtype.value)
        if isinstance(anchor.op, WeightOnlyLinear):
            return made._with(machine, "float32")
        isa = [d for d in machine.isa if d.rows == 1]
        found = chosen(isa, weight.value + (OFFSET if narrow else 0), code_range(x))
        if made.single and found is not None and group % found[0].depth == 0:
            return replace(made, dot=found[0], shift=found[1])
        return made._with(machine, machine.templates.codes)

    def _with(self, machine: Machine, dtype: str) -> CodedProduct | Miss:
        """With the first instruction on two operands of the type."""
        dot = next((d for d in machine.isa if d.a_dtype == d.b_dtype == dtype), None)
        return replace(self, dot=dot) if dot else Miss(f"no instruction for {dtype}")

    def start(self, anchor: Node, weight: Weight) -> Node | torch.Tensor | None:
        """Where the sums start: the bias, or what the shifted codes of x add too much."""
        if isinstance(anchor.op, WeightOnlyLinear):
            return anchor.inputs[3] if len(anchor.inputs) > 3 else None
        if self.shift == 0:
            return None
        factors = Weight.of(anchor.inputs[2])
        assert factors is not None and isinstance(anchor.op, GroupedIntLinear)
        ones = torch.full((1, self.g.k), -self.shift, dtype=torch.int32)
        return arith.grouped_sum(ones, weight.value, factors.value, anchor.op.group).reshape(-1)

    def function(self, out_dtype: str, epilogue: Epilogue, init: bool) -> Any:
        template = gemv if self.single else linear
        return template(
            self.g, self.dot, coding=self.coding, in_dtype=self.in_dtype, out_dtype=out_dtype,
            epilogue=epilogue, operands=epilogue.operands, init=init, shift=self.shift,
        )  # fmt: skip


def coded_packing(anchor: Node, machine: Machine) -> Packing | None:
    """How the kernel of such a layer reads its weights; None where the plain loops compute it."""
    weight = Weight.of(anchor.inputs[1])
    if weight is None or not machine.templates.coded or _rows(anchor) is None:
        return None
    made = CodedProduct.of(anchor, weight, machine)
    return made.packing if isinstance(made, CodedProduct) else None


def _rows(anchor: Node) -> int | None:
    """Rows of the product; a symbol counts as one. None: there are none."""
    rows = math.prod(d for d in dims(anchor.tensor.shape[:-1]) if isinstance(d, int))
    return rows or None


def lower_coded(anchor: Node, epilogue: Epilogue, machine: Machine) -> Answer:
    """[unpack...] coded product elementwise*."""
    weight, scales = (Weight.of(i) for i in anchor.inputs[1:3])
    if weight is None or scales is None:
        return Miss("weights and their scales must be constants")
    if not machine.templates.coded:
        return None
    product = CodedProduct.of(anchor, weight, machine)
    if isinstance(product, Miss):
        return product
    start = product.start(anchor, weight)
    starts = [] if start is None else [start]
    packing = product.packing
    laid = weight.laid(packing), scales.laid(packing.of_scales)
    out = epilogue.site.body[-1].tensor.dtype.value
    operands = [anchor.inputs[0], laid[0], *starts, laid[1], *epilogue.leaves]
    key = ("coded", product.key, bool(starts), epilogue.key)

    def build() -> Any:
        return product.function(out, epilogue, bool(starts))

    return Launch(key, build, operands, dot=product.dot)
