"""x86-64 machines as data: AVX2 and AVX-512, each without and with VNNI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from . import database
from .base import FAMILIES, REFUSALS, Target
from .kernels import anchors
from .kernels.algebra import Primitives, fenced_product
from .kernels.avx import (
    AVX512_VNNI,
    AVX_VNNI,
    YMM,
    ZMM,
    Registers,
    dpbusd,
    dpwssd,
    fma,
    maddubs,
    maddwd,
    of_two_activations,
    wide,
)
from .kernels.dot import Dot
from .kernels.requantize import requantize_narrowed, requantize_packed

AVX2 = Primitives(product=fenced_product, bits=256, requantize=requantize_packed)
AVX512 = Primitives(product=fenced_product, bits=512, requantize=requantize_narrowed)

V3_FEATURES = ("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
V4_FEATURES = (*V3_FEATURES, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


Width = Callable[[Callable[[Registers], Dot]], Dot]


def narrow(make: Callable[[Registers], Dot]) -> Dot:
    return make(YMM)


def sums_of_16_bits(width: Width) -> tuple[Dot, ...]:
    """The fastest first; the sums of maddubs must be proven, all others are exact."""
    bytes_ = (width(partial(maddubs, group)) for group in (8, 4, 2, 1))
    words = width(maddwd)
    return *bytes_, words, of_two_activations(words), width(fma)


def vnni(feature: str, width: Width) -> tuple[Dot, ...]:
    """All exact, so nothing is asked of the weights."""
    words = width(partial(dpwssd, feature))
    return width(partial(dpbusd, feature)), words, of_two_activations(words), width(fma)


X86_64_V3 = Target(
    name="x86-64-v3",
    tvm={
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": "x86-64-v3",
        "mattr": ["+avx2", "+fma", "+f16c", "+bmi2", "-avx512f"],
    },
    isa=sums_of_16_bits(narrow),
    primitives=AVX2,
    features=V3_FEATURES,
    support=REFUSALS,
    kernels=tuple(family.lower for family in FAMILIES),
    packings=anchors.packing,
    times=database.shipped("x86-64-v3"),
)
X86_64_V4 = replace(
    X86_64_V3,
    name="x86-64-v4",
    tvm={
        **X86_64_V3.tvm,
        "mcpu": "x86-64-v4",
        "mattr": list(ZMM.features),
    },
    isa=sums_of_16_bits(wide),
    primitives=AVX512,
    features=V4_FEATURES,
    times=database.shipped("x86-64-v4"),
)
X86_64_AVXVNNI = replace(
    X86_64_V3,
    name="x86-64-avxvnni",
    tvm={**X86_64_V3.tvm, "mattr": [*X86_64_V3.tvm["mattr"], AVX_VNNI]},
    isa=vnni(AVX_VNNI, narrow),
    features=(*V3_FEATURES, "avx_vnni"),
    times=database.shipped("x86-64-avxvnni"),
)
X86_64_AVX512VNNI = replace(
    X86_64_V4,
    name="x86-64-avx512vnni",
    tvm={**X86_64_V4.tvm, "mattr": [*ZMM.features, AVX512_VNNI]},
    isa=vnni(AVX512_VNNI, wide),
    features=(*V4_FEATURES, "avx512_vnni"),
    times=database.shipped("x86-64-avx512vnni"),
)
