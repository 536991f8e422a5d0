"""64-bit Arm machines as data: NEON, with dotprod, with i8mm."""

from __future__ import annotations

from dataclasses import replace

from .base import FAMILIES, REFUSALS, Target
from .emulation.arm import Arm
from .kernels import anchors
from .kernels.algebra import Primitives, fenced_product
from .kernels.neon import FMA, MLAL, MLAL_WIDE, SDOT, SMMLA, USMMLA, smlal

NEON = Primitives(product=fenced_product, bits=128)

# The fastest first. The sums of smlal must be proven: two products always are, more by luck.
V8_DOTS = (smlal(8), smlal(4), smlal(2), MLAL, MLAL_WIDE, FMA)


ARMV8_A = Target(
    name="armv8-a",
    tvm={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
    isa=V8_DOTS,
    primitives=NEON,
    features=("asimd",),
    support=REFUSALS,
    kernels=tuple(family.lower for family in FAMILIES),
    packings=anchors.packing,
    emulator=Arm("cortex-a72"),
)
ARMV8_2_DOTPROD = replace(
    ARMV8_A,
    name="armv8.2-dotprod",
    tvm={**ARMV8_A.tvm, "mattr": ["+v8.2a", "+neon", "+dotprod"]},
    isa=(SDOT, *V8_DOTS),
    features=("asimd", "asimddp"),
    emulator=Arm("cortex-a76"),
)
ARMV8_6_I8MM = replace(
    ARMV8_A,
    name="armv8.6-i8mm",
    tvm={**ARMV8_A.tvm, "mattr": ["+v8.2a", "+neon", "+dotprod", "+i8mm"]},
    isa=(USMMLA, SMMLA, SDOT, *V8_DOTS),
    features=("asimd", "asimddp", "i8mm"),
    emulator=Arm("max"),
)
