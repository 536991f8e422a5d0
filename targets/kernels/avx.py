"""Instructions of x86, 256 and 512 bits wide: 16-bit sums that are proven, VNNI, and FMA.

Cycles are from the instruction tables of Fog and uops.info (Zen 3, Golden Cove; those of 512 bits:
Zen 4, which takes two cycles for what Golden Cove does in one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm.script.ir_builder import tirx as T

from qcompiler.arith import SumRule

from .dot import Dot, Halves, Step, Vector, float_products, integer_products, intrinsic

# What LLVM calls the two kinds of VNNI.
AVX_VNNI = "+avxvnni"
AVX512_VNNI = "+avx512vnni"
# Registers that a step of vpmaddubsw takes beside accumulators and weights, by the instructions of
# its group; by assembly.
TEMPORARIES = {1: 4, 2: 5, 4: 2, 8: 2}
# The group from which on weights leave too few registers (768^3, Zen 3, of 4: 1x4 in halves 141
# GMAC/s, whole 133; 3x2 126, 93; of 2 alike, of 1 2x4 73 and 98).
HALVED = 4
# Vectors of the widest panel.
PANEL_VECTORS = 4


@dataclass(frozen=True)
class Registers:
    """The vector registers of a machine, and what LLVM calls the instructions on them.

    pace: cycles of an instruction that is done twice a cycle on 256 bits. room: accumulators of a
    tile at most; vnni_room: those of vpdpbusd. features: what they need beyond AVX2.
    """

    bits: int
    count: int
    pace: float
    room: int
    vnni_room: int
    maddubs: str
    maddwd: str
    dpbusd: str
    dpwssd: str
    features: tuple[str, ...] = ()

    @property
    def lanes(self) -> int:
        """Words of 32 bits."""
        return self.bits // 32

    def wide(self, dtype: str, bits: int) -> str:
        """A whole register of elements of `bits` bits: `int16x32`."""
        return f"{dtype}{bits}x{self.bits // bits}"


YMM = Registers(
    256, 16, 0.5, 12, 12,
    maddubs="llvm.x86.avx2.pmadd.ub.sw",
    maddwd="llvm.x86.avx2.pmadd.wd",
    dpbusd="llvm.x86.avx512.vpdpbusd.256",
    dpwssd="llvm.x86.avx512.vpdpwssd.256",
)  # fmt: skip
# Of the 32 registers of 512 bits a tile takes 16 (FMA 56.4 GMAC/s, of 28 56.0; vpmaddubsw 111.8, of
# 8 111.3), or 10 for vpdpbusd: more are slower (the layers of MobileNetV2 and ResNet-50: 10 189 and
# 221 GMAC/s, 16 181 and 220, 28 184 and 218), fewer would wait on a core that does two a cycle with
# a latency of 5 (8 here: 192 and 224).
ZMM = Registers(
    512, 32, 1.0, 16, 10,
    maddubs="llvm.x86.avx512.pmaddubs.w.512",
    maddwd="llvm.x86.avx512.pmaddw.d.512",
    dpbusd="llvm.x86.avx512.vpdpbusd.512",
    dpwssd="llvm.x86.avx512.vpdpwssd.512",
    features=("+avx512f", "+avx512bw", "+avx512cd", "+avx512dq", "+avx512vl"),
)  # fmt: skip
# AVX-512 on 256 bits, for channels that leave much of a wide register idle.
YMM_OF_32 = replace(YMM, count=ZMM.count, features=ZMM.features)


def _ordered(r: Registers, acc: Vector, bits: int = 32) -> Vector:
    """acc, of `bits` bits an element, from which on nothing is regrouped; no instruction.

    LLVM turns the sums of a short, unrolled loop into trees that need twice the registers
    (convolution 24 -> 144 channels: 70 GMAC/s without, 80 with).
    """
    floats = r.wide("float", 32)
    fenced = intrinsic("llvm.arithmetic.fence", floats, T.reinterpret(acc, dtype=floats))
    return T.reinterpret(fenced, dtype=r.wide("int", bits))


def _maddubs(r: Registers) -> Halves:
    def add(sums: Vector | None, a: Vector, b: Vector) -> Vector:
        part = intrinsic(r.maddubs, r.wide("int", 16), a, b)
        return part if sums is None else _ordered(r, sums + part, 16)

    def widen(acc: Vector, sums: Vector) -> Vector:
        ones = T.broadcast(T.int16(1), r.bits // 16)
        return _ordered(r, acc + intrinsic(r.maddwd, r.wide("int", 32), sums, ones))

    return Halves("int16", r.bits // 16, add, widen)


def _maddwd(r: Registers) -> Step:
    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            wide = T.Cast(r.wide("int", 16), b)
            acc = _ordered(r, acc + intrinsic(r.maddwd, r.wide("int", 32), a, wide))
        return acc

    return step


def _dpbusd(r: Registers) -> Step:
    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            acc = intrinsic(r.dpbusd, r.wide("int", 32), acc, a, b)
        return acc

    return step


def _dpwssd(r: Registers) -> Step:
    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            acc = intrinsic(r.dpwssd, r.wide("int", 32), acc, a, T.Cast(r.wide("int", 16), b))
        return acc

    return step


def _fma(r: Registers) -> Step:
    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            acc = intrinsic("llvm.fma", r.wide("float", 32), a, b, acc)
        return acc

    return step


def maddubs(group: int = 1, r: Registers = YMM) -> Dot:
    """u8 x s8 by vpmaddubsw, `2 * group` products added in int16, then vpmaddwd and vpaddd.

    Exact only where those sums are proven to fit int16.
    """
    halves = _maddubs(r)
    return Dot(
        name=_named(f"maddubs{group}", r),
        lanes=r.lanes,
        depth=4,
        a_dtype="uint8",
        b_dtype="int8",
        acc_dtype="int32",
        reference=integer_products(r.lanes, 4),
        emit=halves.step,
        cycles=(2 * group + 1) / (3 * group) * r.pace / YMM.pace,
        latency=1.0,
        accumulators=min(r.room, r.count - (8 if group > 1 else 6)),
        temporaries=TEMPORARIES[group],
        group=group,
        halves=halves if group >= HALVED else None,
        folds=True,
        sums=SumRule(2 * group, runs=group, stride=4),
        features=r.features,
        registers=r.count,
        panel=PANEL_VECTORS * r.lanes,
    )


def maddwd(r: Registers = YMM) -> Dot:
    """int16 x s8 by vpmaddwd and vpaddd; the weights are widened as they are loaded."""
    return Dot(
        name=_named("maddwd", r),
        lanes=r.lanes,
        depth=2,
        a_dtype="int16",
        b_dtype="int8",
        acc_dtype="int32",
        reference=integer_products(r.lanes, 2),
        emit=_maddwd(r),
        cycles=0.67 * r.pace / YMM.pace,
        latency=1.0,
        accumulators=r.room,
        temporaries=2,
        features=r.features,
        registers=r.count,
        panel=PANEL_VECTORS * r.lanes,
    )


def dpbusd(vnni: str, r: Registers = YMM) -> Dot:
    """u8 x s8 by vpdpbusd, with int32 sums. vnni: the feature it needs.

    Depthwise, too: three taps in one are faster than in two of vpdpwssd (MobileNetV2's layers: 45
    and 38 GMAC/s).
    """
    return Dot(
        name=_named("vpdpbusd", r),
        lanes=r.lanes,
        depth=4,
        a_dtype="uint8",
        b_dtype="int8",
        acc_dtype="int32",
        reference=integer_products(r.lanes, 4),
        emit=_dpbusd(r),
        cycles=r.pace,
        latency=5.0,
        accumulators=r.vnni_room,
        temporaries=1,
        features=(*r.features, vnni),
        registers=r.count,
        panel=PANEL_VECTORS * r.lanes,
        taps=4,
    )


def dpwssd(vnni: str, r: Registers = YMM) -> Dot:
    """int16 x s8 by vpdpwssd, with int32 sums; the weights are widened as they are loaded."""
    return replace(
        maddwd(r), name=_named("vpdpwssd", r), emit=_dpwssd(r), cycles=r.pace, latency=5.0,
        features=(*r.features, vnni),
    )  # fmt: skip


def of_two_activations(dot: Dot) -> Dot:
    """The same where both operands lie in memory as int16, their zero points subtracted."""
    narrow = of_two_activations(dot.narrow) if dot.narrow else None
    return replace(dot, name=f"{dot.name}_wide", b_dtype="int16", narrow=narrow)


def fma(r: Registers = YMM) -> Dot:
    return Dot(
        name=_named("fma", r),
        lanes=r.lanes,
        depth=1,
        a_dtype="float32",
        b_dtype="float32",
        acc_dtype="float32",
        reference=float_products,
        emit=_fma(r),
        cycles=r.pace,
        latency=4.0,
        accumulators=r.room,
        temporaries=1,
        features=r.features,
        registers=r.count,
        panel=PANEL_VECTORS * r.lanes,
    )


def _named(instruction: str, r: Registers) -> str:
    return instruction if r is YMM else f"{instruction}_{r.bits}"


def wide(make: Callable[[Registers], Dot]) -> Dot:
    """An instruction of AVX-512, 512 bits wide where channels fill that."""
    return replace(make(ZMM), narrow=make(YMM_OF_32))


MADDWD = maddwd()
MADDWD_WIDE = of_two_activations(MADDWD)
FMA = fma()
AVXVNNI = dpbusd(AVX_VNNI)
AVX512VNNI = dpbusd(AVX512_VNNI, ZMM)
