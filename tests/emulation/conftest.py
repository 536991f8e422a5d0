"""Emulated CUDA for the tests of this folder; a machine that has no g++ skips them and says so."""

from collections.abc import Callable

import emulated
import pytest

from qcompiler.targets.emulation import cuda


@pytest.fixture
def configure() -> Callable[..., None]:
    """`configure(order, copies, checks)`, which begins as forward, lazy and checked."""
    emulated.configure()
    return emulated.configure


@pytest.fixture
def device():
    """TVM's emulated device; `cuda.start` changes its settings."""
    emulated.skip_without_emulator()
    cuda.start()
    import tvm

    return tvm.cuda(0)
