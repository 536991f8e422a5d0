"""Instructions of x86: AVX2, its 16-bit sums proven, VNNI, and FMA.

Cycles are from the instruction tables of Fog and uops.info (Zen 3 and Golden Cove).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from qcompiler.arith import SumRule

from .dot import Dot, Vector, float_products, integer_products, intrinsic


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
        temporaries=5 if group == 2 else 4,
        group=group,
        sums=SumRule(2 * group, runs=group, stride=4),
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
    temporaries=2,
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
    reference=float_products,
    emit=_fma,
    cycles=0.5,
    latency=4.0,
    accumulators=12,
    temporaries=1,
)
