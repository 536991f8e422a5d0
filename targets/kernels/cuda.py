"""The dot instructions of NVIDIA GPUs, as values.

Their operands are words of 32 bits that a thread has in registers: one float, or four int8. For
DP4A and FMA step(acc, pairs) is a scalar and pairs of words.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from .dot import Dot, Step, Vector, float_products

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
