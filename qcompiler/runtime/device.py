"""Programs whose kernels run on a GPU: what it must be, its machine code, and one call on it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler import nvcc
from qcompiler.nvcc import with_text
from qcompiler.runtime import emulation
from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.manifest import Manifest
from qcompiler.runtime.tvm_runtime import import_tvm

COMPILE = "tvm_callback_cuda_compile"
"""What TVM calls with the text of a library's kernels, for their machine code."""
RUNTIME = "libtvm_runtime_cuda.so"
# TVM has one answer to COMPILE for all libraries.
_opening = threading.Lock()
# Calls share the one stream of the device, and would wait for each other there.
_calling = threading.Lock()


def required(manifest: Manifest) -> Any:
    """TVM's device for the program. Raises MachineError where there is none that can run it."""
    reason = lacking(manifest.device, manifest.architecture)
    if reason is not None:
        raise MachineError(_refusal(manifest.target, reason))
    return import_tvm().device(manifest.device, 0)


def lacking(kind: str, architecture: str) -> str | None:
    """Why this machine runs no kernels of a kind (`cuda`) and architecture (`sm_80`), or None."""
    tvm = import_tvm()
    device = tvm.device(kind, 0)
    problem = None if device.exist else _load_runtime(tvm)
    if not device.exist:
        return f"it has no {kind} device{problem or ''}"
    least, here = _capability(architecture), str(device.compute_version)
    if tuple(map(int, here.split("."))) < tuple(map(int, least.split("."))):
        return f"its GPU has compute capability {here}, expected {least} or more"
    return None


def _refusal(target: str, reason: str) -> str:
    return (
        f"the model was built for {target}, which this machine cannot run: {reason}; "
        f"build it for another target"
    )


def _capability(architecture: str) -> str:
    """`8.0` of sm_80."""
    digits = architecture.partition("_")[2]
    return f"{digits[:-1]}.{digits[-1]}"


def _load_runtime(tvm: Any) -> str | None:
    """Why TVM's CUDA runtime cannot be loaded, as TVM itself tries only with its compiler."""
    folder = Path(tvm.base._LOADED_LIBS["tvm_runtime"]._name).resolve().parent
    try:
        ctypes.CDLL(str(folder / RUNTIME), ctypes.RTLD_GLOBAL)
    except OSError as e:
        return f" ({e})"
    return None


@contextmanager
def with_kernels(target: str, architecture: str, code: bytes) -> Iterator[None]:
    """A library for a target may be opened inside: TVM gets the machine code of its kernels.

    code: empty where it holds them as text only. Raises MachineError where nothing here compiles
    that.
    """
    with _opening, _answering(target, architecture, code):
        yield


@contextmanager
def _answering(target: str, architecture: str, code: bytes) -> Iterator[None]:
    import tvm_ffi

    # TVM's own answer compiles for the device at hand, with fast math: only an emulator's is kept.
    before = tvm_ffi.get_global_func(COMPILE, allow_missing=True)
    emulated = before if emulation.running() else None
    if not code and emulated is None and not nvcc.found():
        reason = "its kernels are CUDA text and nvcc is not here; compile it where nvcc is"
        raise MachineError(_refusal(target, reason))

    failed: list[nvcc.NvccError] = []

    def answer(source: Any) -> bytes:
        if emulated is not None and not code and not nvcc.found():
            return bytes(emulated(source))
        text = source if isinstance(source, bytes) else str(source).encode()
        try:
            return with_text(code or nvcc.fatbin(text.decode(), architecture), text)
        except nvcc.NvccError as e:
            failed.append(e)
            raise

    tvm_ffi.register_global_func(COMPILE, answer, override=True)
    try:
        yield
    except Exception:
        # What TVM makes of it is an error of the library's file, which is none.
        if failed:
            raise MachineError(_uncompiled(target, failed[0])) from failed[0]
        raise
    finally:
        if before is not None:
            tvm_ffi.register_global_func(COMPILE, before, override=True)
        else:
            tvm_ffi.remove_global_func(COMPILE)


def _uncompiled(target: str, error: nvcc.NvccError) -> str:
    return (
        f"the model was built for {target} without machine code, and nvcc cannot compile its "
        f"kernels here: {error.first}; set QC_NVCC to one that can, or build the model where it is"
    )


def on_device(tensor: Any, device: Any) -> Any:
    """The tensor itself if it is there, or a copy that is."""
    return tensor if tensor.device == device else tensor.copyto(device)


def on_host(tensor: Any, device: Any) -> Any:
    """A copy in host memory of what is on the device, all kernels before it done."""
    device.sync()
    return tensor.copyto(import_tvm().cpu())


@dataclass(frozen=True, eq=False)
class DeviceSlot:
    """One virtual machine whose kernels run on a device."""

    machine: Any
    main: Callable[..., Any]
    device: Any

    @staticmethod
    def of(module: Any, device: Any) -> DeviceSlot:
        # The pool rounds up to 4096 bytes, which an emulator cannot tell from what was asked for.
        memory = "naive" if emulation.running() else None
        machine = import_tvm().runtime.vm.VirtualMachine(module, device, memory_cfg=memory)
        return DeviceSlot(machine, machine["main"], device)

    def run(
        self, inputs: Sequence[Any], state: Sequence[Any], weights: Sequence[Any],
        faults: Sequence[str],
    ) -> tuple[list[Any], list[Any]]:  # fmt: skip
        """Outputs in host memory, and the new state on the device, all as TVM tensors.

        inputs: numpy arrays or torch tensors. Raises IndexError for a check that failed.
        """
        with _calling:
            return self._run(inputs, state, weights, faults)

    def _run(
        self, inputs: Sequence[Any], state: Sequence[Any], weights: Sequence[Any],
        faults: Sequence[str],
    ) -> tuple[list[Any], list[Any]]:  # fmt: skip
        tensor = import_tvm().runtime.tensor
        given = [tensor(_array(v), self.device) for v in inputs]
        before = [on_device(s, self.device) for s in state]
        results = list(self.main(*given, *before, *weights))
        flags = results[len(results) - len(faults) :]
        for message, flag in zip(faults, flags, strict=True):
            if int(on_host(flag, self.device).numpy()[0]):
                raise IndexError(message)
        count = len(results) - len(faults) - len(state)
        outputs = [on_host(r, self.device) for r in results[:count]]
        return outputs, results[count : count + len(state)]


def _array(value: Any) -> Any:
    """A numpy array over a torch tensor's values, or the array itself, in one piece."""
    if not isinstance(value, np.ndarray):
        value = value.detach().cpu().numpy()
    return np.ascontiguousarray(value).reshape(value.shape)  # it makes a scalar one of rank 1
