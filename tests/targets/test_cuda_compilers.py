"""Who compiles a GPU's kernels: nvcc with the flags of the law, and never TVM's own callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lowering
import pytest
import torch
import tvm
import tvm_ffi
from lowering import Cases
from torch import nn

import qcompiler as qc
from qcompiler import nvcc
from qcompiler.ops import Abs
from qcompiler.runtime import device as devices
from qcompiler.runtime import emulation
from qcompiler.runtime.bundle import KERNELS
from qcompiler.runtime.errors import MachineError
from qcompiler.targets import build, get

TARGET = "cuda-sm80"
X = torch.tensor([-1.0, 2.0])
# An empty fat binary: its magic, version 1, a header of 16 bytes, nothing behind it.
COMPILER = r"""#!/bin/sh
while [ "$1" != -o ]; do shift; done
printf '\120\355\125\272\001\0\020\0\0\0\0\0\0\0\0\0' > "$2"
"""


def integer() -> qc.Graph:
    return qc.quantize(qc.trace(nn.ReLU().eval(), (X,)), None, TARGET, "float32")


def built() -> qc.CompiledModel:
    return qc.build(integer(), TARGET)


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def register() -> Iterator[Callable[[Callable[[object], bytes]], None]]:
    """Another callback in place of the one that compiles kernels, for one test."""
    before = tvm_ffi.get_global_func(devices.COMPILE)
    yield lambda answer: tvm_ffi.register_global_func(devices.COMPILE, answer, override=True)
    tvm_ffi.register_global_func(devices.COMPILE, before, override=True)


def never(source: object) -> bytes:
    raise AssertionError("TVM's own callback compiles with fast math, for the device at hand")


def test_text_is_compiled_by_nvcc_where_there_is_one(gpu, register, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("QC_NVCC", "")
    model = built()
    assert KERNELS not in model.bundle.members
    monkeypatch.setenv("QC_NVCC", program(tmp_path / "nvcc", COMPILER))
    if not emulation.running():
        monkeypatch.delenv("QC_NVCC")  # a GPU runs real machine code only
        if not nvcc.found():
            pytest.skip("nvcc is not on PATH")
    register(never)
    assert model(X).tolist() == [0.0, 2.0]


def test_text_without_a_compiler_is_refused(gpu, register, monkeypatch) -> None:
    """Though TVM has a callback, wherever torch is installed."""
    monkeypatch.setenv("QC_NVCC", "")
    model = built()
    monkeypatch.setattr(emulation, "running", lambda: False)
    register(never)
    with pytest.raises(MachineError, match="CUDA text and nvcc is not here"):
        model(X)


def test_cases_of_the_suite_are_compiled_by_nvcc(gpu, register, tmp_path, monkeypatch) -> None:
    """On a GPU they would otherwise hold binaries that no user gets."""
    monkeypatch.setattr(lowering, "TARGET", get(TARGET))
    if emulation.running():
        monkeypatch.setenv("QC_NVCC", program(tmp_path / "nvcc", COMPILER))
    elif not nvcc.found():
        pytest.skip("nvcc is not on PATH")
    register(never)
    cases = Cases()
    cases.out(Abs()(cases.floats(3, 5)))
    cases.check()


def test_machine_code_is_compiled_by_nobody(gpu, register, tmp_path, monkeypatch) -> None:
    if not emulation.running():
        pytest.skip("a GPU runs real machine code only")
    monkeypatch.setenv("QC_NVCC", program(tmp_path / "nvcc", COMPILER))
    model = built()
    monkeypatch.setenv("QC_NVCC", "false")
    register(never)
    assert model(X).tolist() == [0.0, 2.0]


def test_a_compiler_that_fails_is_named_with_its_first_error(gpu, tmp_path, monkeypatch) -> None:
    """And not as a library that cannot be opened, which another TMPDIR would cure."""
    monkeypatch.setenv("QC_NVCC", "")
    model = built()
    says = "#!/bin/sh\necho warning: old >&2; echo 'k.cu(3): error: no x' >&2; exit 1\n"
    monkeypatch.setenv("QC_NVCC", program(tmp_path / "nvcc", says))
    with pytest.raises(MachineError, match=r"k\.cu\(3\): error: no x; set QC_NVCC") as refused:
        model(X)
    assert "TMPDIR" not in str(refused.value) and "\n" not in str(refused.value)


def test_building_does_not_use_the_device_at_hand(gpu, register, monkeypatch) -> None:
    monkeypatch.setenv("QC_NVCC", "")
    register(never)
    assert KERNELS not in built().bundle.members


def test_several_threads_may_build_at_once(gpu, monkeypatch) -> None:
    """Each must find TVM without what compiles for the device at hand until it is done."""
    seen: list[object] = []
    compile_ = tvm.compile

    def slow(*args: object, **options: object) -> object:
        made = compile_(*args, **options)
        time.sleep(0.1 * len(seen))  # the first to begin ends first
        seen.append(tvm_ffi.get_global_func(build.CREATE, allow_missing=True))
        return made

    monkeypatch.setattr(tvm, "compile", slow)
    monkeypatch.setenv("QC_NVCC", "")
    graph = integer()
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: qc.build(graph, TARGET), range(3)))
    assert seen == [None] * 3
    assert tvm_ffi.get_global_func(build.CREATE, allow_missing=True) is not None
    assert all(m(X).tolist() == [0.0, 2.0] for m in models)
