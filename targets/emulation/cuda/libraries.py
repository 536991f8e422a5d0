"""The emulated driver in this process, and TVM's CUDA runtime on top of it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from qcompiler.errors import EmulationError

from . import build

ORDERS = {"forward": 0, "reverse": 1}
SHUFFLED = 2
SHARED = {"sm_80": 166912, "sm_90": 232448}
"""Bytes of shared memory that a block may use: CUDA C++ Programming Guide, table "Technical
Specifications per Compute Capability"."""
TVM_CUDA = "libtvm_runtime_cuda.so"

_BUILDER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
)


def _build(source: bytes, checks: int, answer: int, capacity: int) -> int:
    """What the engine calls for a module's CUDA text: 0 and a path, or 1 and an error text."""
    try:
        text, refused = str(build.program(source.decode(), bool(checks))), 0
    except Exception as e:  # an exception cannot pass through the engine
        text, refused = str(e) if isinstance(e, EmulationError) else repr(e), 1
    data = text.encode()[: capacity - 1] + b"\0"
    ctypes.memmove(answer, data, len(data))
    return refused


# Kept for as long as the engine may call it.
BUILDER = _BUILDER(_build)


def engine() -> ctypes.CDLL | None:
    """The emulated driver, if this process has loaded it.

    Raises EmulationError if it has loaded a real one, or a real CUDA runtime.
    """
    driver = _loaded(build.DRIVER)
    if driver is not None and hasattr(driver, "qcemu_configure"):
        return driver
    for name in (build.DRIVER, build.RUNTIME):
        if _loaded(name) is not None:
            raise EmulationError(
                f"this process has loaded the real {name} already; start the emulator before "
                f"anything else that uses CUDA (tvm, torch), or in a process of its own"
            )
    return None


def load() -> ctypes.CDLL:
    """Loads the emulated driver and runtime, so that their names are taken in this process."""
    found = engine()
    if found is not None:
        return found
    folder = build.libraries()
    driver = ctypes.CDLL(str(folder / build.DRIVER), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / build.RUNTIME), ctypes.RTLD_GLOBAL)
    driver.qcemu_failure.restype = ctypes.c_char_p
    driver.qcemu_set_builder(BUILDER)
    return driver


def configure(order: str | int, copies: str, checks: bool, architecture: str = "sm_90") -> None:
    """Settings of the launches that follow, and of the modules loaded from now on."""
    if copies not in ("lazy", "eager"):
        raise ValueError(f"copies: expected 'lazy' or 'eager', got {copies!r}")
    if isinstance(order, str) and order not in ORDERS:
        raise ValueError(f"order: expected 'forward', 'reverse' or a seed, got {order!r}")
    if architecture not in SHARED:
        raise ValueError(f"architecture: expected {' or '.join(SHARED)}, got {architecture!r}")
    kind = ORDERS[order] if isinstance(order, str) else SHUFFLED
    seed = order if isinstance(order, int) else 0
    machine = (int(architecture.removeprefix("sm_")), ctypes.c_uint(SHARED[architecture]))
    eager = int(copies == "eager")
    load().qcemu_configure(kind, ctypes.c_uint(seed), eager, int(checks), *machine)


def attach_tvm() -> None:
    """TVM's CUDA runtime, in this process, on the emulated driver; its modules stay CUDA text."""
    import tvm
    import tvm_ffi

    if not tvm.cuda(0).exist:
        # The compiler's import of TVM has tried to load this, and failed for want of a driver; the
        # runtime-only import never tries.
        runtime = Path(tvm.base._LOADED_LIBS["tvm_runtime"]._name).resolve().parent
        ctypes.CDLL(str(runtime / TVM_CUDA), ctypes.RTLD_GLOBAL)
    if not tvm.cuda(0).exist:
        raise EmulationError(f"TVM does not see the emulated device; is {TVM_CUDA} of TVM 0.27?")
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", _keep_text, override=True)


def _keep_text(source: Any) -> bytes:
    """In place of nvcc: the module's code is its text, which the emulated driver takes."""
    return source if isinstance(source, bytes) else str(source).encode()


def _loaded(name: str) -> ctypes.CDLL | None:
    """A library that is loaded under this name, and nothing else."""
    try:
        return ctypes.CDLL(name, os.RTLD_NOLOAD | ctypes.RTLD_GLOBAL)
    except OSError:
        return None
