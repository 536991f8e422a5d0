"""CUDA without a GPU: the text TVM emits, run on the host behind TVM's own CUDA runtime.

    from qcompiler.targets.emulation import cuda

    if cuda.available() is None:                     # else the reason why not
        cuda.start(order="forward", copies="lazy", checks=True)
        device = tvm.cuda(0)                         # exists from now on
        cuda.start(order=7, copies="eager")          # again: other settings from here on

`start` loads a stand-in for libcuda.so.1 and libcudart.so.13, built with g++ on first use and kept
in the cache folder, and TVM's CUDA runtime on top of it. It works in a process with TVM's compiler
and in one that has its runtime only, before or after `import tvm`; where a real driver is already
loaded it refuses. Nothing in qcompiler starts it unasked, and a process stays emulated once it is.
On a machine with a real driver, and where TVM's compiler is not wanted, begin the process with
`qcompiler.runtime.emulation.cuda().prepare()`: importing this package by its name imports TVM,
which takes the real driver where there is one.

order:  of blocks, warps and lanes: "forward", "reverse", or a seed for a new shuffle at every
        barrier. A right kernel gives the same result in each.
copies: when cp.async lands: "lazy", as late as its wait allows, or "eager", at once. Lazy shows a
        missing wait, eager a copy into memory that others still read.
checks: every load and store is looked at: bounds to the byte, alignment, races in shared memory,
        shared memory read before it is written. Without, modules loaded from then on run faster,
        and faults show in the results only, or by a guard page.
architecture: "sm_80" or "sm_90": the compute capability, and the shared memory that a block has.

A kernel that does what CUDA leaves undefined ends with an error that names kernel, block, thread
and cause: EmulationError from `Program`, RuntimeError from TVM.

`Program(text).run(kernel, grid, block, *arrays)` runs CUDA text without TVM; machine code that can
be emulated too is made by qcompiler.nvcc.with_text. How: text -> C++ (translate.py, ptx.py,
include/), one fiber per thread (engine/). Not covered: wgmma, TMA, mbarriers, clusters, wmma,
textures, cooperative grids, kernels that spin on memory, float16 arithmetic, races in global
memory, and lanes that come to one instruction in a helper function from different calls of it.
expf and its like are the host's, and a plain cast of a float that is out of range is too.
"""

from __future__ import annotations

from qcompiler.errors import EmulationError

from . import build, libraries
from .program import Program
from .translate import translate

__all__ = [
    "EmulationError", "Program", "available", "prepare", "start", "started", "translate",
]  # fmt: skip


def available() -> str | None:
    """None when CUDA can be emulated here, otherwise the reason why not. Starts nothing."""
    if build.compiler() is None:
        return "the CUDA emulator needs g++, which is not on PATH"
    try:
        libraries.engine()
    except EmulationError as e:
        return str(e)
    return None


def prepare() -> None:
    """Takes the place of the CUDA driver, before anything asks for it: TVM is not imported yet."""
    libraries.load()


def start(
    order: str | int = "forward", copies: str = "lazy", checks: bool = True,
    architecture: str = "sm_90",
) -> None:  # fmt: skip
    """Makes this process see an emulated CUDA device; again, changes its settings.

    Raises EmulationError where that cannot be, ValueError for settings there are not.
    """
    libraries.configure(order, copies, checks, architecture)
    libraries.attach_tvm()


def started() -> bool:
    """Whether this process has an emulated device."""
    try:
        return libraries.engine() is not None
    except EmulationError:
        return False
