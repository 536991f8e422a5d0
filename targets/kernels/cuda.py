"""The dot instructions of NVIDIA GPUs, as values.

Their operands are words of 32 bits that a thread has in registers: one float, or four int8. For
an instruction of one row, step(acc, pairs) takes a scalar and pairs of words. For MMA, of which all
lanes of a warp hold parts, it takes Fragments: acc of four registers, pairs of four and two; it
adds to those of acc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .dot import Dot, Step, Vector, float_products
from .grid import array


@dataclass(frozen=True)
class Fragment:
    """A lane's part of a matrix: the registers of `buffer` from `first` on."""

    buffer: Any
    first: Any
    lane: Any

    def __getitem__(self, k: int) -> Any:
        return self.buffer[self.first + k]


# What turns codes of 0..255 into int8, exactly: a flipped bit, four codes at a time.
FLIPPED = -128


def _word_products(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    """The four products of the bytes of two words."""
    for a, b in pairs:
        for i in range(4):
            x, y = (T.Cast("int32", T.Cast("int8", w >> (8 * i))) for w in (a, b))
            acc = acc + x * y
    return acc


def _extern(name: str, dtype: str) -> Step:
    """A function of CUDA (a, b, acc)."""

    def step(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        for a, b in pairs:
            acc = T.call_pure_extern(dtype, name, a, b, acc)
        return acc

    return step


# Cycles are those of a multiprocessor's quarter and a warp: CUDA C++ Programming Guide, table
# "Throughput of Native Arithmetic Instructions".
DP4A = Dot(
    name="dp4a",
    lanes=1,
    depth=4,
    a_dtype="int8",
    b_dtype="int8",
    acc_dtype="int32",
    reference=_word_products,
    emit=_extern("__dp4a", "int32"),
    cycles=2.0,
    latency=4.0,
    accumulators=64,
    registers=255,
    moves=(0, FLIPPED),
)

FMA = Dot(
    name="ffma",
    lanes=1,
    depth=1,
    a_dtype="float32",
    b_dtype="float32",
    acc_dtype="float32",
    reference=float_products,
    emit=_extern("__fmaf_rn", "float32"),
    cycles=1.0,
    latency=4.0,
    accumulators=64,
    registers=255,
)


def _multiply_add(acc: Vector, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
    for a, b in pairs:
        acc = acc + a * b
    return acc


def _mma(acc: Fragment, pairs: Sequence[tuple[Fragment, Fragment]]) -> Fragment:
    instruction = T.ptx["mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"]
    sums = [acc[e] for e in range(4)]
    for a, b in pairs:
        T.evaluate(instruction(*sums, *(a[r] for r in range(4)), b[0], b[1], *sums))
    return acc


def _mma_products(acc: Fragment, pairs: Sequence[tuple[Fragment, Fragment]]) -> Fragment:
    """What every lane holds, after the PTX ISA, fetched from it: sum e of a lane is in row
    `lane / 4 + 8 * (e / 2)` and column `2 * (lane % 4) + e % 2`."""
    for a, b in pairs:
        for e in range(4):
            total = T.Cast("int32", acc[e])
            for half in range(2):
                for quad in range(4):
                    x = _fetched(a[e // 2 + 2 * half], acc.lane // 4 * 4 + quad)
                    y = _fetched(b[half], (acc.lane % 4 * 2 + e % 2) * 4 + quad)
                    total = _word_products(total, [(x, y)])
            T.buffer_store(acc.buffer, T.Cast("uint32", total), [acc.first + e])
    return acc


def _fetched(word: Vector, lane: Vector) -> Vector:
    got = array(1, "int32")
    everyone = T.uint32(0xFFFFFFFF)
    call = T.call_extern("int32", "__shfl_sync", everyone, T.Cast("int32", word), lane)
    T.buffer_store(got, call, [0])
    return got[0]


# m16n8k32 of the tensor cores: [16, 32] x [8, 32] of int8, in one warp.
MMA = Dot(
    name="mma_m16n8k32",
    lanes=8,
    depth=32,
    a_dtype="int8",
    b_dtype="int8",
    acc_dtype="int32",
    reference=_mma_products,
    emit=_mma,
    cycles=2.0,
    latency=18.0,
    accumulators=16,
    rows=16,
    registers=255,
    moves=(0, FLIPPED),
)


# One product of any two codes of up to 16 bits: for what has few channels to a group.
IMAD = Dot(
    name="imad",
    lanes=1,
    depth=1,
    a_dtype="int32",
    b_dtype="int8",
    acc_dtype="int32",
    reference=_multiply_add,
    emit=_multiply_add,
    cycles=2.0,
    latency=4.0,
    accumulators=64,
    registers=255,
)
