"""An instruction as a value: what it computes (`reference`) and how it is emitted (`emit`).

A kernel template built with either gives the same bits, so a kernel for one machine can be
tested on another. `step(acc, pairs)` adds the products of every pair (a, b) to acc. For an
instruction of one row, a and b have `lanes * depth` elements, and lane i of acc takes those from
`i * depth` on. One of several rows multiplies matrices: a is [rows, depth], b is [lanes, depth],
acc is [rows, lanes]. The instructions of each machine are in a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.arith import SumRule

# Bits of the register whose words an instruction repeats by lane (Arm).
LANE_REGISTER = 128
# Expressions of TIR; TVM gives them no useful static type.
Vector = Any
Step = Callable[[Vector, Sequence[tuple[Vector, Vector]]], Vector]


@dataclass(frozen=True)
class Halves:
    """A step of a group in two halves: products are first added in narrower sums.

    All accumulators of a tile take the first half together, one instruction after the other, so
    that few weights and operands are in registers at once, and the sums in their place.
    dtype, lanes: of the sums of one accumulator. add(sums, a, b): with the products of a pair, of
    which None are the first. widen(acc, sums): the sum of both.
    """

    dtype: str
    lanes: int
    add: Callable[[Vector | None, Vector, Vector], Vector]
    widen: Callable[[Vector, Vector], Vector]

    def step(self, acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        """Both."""
        sums = None
        for a, b in pairs:
            sums = self.add(sums, a, b)
        return self.widen(acc, sums)


@dataclass(frozen=True)
class Dot:
    """One multiply-accumulate instruction, or the short sequence that stands for one.

    lanes, depth: output channels side by side, and products each takes per instruction.
    rows: output pixels that one instruction takes.
    a_dtype, b_dtype: element types in memory, of the broadcast and of the packed operand.
    group: instructions whose results are added before they are widened to `acc_dtype`, or, with
    by_lane, whose first operands are loaded together.
    sums: what must be proven about the operands; None when every operand is exact.
    features: LLVM target features the emission needs beyond its machine's least.
    cycles: reciprocal throughput per accumulator vector and instruction; latency: cycles from acc
    to acc. accumulators: how many stay in the vector registers beside the operands, by assembly.
    registers: vector registers of the machine. temporaries: how many a step takes beside its
    accumulators and weights. by_lane: whether the instruction can repeat a word
    of a register by itself, so that a group's first operands are loaded as one vector. moves: the
    only numbers its kernels can add to codes; empty: any. panel, tile_rows: the most channels and
    the most pixels of a tile. taps: depthwise convolutions use it up to this depth.
    narrow: the same on registers of half the width. halves: of a step, where accumulators of a tile
    take them together. folds: it reads weights from memory itself, where one row alone uses them.
    tile: the rows and vectors of a tile, once measured for what it computes;
    None: those that are estimated to be best.
    """

    name: str
    lanes: int
    depth: int
    a_dtype: str
    b_dtype: str
    acc_dtype: str
    reference: Step
    emit: Step
    cycles: float
    latency: float
    accumulators: int
    group: int = 1
    sums: SumRule | None = None
    features: tuple[str, ...] = ()
    rows: int = 1
    registers: int = 16
    temporaries: int = 0
    by_lane: bool = False
    moves: tuple[int, ...] = ()
    panel: int = 32
    tile_rows: int = 8
    taps: int = 2
    narrow: Dot | None = None
    halves: Halves | None = None
    folds: bool = False
    tile: tuple[int, int] | None = None

    def __str__(self) -> str:
        """For a reader: with how many products it adds before it widens their sum."""
        return f"{self.name} ({self.sums.products} products a sum)" if self.sums else self.name

    @property
    def size(self) -> int:
        """Elements of an accumulator."""
        return self.rows * self.lanes

    @property
    def width(self) -> int:
        """Bytes of one element of the first operand."""
        return _bits(self.a_dtype) // 8

    @property
    def weight_width(self) -> int:
        """Bytes of one packed element."""
        return _bits(self.b_dtype) // 8

    def fits(self, lines: int, vectors: int) -> bool:
        """Whether a step of `lines` x `vectors` accumulators stays in registers.

        Weights that several lines share are held for all of them; those of halves one at a time.
        """
        count = lines * vectors
        if self.halves is not None:
            live = 2 * count + vectors + self.temporaries
        else:
            live = count + self.group * (vectors if lines > 1 else 1) + self.temporaries
        return count <= max(self.accumulators, vectors) and (
            live <= self.registers or count == vectors
        )

    def portable(self) -> Dot:
        """The same dot with its semantics in place of the instruction: runs on any machine."""
        return replace(
            self, name=f"{self.name}_reference", emit=self.reference, features=(), halves=None,
            narrow=self.narrow.portable() if self.narrow else None,
        )  # fmt: skip

    def operands(self, buffer: Any, places: Sequence[Any], count: int) -> list[Vector]:
        """The first operands of `count` instructions that follow each other.

        places: per row, where its first element lies.
        """
        if self.rows > 1:
            return [self._rows(buffer, places, g * self.depth) for g in range(count)]
        (place,) = places
        bits = self.depth * _bits(self.a_dtype)
        if self.by_lane and count * bits == LANE_REGISTER:
            whole = buffer[T.ramp(place, 1, count * self.depth)]
            words = T.reinterpret(whole, dtype=f"int{bits}x{count}")
            picked = [T.Shuffle([words], [g] * self.lanes) for g in range(count)]
            wide = f"{self.a_dtype}x{self.lanes * self.depth}"
            return [T.reinterpret(p, dtype=wide) for p in picked]
        return [self.broadcast(buffer, place + g * self.depth) for g in range(count)]

    def _rows(self, buffer: Any, places: Sequence[Any], skip: int) -> Vector:
        lines = [buffer[T.ramp(place + skip, 1, self.depth)] for place in places]
        return T.Shuffle(lines, list(range(self.rows * self.depth)))

    def broadcast(self, buffer: Any, offset: Any) -> Vector:
        """`depth` elements of the first operand from `offset` on, repeated in every lane."""
        if self.depth == 1:
            return T.broadcast(buffer[offset], self.lanes)
        word = f"int{self.depth * _bits(self.a_dtype)}"
        scalar = T.reinterpret(buffer[T.ramp(offset, 1, self.depth)], dtype=word)
        wide = f"{self.a_dtype}x{self.lanes * self.depth}"
        return T.reinterpret(T.broadcast(scalar, self.lanes), dtype=wide)


def _bits(dtype: str) -> int:
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))


def intrinsic(name: str, dtype: str, *args: Vector) -> Vector:
    """A call of an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def integer_products(lanes: int, depth: int, rows: int = 1) -> Step:
    """The exact meaning of every integer dot: each lane adds its `depth` products in int32."""
    size = rows * lanes

    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            for j in range(depth):
                # With one row its elements are there for every lane, else once.
                first = [(i if rows == 1 else i // lanes) * depth + j for i in range(size)]
                second = [(i % lanes) * depth + j for i in range(size)]
                x, y = (
                    T.Cast(f"int32x{size}", T.Shuffle([v], picked))
                    for v, picked in ((a, first), (b, second))
                )
                acc = acc + x * y
        return acc

    return step


def float_products(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = acc + a * b
    return acc
