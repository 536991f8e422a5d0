"""An instruction as a value: what it computes (`reference`) and how it is emitted (`emit`).

A kernel template built with either gives the same bits, so a kernel for one machine can be
tested on another. `step(acc, pairs)` adds the products of every pair (a, b) to acc: a and b have
`lanes * depth` elements, and lane i of acc takes those from `i * depth` on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from qcompiler.arith import SumRule

# Expressions of TIR; TVM gives them no useful static type.
Vector = Any
Step = Callable[[Vector, Sequence[tuple[Vector, Vector]]], Vector]


@dataclass(frozen=True)
class Dot:
    """One multiply-accumulate instruction, or the short sequence that stands for one.

    lanes, depth: accumulator lanes, and products each of them takes per instruction.
    a_dtype, b_dtype: element types in memory, of the broadcast and of the packed operand.
    group: instructions whose results are added before they are widened to `acc_dtype`.
    sums: what must be proven about the operands; None when every operand is exact.
    features: LLVM target features the emission needs beyond x86-64-v3.
    cycles: reciprocal throughput per accumulator vector and instruction (instruction tables of
    Fog and uops.info, Zen 3 and Golden Cove); latency: cycles from acc to acc.
    accumulators: how many stay in the 16 vector registers beside the operands, by assembly.
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

    @property
    def width(self) -> int:
        """Bytes of one element of the first operand."""
        return _bits(self.a_dtype) // 8

    @property
    def weight_width(self) -> int:
        """Bytes of one packed element."""
        return _bits(self.b_dtype) // 8

    def portable(self) -> Dot:
        """The same dot with its semantics in place of the instruction: runs on any machine."""
        return replace(self, name=f"{self.name}_reference", emit=self.reference, features=())

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


def integer_products(lanes: int, depth: int) -> Step:
    """The exact meaning of every integer dot: each lane adds its `depth` products in int32."""

    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            for j in range(depth):
                picked = [j + i * depth for i in range(lanes)]
                x, y = (T.Cast(f"int32x{lanes}", T.Shuffle([v], picked)) for v in (a, b))
                acc = acc + x * y
        return acc

    return step


def _float_products(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = acc + a * b
    return acc


def _ordered(acc: Vector) -> Vector:
    """acc, from which on nothing is regrouped; no instruction.

    LLVM turns the sums of a short, unrolled loop into trees that need twice the registers
    (convolution 24 -> 144 channels: 70 GMAC/s without, 80 with).
    """
    bits = T.reinterpret(acc, dtype="float32x8")
    return T.reinterpret(intrinsic("llvm.arithmetic.fence", "float32x8", bits), dtype="int32x8")


def _maddubs(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    sums = None
    for a, b in pairs:
        part = intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", a, b)
        sums = part if sums is None else sums + part
    ones = T.broadcast(T.int16(1), 16)
    return _ordered(acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", sums, ones))


def _maddwd(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        wide = T.Cast("int16x16", b)
        acc = _ordered(acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", a, wide))
    return acc


def _dpbusd(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic("llvm.x86.avx512.vpdpbusd.256", "int32x8", acc, a, b)
    return acc


def _fma(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic("llvm.fma", "float32x8", a, b, acc)
    return acc


def maddubs(group: int = 1) -> Dot:
    """u8 x s8 by vpmaddubsw, `2 * group` products added in int16, then vpmaddwd and vpaddd.

    Exact only where those sums are proven to fit int16.
    """
    return Dot(
        name=f"maddubs{group}",
        lanes=8,
        depth=4,
        a_dtype="uint8",
        b_dtype="int8",
        acc_dtype="int32",
        reference=integer_products(8, 4),
        emit=_maddubs,
        cycles=(2 * group + 1) / (3 * group),
        latency=1.0,
        accumulators=8 if group > 1 else 10,
        group=group,
        sums=SumRule(2 * group),
    )


# 16-bit operands by vpmaddwd and vpaddd; s8 weights are widened as they are loaded.
MADDWD = Dot(
    name="maddwd",
    lanes=8,
    depth=2,
    a_dtype="int16",
    b_dtype="int8",
    acc_dtype="int32",
    reference=integer_products(8, 2),
    emit=_maddwd,
    cycles=0.67,
    latency=1.0,
    accumulators=12,
)

# The same for two activations: both operands lie in memory as int16, zero points subtracted.
MADDWD_WIDE = replace(MADDWD, name="maddwd_wide", b_dtype="int16")

# u8 x s8 with int32 sums, 256 bits wide.
AVXVNNI = Dot(
    name="avxvnni",
    lanes=8,
    depth=4,
    a_dtype="uint8",
    b_dtype="int8",
    acc_dtype="int32",
    reference=integer_products(8, 4),
    emit=_dpbusd,
    cycles=0.5,
    latency=5.0,
    accumulators=12,
    features=("+avxvnni",),
)
AVX512VNNI = replace(AVXVNNI, name="avx512vnni", features=("+avx512vnni", "+avx512vl"))

FMA = Dot(
    name="fma",
    lanes=8,
    depth=1,
    a_dtype="float32",
    b_dtype="float32",
    acc_dtype="float32",
    reference=_float_products,
    emit=_fma,
    cycles=0.5,
    latency=4.0,
    accumulators=12,
)
