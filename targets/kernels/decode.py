"""Weights that lie in memory as codes: their layout, and how a kernel makes operands of them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from qcompiler.ops import Packing

from .build import Buffer, Expr, Operand, cast, scratch, splat, store, vector
from .dot import Dot
from .geometry import Linear

BYTE_BITS = 8
# Codes of 4 bits lie in memory plus this (see ops.Packing).
OFFSET = 8
LOW_HALF = 15
HALF = 4


@dataclass(frozen=True)
class Coding:
    """What codes are: their bits, the weights that share a scale (None: all of a channel), and the
    type of the scales: float32, or int8 factors; None: weights without, as the dot takes them."""

    bits: int
    group: int | None
    scale: str | None

    @property
    def per_byte(self) -> int:
        """Steps along the reduction that lie in one byte."""
        return BYTE_BITS // self.bits

    @property
    def dtype(self) -> str:
        return "int8" if self.bits == BYTE_BITS else "uint8"

    def packing(self, lanes: int, dot: Dot) -> Packing:
        return Packing(lanes, dot.depth, whole=self.group or 1, bits=self.bits)

    def groups(self, k: int) -> int:
        return 1 if self.group is None else -(-k // self.group)

    def steps(self, k: int, dot: Dot) -> int:
        """Steps of a panel in memory, the last byte's zeros included."""
        whole = k if self.group is None else self.groups(k) * self.group
        steps = -(-whole // dot.depth)
        return -(-steps // self.per_byte) * self.per_byte

    def operands(self, g: Linear, lanes: int, dot: Dot) -> list[Operand]:
        """Codes, and scales if any, as a kernel is given them, in panels of `lanes` channels."""
        packing = self.packing(lanes, dot)
        shape = packing.shape((g.n, g.k))
        if self.scale is None:
            return [Operand("weights", shape, dot.b_dtype)]
        scales = packing.of_scales.shape((g.n, self.groups(g.k)))
        return [Operand("weights", shape, self.dtype), Operand("scales", scales, self.scale)]


PLAIN = Coding(BYTE_BITS, None, None)


def centred(value: Expr, half: Expr, bits: int, dtype: str, lanes: int) -> Expr:
    """The codes in bytes as integers of `dtype`; half: 0 for the low ones, 1 for the high ones."""
    wide = cast(value, dtype, lanes)
    if bits == BYTE_BITS:
        return wide
    return part(wide, half, dtype, lanes) - splat(T.Cast(dtype, OFFSET), lanes)


def part(wide: Expr, half: Expr, dtype: str, lanes: int) -> Expr:
    """The low or the high halves of bytes, which lie in integers of `dtype`."""
    if not (isinstance(half, int) and half == 0):
        wide = wide >> splat(T.Cast(dtype, half * HALF), lanes)
    return wide & splat(T.Cast(dtype, LOW_HALF), lanes)


@dataclass(frozen=True)
class Decoder:
    """Panels of codes, from which steps are written out as operands of a dot, times their scales.

    codes and scales as `Coding.packing` and its `of_scales` lay them; lanes: channels of a panel;
    size, groups: steps and groups of one.
    """

    coding: Coding
    dot: Dot
    codes: Buffer
    scales: Buffer
    lanes: int
    size: int
    groups: int

    @staticmethod
    def of(coding: Coding, g: Linear, dot: Dot, lanes: int, codes: Buffer,
           scales: Buffer) -> Decoder:  # fmt: skip
        size, groups = coding.steps(g.k, dot), coding.groups(g.k)
        return Decoder(coding, dot, codes, scales, lanes, size, groups)

    def written(self, panel: Expr, first: Expr, count: int) -> Buffer:
        """`count` steps from `first` on, which is even where `count` is."""
        dot, block = self.dot, self.lanes * self.dot.depth
        made = scratch(count * block, dot.b_dtype)
        unit = self.coding.per_byte if count % self.coding.per_byte == 0 else 1
        with T.serial(0, count // unit) as i:
            for j in range(unit):
                half = j if unit > 1 or self.coding.per_byte == 1 else (first + i) % 2
                self._step(made, (i * unit + j) * block, panel, first + i * unit + j, half)
        return made

    def _step(self, made: Buffer, to: Expr, panel: Expr, step: Expr, half: Expr) -> None:
        dot, coding, size = self.dot, self.coding, self.dot.lanes * self.dot.depth
        at = (panel * self.size + step) // coding.per_byte * (self.lanes * dot.depth)
        group = 0 if coding.group is None else step * dot.depth // coding.group
        scales = (panel * self.groups + group) * self.lanes
        whole = "int32" if dot.b_dtype == "float32" else dot.b_dtype
        for v in range(self.lanes // dot.lanes):
            codes = vector(self.codes, at + v * size, size)
            value = centred(codes, half, coding.bits, whole, size)
            scale = self._scale(scales + v * dot.lanes)
            store(made, to + v * size, cast(value, dot.b_dtype, size) * scale, size)

    def _scale(self, at: Expr) -> Expr:
        """The scales of `dot.lanes` channels, each repeated for its `dot.depth` products."""
        dot = self.dot
        scale = cast(vector(self.scales, at, dot.lanes), dot.b_dtype, dot.lanes)
        if dot.depth == 1:
            return scale
        places = [i // dot.depth for i in range(dot.lanes * dot.depth)]
        return T.Shuffle([scale] * dot.depth, places)
