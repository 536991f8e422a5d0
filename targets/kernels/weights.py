"""Constant weights of a product: which instruction they are proven for, and their packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Movement
from qcompiler.ops import Const, DynamicQuantize, Get, Input, Packing, Unpack, steps_of

from .dot import Dot
from .geometry import Conv, Linear
from .plan import channelwise, packing_of

if TYPE_CHECKING:
    import torch

# Rows of weights looked at before all of them are.
SAMPLE_ROWS = 64


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant weight [O, I/groups, KH, KW] or [O, I], and where it lies packed, if it does."""

    value: torch.Tensor
    packed: tuple[Node, Packing] | None = None

    @staticmethod
    def of(node: Node) -> Weight | None:
        """The weight that a constant, or an Unpack of one, stands for; None for anything else."""
        if isinstance(node.op, Const):
            return Weight(node.op.value)
        if isinstance(node.op, Unpack) and isinstance(node.inputs[0].op, Const):
            source = node.inputs[0]
            value = node.op.eval(source.op.value)  # type: ignore[attr-defined]
            return Weight(value, (source, node.op.packing))
        return None

    def laid(self, packing: Packing) -> Node | torch.Tensor:
        """The weight in the layout the kernel reads; packed here if it was not, or otherwise."""
        if self.packed is not None and self.packed[1] == packing:
            return self.packed[0]
        return packing.pack(self.value)


def code_range(node: Node) -> tuple[int, int]:
    """Bounds of the codes a node can hold."""
    source = node
    while isinstance(source.op, Movement):
        source = source.inputs[0]
    limits = node.tensor.dtype.limits
    if isinstance(source.op, Input):
        return limits  # codes from outside: nothing holds a caller to the declared parameters
    if isinstance(source.op, Get):
        last = steps_of(source.inputs[0])[-1].op
        if isinstance(last, DynamicQuantize) and source.op.index == 0:
            most = (1 << (last.bits - 1)) - 1
            return -most, most
    quant = node.tensor.quant
    return (quant.qmin, quant.qmax) if quant is not None else limits


def proven(weight: torch.Tensor, g: Conv | Linear, dot: Dot, low: int, high: int) -> bool:
    """Whether no 16-bit sum of the dot can overflow, for codes in [low, high] as it takes them."""
    if dot.sums is None:
        return True
    codes = summed_together(weight, g, dot)
    # Where sums do not fit, a few rows tell: most instructions are refused at once.
    return all(
        bool(arith.fits(part, low, high, dot.sums).all())
        for part in (codes[:SAMPLE_ROWS], codes[SAMPLE_ROWS:])
        if len(part)
    )


def summed_together(weight: torch.Tensor, g: Conv | Linear, dot: Dot) -> torch.Tensor:
    """The weights as [rows, groups of `dot.sums.products` that are added in 16 bits].

    One instruction adds pairs of neighbouring channels of a tap; `dot.group` instructions that
    follow each other add theirs to the same sums: pair p of `depth / 2` in each of them.
    """
    import torch

    assert dot.sums is not None
    pairs = dot.sums.products // dot.group
    flat = weight.reshape(weight.shape[0], weight.shape[1], -1).transpose(1, 2)
    rows = flat.reshape(-1, flat.shape[-1])
    step = dot.depth * dot.group
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % step))
    split = rows.reshape(rows.shape[0], -1, dot.group, dot.depth // pairs, pairs)
    return split.transpose(2, 3).reshape(rows.shape[0], -1)


def chosen(
    isa: Sequence[Dot], weight: torch.Tensor, g: Conv | Linear, codes: tuple[int, int], shift: int
) -> tuple[Dot, int] | None:
    """The first dot that is exact for these codes, and what is added to them for it.

    isa: the fastest first. shift: what makes signed codes unsigned.
    """
    low, high = codes
    for dot in isa:
        if dot.acc_dtype != "int32" or dot.b_dtype != "int8":
            continue
        if isinstance(g, Conv) and g.depthwise and dot.depth > 2:
            continue
        added = shift if dot.a_dtype == "uint8" else 0
        if proven(weight, g, dot, low + added, high + added):
            return dot, added
    return None


def packing_for(g: Conv | Linear, dot: Dot, in_dtype: str) -> Packing:
    return Packing(*packing_of(g, dot, in_dtype))


__all__ = ["Weight", "channelwise", "chosen", "code_range", "packing_for", "proven"]
