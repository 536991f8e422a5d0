"""CUDA text run on numpy arrays, through the emulated driver and without TVM."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.errors import EmulationError

from . import build, libraries

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
DEFAULT_DYNAMIC_SHARED = 49152
"""Bytes of dynamic shared memory a kernel has without asking for more."""


class _Launch(ctypes.Structure):
    """CUlaunchConfig: grid, block, bytes of shared memory, stream, attributes."""

    _fields_ = (
        *((f"{kind}_{axis}", ctypes.c_uint) for kind in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Program:
    """One module of CUDA text.

    Raises EmulationError naming what of the text the emulator does not know.
    """

    def __init__(self, source: str) -> None:
        self._driver = libraries.load()
        self._runtime = ctypes.CDLL(build.RUNTIME)
        self._module = ctypes.c_void_p()
        self._must(self._driver.cuModuleLoadData(ctypes.byref(self._module), source.encode()))

    def run(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *arguments: Any,
        shared: int = 0,
    ) -> None:
        """Launches `kernel` with `shared` bytes of dynamic shared memory.

        An array is copied to device memory and back; a numpy scalar is passed by value. Raises
        EmulationError when the kernel does what CUDA leaves undefined.
        """
        function = ctypes.c_void_p()
        name = kernel.encode()
        self._must(self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name))
        if shared > DEFAULT_DYNAMIC_SHARED:
            self._must(self._driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared))
        buffers = [self._to_device(a) if isinstance(a, np.ndarray) else None for a in arguments]
        try:
            values = [b or _scalar(a) for a, b in zip(arguments, buffers, strict=True)]
            pointers = (ctypes.c_void_p * (len(values) or 1))(*map(ctypes.addressof, values))
            config = _Launch(*_three(grid), *_three(block), shared)
            launch = self._driver.cuLaunchKernelEx
            self._must(launch(ctypes.byref(config), function, pointers, None))
            for a, b in zip(arguments, buffers, strict=True):
                if b:
                    self._copy(a.ctypes.data, b, a.nbytes)
        finally:
            for b in buffers:
                if b:
                    self._runtime.cudaFree(b)

    def _to_device(self, array: np.ndarray) -> ctypes.c_void_p:
        if not array.flags.c_contiguous:
            raise ValueError("arrays must be contiguous")
        buffer = ctypes.c_void_p()
        size = ctypes.c_size_t(array.nbytes)
        self._must(self._runtime.cudaMalloc(ctypes.byref(buffer), size))
        self._copy(buffer, array.ctypes.data, array.nbytes)
        return buffer

    def _copy(self, to: Any, source: Any, size: int) -> None:
        arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        copy = ctypes.CFUNCTYPE(ctypes.c_int, *arguments, ctypes.c_void_p)(
            ("cudaMemcpyAsync", self._runtime)
        )
        self._must(copy(to, source, size, 4, None))

    def _must(self, code: int) -> None:
        if code:
            failure = self._driver.qcemu_failure
            failure.restype = ctypes.c_char_p
            raise EmulationError(failure().decode(errors="replace"))


def _scalar(value: Any) -> ctypes.Array:
    return ctypes.create_string_buffer(np.asarray(value).tobytes())


def _three(size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (*sizes, *(1,) * (3 - len(sizes)))
