"""NVIDIA GPUs as data: sm_80 (A100) and sm_90 (H100)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .base import FAMILIES, REFUSALS, Target
from .emulation import cuda as emulation
from .kernels import anchors, gpu
from .kernels.algebra import Primitives, rounded_product
from .kernels.cuda import DP4A, FMA, IMAD, MMA
from .kernels.grid import WARP, Grid
from .x86 import X86_64_V3

# Threads of a block and 32-bit registers of a multiprocessor: compute capabilities 8.0 and 9.0
# (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability").
MAX_THREADS = 1024
REGISTERS = 65536
# Threads of a block that works element by element: several blocks share a multiprocessor.
THREADS = 256
# Code that hosts the launches; weights and sizes pass through it, nothing else.
HOST = X86_64_V3


@dataclass(frozen=True)
class InProcess:
    """A GPU in software, which this process then has."""

    architecture: str

    def missing(self) -> str | None:
        return emulation.available()

    def begin(self, artifact: Path, say: Callable[[str], None]) -> None:
        emulation.start(architecture=self.architecture)
        return None


def _gpu(arch: str, shared: int) -> Target:
    """A GPU of compute capability `arch` (sm_80) with `shared` bytes of memory for a block."""
    grid = Grid(threads=THREADS, shared=shared)
    return Target(
        name=f"cuda-{arch.replace('_', '')}",
        tvm={
            "kind": "cuda",
            "keys": ["cuda", "gpu"],
            "arch": arch,
            "thread_warp_size": WARP,
            "max_threads_per_block": MAX_THREADS,
            "max_num_threads": MAX_THREADS,
            "max_shared_memory_per_block": shared,
            "registers_per_block": REGISTERS,
            "host": dict(HOST.tvm),
        },
        isa=(MMA, DP4A, IMAD, FMA),
        primitives=Primitives(product=rounded_product, bits=8, grid=grid),
        features=(*HOST.features, arch),
        support=REFUSALS,
        kernels=tuple(family.lower for family in FAMILIES),
        packings=anchors.packing,
        templates=gpu.templates(grid),
        emulator=InProcess(arch),
    )


CUDA_SM80 = _gpu("sm_80", 166912)
CUDA_SM90 = _gpu("sm_90", 232448)
