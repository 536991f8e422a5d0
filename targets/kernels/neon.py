"""Instructions of Arm: NEON with proven 16-bit sums, dotprod, i8mm, and FMA.

Cycles are from the software optimization guides of Cortex-A72 (v8.0), A76 (dotprod) and
Neoverse N2 (i8mm): an accumulator vector has four int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from qcompiler.arith import SumRule

from .dot import Dot, Vector, float_products, integer_products, intrinsic

NEON = "llvm.aarch64.neon"
# Vector registers, and those of them that a tile's accumulators may take.
REGISTERS = 32
ACCUMULATORS = 16


def _smlal(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    sums = None
    for a, b in pairs:
        part = intrinsic(f"{NEON}.smull", "int16x8", a, b)
        sums = part if sums is None else sums + part  # LLVM makes smlal
    return acc + intrinsic(f"{NEON}.saddlp", "int32x4", sums)  # and sadalp


def _mlal(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = acc + intrinsic(f"{NEON}.smull", "int32x4", a, T.Cast("int16x4", b))
    return acc


def _sdot(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic(f"{NEON}.sdot", "int32x4", acc, b, a)
    return acc


def _smmla(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic(f"{NEON}.smmla", "int32x4", acc, a, b)
    return acc


def _usmmla(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic(f"{NEON}.usmmla", "int32x4", acc, a, b)
    return acc


def _fma(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = intrinsic("llvm.fma", "float32x4", a, b, acc)
    return acc


def smlal(group: int) -> Dot:
    """s8 x s8 by smull and smlal, `group` products added in int16, then sadalp.

    Exact only where those sums are proven to fit int16: two always do, for 2 * 128 * 127 does.
    """
    return Dot(
        name=f"smlal{group}",
        lanes=4,
        depth=2,
        a_dtype="int8",
        b_dtype="int8",
        acc_dtype="int32",
        reference=integer_products(4, 2),
        emit=_smlal,
        cycles=(group + 1) / group,
        latency=1.0,
        accumulators=12,
        group=group,
        sums=SumRule(group, runs=group, stride=2),
        registers=REGISTERS,
    )


# 16-bit operands by smlal of 32-bit sums; s8 weights are widened as they are loaded.
MLAL = Dot(
    name="mlal",
    lanes=4,
    depth=1,
    a_dtype="int16",
    b_dtype="int8",
    acc_dtype="int32",
    reference=integer_products(4, 1),
    emit=_mlal,
    cycles=1.0,
    latency=1.0,
    accumulators=ACCUMULATORS,
    registers=REGISTERS,
)

# The same for two activations: both operands lie in memory as int16, zero points subtracted.
MLAL_WIDE = replace(MLAL, name="mlal_wide", b_dtype="int16")

# Four products a lane, in 32 bits; one load feeds four instructions, by lane.
SDOT = Dot(
    name="sdot",
    lanes=4,
    depth=4,
    a_dtype="int8",
    b_dtype="int8",
    acc_dtype="int32",
    reference=integer_products(4, 4),
    emit=_sdot,
    cycles=0.5,
    latency=1.0,
    accumulators=ACCUMULATORS,
    group=4,
    features=("+dotprod",),
    registers=REGISTERS,
    by_lane=True,
)

# Two pixels x two channels x eight products at once.
SMMLA = Dot(
    name="smmla",
    lanes=2,
    depth=8,
    a_dtype="int8",
    b_dtype="int8",
    acc_dtype="int32",
    reference=integer_products(2, 8, rows=2),
    emit=_smmla,
    cycles=0.5,
    latency=1.0,
    accumulators=ACCUMULATORS,
    features=("+i8mm",),
    rows=2,
    registers=REGISTERS,
)
USMMLA = replace(SMMLA, name="usmmla", a_dtype="uint8", emit=_usmmla)

FMA = Dot(
    name="fmla",
    lanes=4,
    depth=1,
    a_dtype="float32",
    b_dtype="float32",
    acc_dtype="float32",
    reference=float_products,
    emit=_fma,
    cycles=0.5,
    latency=4.0,
    accumulators=ACCUMULATORS,
    registers=REGISTERS,
)
