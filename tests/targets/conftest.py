"""A GPU for the tests of this folder: a real one where there is one, else the emulator."""

from __future__ import annotations

import pytest
import tvm

from qcompiler.targets.emulation import cuda


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has a CUDA device; skipped where none can be emulated.

    Kernels stay text: nvcc would take most of the time, and has tests of its own.
    """
    monkeypatch.setenv("QC_NVCC", "")
    if tvm.cuda(0).exist and not cuda.started():
        return
    reason = cuda.available()
    if reason:
        pytest.skip(reason)
    cuda.start()
