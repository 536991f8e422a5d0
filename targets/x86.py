"""x86-64 machines as data."""

from __future__ import annotations

from functools import partial

from qcompiler.ops import Attention, BatchNorm

from .base import Target
from .kernels import cumsum, elementwise, gather, movement, rows, window
from .kernels.algebra import Primitives, fenced_product
from .kernels.dot import FMA, MADDWD, MADDWD_WIDE, maddubs

AVX2 = Primitives(product=fenced_product, bits=256)

X86_64_V3 = Target(
    name="x86-64-v3",
    tvm={
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
        "mcpu": "x86-64-v3",
        "mattr": ["+avx2", "+fma", "+f16c", "+bmi2", "-avx512f"],
    },
    isa=(maddubs(1), MADDWD, MADDWD_WIDE, FMA),
    features=("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"),
    support={
        Attention: "attention is decomposed before it is lowered",
        BatchNorm: "batch norm is folded before it is lowered",
    },
    kernels=tuple(
        partial(family.lower, primitives=AVX2)
        for family in (elementwise, rows, window, movement, gather, cumsum)
    ),
)
