"""Emulated CUDA for tests: programs with and without checks, and settings to run them in."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qcompiler.targets.emulation import cuda
from qcompiler.targets.emulation.cuda import libraries

ORDERS = ("forward", "reverse", 1, 2)
SETTINGS = tuple((order, copies) for order in ORDERS for copies in ("lazy", "eager"))


def skip_without_emulator() -> None:
    reason = cuda.available()
    if reason is not None:
        pytest.skip(reason)


def real_gpu() -> bool:
    """Whether this process has a CUDA device that is not emulated."""
    import tvm

    return bool(tvm.cuda(0).exist) and not cuda.started()


def configure(
    order: str | int = "forward", copies: str = "lazy", checks: bool = True,
    architecture: str = "sm_90",
) -> None:  # fmt: skip
    """Settings of the emulated device, without TVM."""
    skip_without_emulator()
    libraries.configure(order, copies, checks, architecture)


@contextmanager
def settings(order: str | int, copies: str) -> Iterator[None]:
    """Of TVM's emulated device, for what runs inside; without effect on a real one."""
    if real_gpu():
        yield
        return
    cuda.start(order=order, copies=copies)
    try:
        yield
    finally:
        cuda.start()


def compiled(text: str, checks: bool = True) -> cuda.Program:
    """A program whose accesses are looked at, or not."""
    configure(checks=checks)
    return cuda.Program(text)
