"""Constant weights of a product: which instruction they are proven for, and their packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler import arith
from qcompiler.graph import Node
from qcompiler.op import Movement
from qcompiler.ops import (
    Const,
    DynamicQuantize,
    Gather,
    GatherElements,
    Get,
    Input,
    Packing,
    Unpack,
    steps_of,
)
from qcompiler.types import DType

from .dot import Dot
from .geometry import Conv, Linear
from .plan import packing_of

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
    limits = node.tensor.dtype.limits
    found = [_source_range(s) for s in sources(node)]
    if None in found:
        return limits
    dynamic = [bounds for bounds in found if bounds]
    if len(dynamic) == len(found):
        return min(low for low, _ in dynamic), max(high for _, high in dynamic)
    quant = node.tensor.quant
    return (quant.qmin, quant.qmax) if quant is not None else limits


def sources(node: Node) -> list[Node]:
    """Where the elements of a node come from, through whatever moves them."""
    found: dict[Node, None] = {}
    stack = [node]
    while stack:
        source = stack.pop()
        moved = isinstance(source.op, Movement)
        indexed = isinstance(source.op, Gather | GatherElements)
        if moved:
            stack += source.inputs[:1] if indexed else source.inputs
        else:
            found[source] = None
    return list(found)


def _source_range(source: Node) -> tuple[int, int] | tuple[()] | None:
    """Bounds of what rows are quantized to at run time; () where the type says, None: unknown."""
    if isinstance(source.op, Input):
        return None  # codes from outside: nothing holds a caller to the declared parameters
    if isinstance(source.op, Get):
        last = steps_of(source.inputs[0])[-1].op
        if isinstance(last, DynamicQuantize) and source.op.index == 0:
            return -last.qmax, last.qmax
    return ()


def proven(weight: torch.Tensor, dot: Dot, low: int, high: int, rowwise: bool = False) -> bool:
    """Whether no 16-bit sum of the dot can overflow, for codes in [low, high] as it takes them.

    rowwise: the kernel takes a kernel row like the channels of one tap.
    """
    if dot.sums is None:
        return True
    codes = by_row(weight) if rowwise else by_tap(weight)
    # Where sums do not fit, a few rows tell: most instructions are refused at once.
    return all(
        bool(arith.fits(part, low, high, dot.sums).all())
        for part in (codes[:SAMPLE_ROWS], codes[SAMPLE_ROWS:])
        if len(part)
    )


def by_tap(weight: torch.Tensor) -> torch.Tensor:
    """The weights as [channels x taps, input channels]: sums in 16 bits stay within a tap."""
    flat = weight.reshape(weight.shape[0], weight.shape[1], -1).transpose(1, 2)
    return flat.reshape(-1, flat.shape[-1])


def by_row(weight: torch.Tensor) -> torch.Tensor:
    """The weights [O, I, KH, KW] as [O x KH, KW x I]."""
    return weight.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)


def takes_codes(dot: Dot) -> bool:
    """Whether the dot multiplies codes with int8 weights."""
    return dot.acc_dtype == "int32" and dot.b_dtype == "int8"


def moved(dot: Dot, codes: tuple[int, int]) -> int | None:
    """The least that is added to codes so that the dot takes them; None: they are too many."""
    low, high = DType(dot.a_dtype).limits
    if codes[1] - codes[0] > high - low:
        return None
    if dot.moves:
        return next((m for m in dot.moves if low <= codes[0] + m and codes[1] + m <= high), None)
    return max(low - codes[0], 0) or min(high - codes[1], 0)


def chosen(
    isa: Sequence[Dot], weight: torch.Tensor, codes: tuple[int, int],
    g: Conv | Linear | None = None,
) -> tuple[Dot, int] | None:
    """The first dot, the fastest being first, that is exact for codes in this range, and what is
    added to them for it; of equally fast ones, one that takes them as they are. g: what reads the
    weights."""
    best: tuple[Dot, int] | None = None
    for dot in filter(takes_codes, isa):
        if best is not None and _speed(dot) != _speed(best[0]):
            break
        added = moved(dot, codes)
        rowwise = isinstance(g, Conv) and g.rowwise(dot.depth)
        if added is None or not proven(weight, dot, codes[0] + added, codes[1] + added, rowwise):
            continue
        if added == 0:
            return dot, added
        best = best or (dot, added)
    return best


def _speed(dot: Dot) -> tuple[float, int]:
    """Products an accumulator takes, and how often."""
    return dot.cycles, dot.depth * dot.rows


def packing_for(g: Conv | Linear, dot: Dot, in_dtype: str) -> Packing:
    return Packing(*packing_of(g, dot, in_dtype))


__all__ = ["Weight", "chosen", "code_range", "moved", "packing_for", "proven", "takes_codes"]
