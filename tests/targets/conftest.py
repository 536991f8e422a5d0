"""A GPU for the tests of this folder: a real one where there is one, else the emulator."""

from __future__ import annotations

import emulated
import pytest


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has a CUDA device; skipped where there is none and none can be emulated.

    Emulated kernels stay text: nvcc would take most of the time, and has tests of its own.
    """
    if emulated.real_gpu():
        return
    emulated.skip_without_emulator()
    emulated.cuda.start()
    monkeypatch.setenv("QC_NVCC", "")
