"""Accumulators to codes by saturating packs: the law of requantize where overflow is excluded.

The law clamps in float32, then rounds. Rounding first and clamping integers gives the same codes
while the rounded product fits int32, and packs clamp for nothing: 11 instructions for 16 codes
instead of 17 (convolution 24 -> 144 channels, requantized: 82 instead of 67 GMAC/s).
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from .build import Expr, cast, splat
from .dot import intrinsic

# |float32(acc) * m| <= 2^31 * m must stay below 2^31, with room for rounding upwards.
MULTIPLIER_MAX = 0.999


LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def saturates(multiplier_max: float, dtype: str) -> bool:
    """Whether `requantize_packed` gives the law's codes: bytes, no overflow."""
    return dtype in LIMITS and 0 <= multiplier_max <= MULTIPLIER_MAX


def within(codes: Expr, qmin: int, qmax: int, lanes: int, dtype: str) -> Expr:
    """Codes that saturated at the limits of dtype, clamped to less where that is wanted."""
    low, high = LIMITS[dtype]
    codes = codes if qmin == low else T.max(codes, splat(T.Cast(dtype, qmin), lanes))
    return codes if qmax == high else T.min(codes, splat(T.Cast(dtype, qmax), lanes))


def requantize_packed(acc: Expr, multiplier: Expr, zero_point: int, lanes: int, dtype: str) -> Expr:
    """`clamp(int(rint(float32(acc) * m)) + zp)` to the limits of dtype, uint8 or int8.

    acc int32, multiplier float32, both of `lanes` lanes; needs `saturates`.
    """
    scaled = cast(acc, "float32", lanes) * multiplier
    code = intrinsic("llvm.lrint", _wide("int32", lanes), scaled)
    if lanes == 16:
        return _pack16(code, zero_point, dtype)
    if lanes == 8:
        return _pack8(code, zero_point, dtype)
    # Clamping before the zero point is added keeps the sum in int32.
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    code = T.max(code, splat(T.int32(low - zero_point), lanes))
    code = T.min(code, splat(T.int32(high - zero_point), lanes))
    return cast(code + splat(T.int32(zero_point), lanes), dtype, lanes)


def requantize_narrowed(
    acc: Expr, multiplier: Expr, zero_point: int, lanes: int, dtype: str
) -> Expr:
    """The same for AVX-512, whose vpmovusdb and vpmovsdb clamp words and keep their order.

    Six pointwise convolutions of ResNet-50 and MobileNetV2: 181 GMAC/s, 178 with packs.
    """
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    scaled = cast(acc, "float32", lanes) * multiplier
    code = intrinsic("llvm.lrint", _wide("int32", lanes), scaled)
    # The rounded product is below MULTIPLIER_MAX * 2^31: the zero point fits beside it.
    code = code + splat(T.int32(zero_point), lanes) if zero_point else code
    # Without a sign, vpmovusdb takes what is below 0 for very large.
    code = T.max(code, splat(T.int32(low), lanes)) if low == 0 or lanes < 8 else code
    if lanes < 8:
        return cast(T.min(code, splat(T.int32(high), lanes)), dtype, lanes)
    name = f"llvm.x86.avx512.mask.pmov{'us' if low == 0 else 's'}.db.{32 * lanes}"
    every = T.bitwise_not(T.Cast(f"uint{lanes}", 0))
    codes = intrinsic(name, "int8x16", code, T.broadcast(T.int8(0), 16), every)
    return T.reinterpret(codes if lanes == 16 else _half(codes, 0, 8), dtype=f"{dtype}x{lanes}")


def _wide(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _half(value: Expr, index: int, lanes: int) -> Expr:
    return T.Shuffle([value], list(range(index * lanes, (index + 1) * lanes)))


def _pack16(code: Expr, zero_point: int, dtype: str) -> Expr:
    low, high = _half(code, 0, 8), _half(code, 1, 8)
    words = intrinsic("llvm.x86.avx2.packssdw", "int16x16", low, high)
    words = _shifted(words, zero_point, 16)
    pack = "llvm.x86.sse2.packuswb.128" if dtype == "uint8" else "llvm.x86.sse2.packsswb.128"
    codes = intrinsic(pack, "int8x16", _half(words, 0, 8), _half(words, 1, 8))
    # Packs of 256 bits work on halves: the middle quarters come out swapped.
    ordered = T.Shuffle([T.reinterpret(codes, dtype="int32x4")], [0, 2, 1, 3])
    return T.reinterpret(ordered, dtype=f"{dtype}x16")


def _pack8(code: Expr, zero_point: int, dtype: str) -> Expr:
    low, high = _half(code, 0, 4), _half(code, 1, 4)
    words = intrinsic("llvm.x86.sse2.packssdw.128", "int16x8", low, high)
    words = _shifted(words, zero_point, 8)
    pack = "llvm.x86.sse2.packuswb.128" if dtype == "uint8" else "llvm.x86.sse2.packsswb.128"
    codes = intrinsic(pack, "int8x16", words, words)
    return T.reinterpret(_half(codes, 0, 8), dtype=f"{dtype}x8")


def _shifted(words: Expr, zero_point: int, lanes: int) -> Expr:
    if zero_point == 0:
        return words
    offset = T.broadcast(T.int16(zero_point), lanes)
    return intrinsic("llvm.sadd.sat", f"int16x{lanes}", words, offset)
