"""TVM, imported as lightly as it can be, and its threads.

Where torch is not installed nothing can be compiled, and only TVM's runtime is loaded: 82 MB
resident instead of the 193 that the compiler takes. TVM's ffi would import torch wherever it is
installed, another 200 MB and a second and a half; it is kept from that, and exchanges tensors
with torch all the same.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from qcompiler import config
from qcompiler.errors import has_torch

SHARE_CORES = -3
"""TVM's affinity mode in which threads are bound to no single core."""
T = TypeVar("T")
_importing = threading.Lock()


class Hidden:
    """A finder that finds no torch for one thread; others import it undisturbed."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("not needed to run a compiled model", name=name)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


def import_tvm() -> Any:
    """TVM. Only its runtime where torch, and so whatever could be compiled, is not installed."""
    with _importing, ExitStack() as stack:
        # Its threads would otherwise pin the caller's thread to some cores, for good.
        config.default_variable("TVM_BIND_THREADS", "0")
        # Where TVM itself compiles CUDA kernels: the law knows no approximate division.
        config.default_variable("TVM_CUDA_NVCC_NO_FAST_MATH", "1")
        if "tvm" not in sys.modules and "torch" not in sys.modules:
            if not has_torch():
                stack.enter_context(config.variable_during("TVM_USE_RUNTIME_LIB", "1"))
            stack.enter_context(Hidden())
        import tvm
        import tvm.runtime.vm

        return tvm


class Threads(threading.local):
    """How many threads TVM uses for calls from this thread.

    TVM keeps a pool of workers per calling thread, made at its first use; a pool can use fewer
    workers later, never more, and its workers do not survive a fork.
    """

    def __init__(self) -> None:
        self.now = 0
        self.process = 0
        self.helpers: dict[tuple[int, int], ThreadPoolExecutor] = {}

    def run(self, count: int, call: Callable[[], T]) -> T:
        """`call()` with `count` threads: here, or, where the pool cannot, on a thread that can."""
        if self.use(count):
            return call()
        key = (count, os.getpid())
        if key not in self.helpers:
            self.helpers[key] = ThreadPoolExecutor(1, "qcompiler", _use, (count,))
        return self.helpers[key].submit(call).result()

    def use(self, count: int) -> bool:
        """Whether calls from this thread use `count` threads from now on."""
        process = os.getpid()
        if count > 1 and self.process not in (0, process):
            return False
        if self.now != count:
            import tvm_ffi

            self.process = process
            cores = [str(k) for k in range(count)]
            tvm_ffi.get_global_func("runtime.config_threadpool")(SHARE_CORES, count, cores)
            self.now = int(tvm_ffi.get_global_func("runtime.NumThreads")())
        return self.now == count


def _use(count: int) -> None:
    THREADS.use(count)


THREADS = Threads()
