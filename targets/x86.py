"""x86-64 machines as data."""

from __future__ import annotations

from .base import FAMILIES, REFUSALS, Target
from .kernels import anchors
from .kernels.algebra import Primitives, fenced_product
from .kernels.avx import FMA, MADDWD, MADDWD_WIDE, maddubs
from .kernels.requantize import requantize_packed

AVX2 = Primitives(product=fenced_product, bits=256, requantize=requantize_packed)

# The fastest first; the sums of maddubs must be proven, all others are exact.
AVX2_DOTS = (maddubs(4), maddubs(2), maddubs(1), MADDWD, MADDWD_WIDE, FMA)

X86_64_V3 = Target(
    name="x86-64-v3",
    tvm={
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": "x86-64-v3",
        "mattr": ["+avx2", "+fma", "+f16c", "+bmi2", "-avx512f"],
    },
    isa=AVX2_DOTS,
    primitives=AVX2,
    features=("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"),
    support=REFUSALS,
    kernels=tuple(family.lower for family in FAMILIES),
    packings=anchors.packing,
)
