"""Emulated CUDA for the tests of this folder; a machine that has no g++ skips them and says so."""

from collections.abc import Callable

import pytest

from qcompiler.targets.emulation import cuda
from qcompiler.targets.emulation.cuda import libraries

ORDERS = ("forward", "reverse", 1, 2)
SETTINGS = tuple((order, copies) for order in ORDERS for copies in ("lazy", "eager"))

Configure = Callable[..., None]


@pytest.fixture
def configure() -> Configure:
    """`configure(order, copies, checks)`: the emulated device without TVM."""
    reason = cuda.available()
    if reason is not None:
        pytest.skip(reason)

    def change(order: str | int = "forward", copies: str = "lazy", checks: bool = True) -> None:
        libraries.configure(order, copies, checks)

    change()
    return change


@pytest.fixture
def device():
    """TVM's emulated device; `cuda.start` changes its settings."""
    reason = cuda.available()
    if reason is not None:
        pytest.skip(reason)
    cuda.start()
    import tvm

    return tvm.cuda(0)
