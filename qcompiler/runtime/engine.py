"""A loaded library: one TVM virtual machine per running call, over the same code and weights.

TVM's virtual machine keeps its call stack in itself, so two calls at once corrupt it. Machines
are cheap (20 microseconds, a few KB; weights are arguments), so each running call takes one
from a pool. Four callers of a 1.6 ms model on two cores: 0.78 ms a call; behind a lock, 1.56.
"""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.runtime.bundle import KERNELS, LIBRARY, Bundle, numpy_dtype
from qcompiler.runtime.device import DeviceSlot, on_device, on_host, required, with_kernels
from qcompiler.runtime.elf import elf_problem
from qcompiler.runtime.errors import ArtifactError
from qcompiler.runtime.manifest import ALIGNMENT
from qcompiler.runtime.pages import address, aligned
from qcompiler.runtime.tvm_runtime import THREADS, import_tvm

Tap = Callable[[str, Sequence[Any]], None]
"""Called after each kernel with its name and its tensors: operands, then results."""


BOOKKEEPING = ("vm.", "shape_func")
"""What TVM itself calls between kernels: memory and shapes."""


class RunError(RuntimeError):
    """The compiled program refused its inputs or failed."""


@dataclass(frozen=True, eq=False)
class Engine:
    """The library of a bundle, opened, with its weights as TVM tensors.

    fixed: where the weights lie in host memory. device: TVM's, of the kernels; None: the CPU.
    faults: see manifest.Entry.
    """

    module: Any
    weights: tuple[Any, ...]
    fixed: Ranges
    device: Any = None
    faults: tuple[str, ...] = ()
    idle: list[Any] = field(default_factory=list)

    @staticmethod
    def of(bundle: Bundle) -> Engine:
        """Opens the library. Raises MachineError, or ArtifactError when it cannot be opened."""
        bundle.require_machine()
        import_tvm()
        entry, stored = bundle.manifest.main, bundle.manifest.tensors
        weights = {d: bundle.tensors[d] for d in dict.fromkeys(entry.weights)}
        tensors = {d: view(w, stored[d].shape, stored[d].dtype) for d, w in weights.items()}
        if bundle.manifest.device != "cpu":
            return Engine._on_device(bundle, tensors)
        module = opened(bundle.members[LIBRARY], bundle.source)
        spans = [(address(w), w.nbytes) for w in weights.values()]
        return Engine(module, tuple(tensors[d] for d in entry.weights), Ranges(spans))

    @staticmethod
    def _on_device(bundle: Bundle, tensors: Mapping[str, Any]) -> Engine:
        """The weights are copied to the device once, for all calls."""
        manifest = bundle.manifest
        device, entry = required(manifest), manifest.main
        code = bytes(bundle.members.get(KERNELS, b""))
        with with_kernels(manifest.target, manifest.architecture, code):
            module = opened(bundle.members[LIBRARY], bundle.source)
        there = {d: on_device(t, device) for d, t in tensors.items()}
        weights = tuple(there[d] for d in entry.weights)
        return Engine(module, weights, Ranges(()), device, entry.faults)

    def run(
        self, inputs: Sequence[Any], state: Sequence[Any], make: Makes, threads: int,
        tap: Tap | None = None,
    ) -> tuple[list[Any], list[Any]]:  # fmt: skip
        """Outputs, made by `make`, and the new state, as TVM tensors.

        inputs: numpy arrays or torch tensors of the declared types. state: TVM tensors.
        """
        try:
            slot = self.idle.pop() if tap is None else self._slot(tap)
        except IndexError:
            slot = self._slot(None)
        results = THREADS.run(threads, lambda: self._called(slot, inputs, state, make))
        # A machine on which a call failed is dropped: its stack may be in any condition.
        if tap is None:
            self.idle.append(slot)
        return results

    def _slot(self, tap: Tap | None) -> Slot | DeviceSlot:
        made = DeviceSlot.of(self.module, self.device) if self.device else Slot.of(self.module)
        if tap is not None:
            made.machine.set_instrument(_instrument(tap, self.host))
        return made

    def _called(
        self, slot: Slot | DeviceSlot, inputs: Sequence[Any], state: Sequence[Any], make: Makes
    ) -> tuple[list[Any], list[Any]]:
        if isinstance(slot, Slot):
            return slot.run(inputs, state, self, make)
        try:
            outputs, after = slot.run(inputs, state, self.weights, self.faults)
        except Exception as e:
            raise translated(e) from None
        return [make(r, False) for r in outputs], after

    def host(self, tensor: Any) -> Any:
        """The tensor in host memory."""
        return tensor if self.device is None else on_host(tensor, self.device)


Makes = Callable[[Any, bool], Any]
"""(TVM tensor, whether something else lives in its memory) -> what the caller gets."""


@dataclass(frozen=True, eq=False)
class Slot:
    """One virtual machine, and aligned memory for the inputs of the call it runs."""

    machine: Any
    main: Callable[..., Any]
    buffers: dict[int, Any] = field(default_factory=dict)

    @staticmethod
    def of(module: Any) -> Slot:
        tvm = import_tvm()
        machine = tvm.runtime.vm.VirtualMachine(module, tvm.cpu())
        return Slot(machine, machine["main"])

    def run(
        self, inputs: Sequence[Any], state: Sequence[Any], engine: Engine, make: Makes
    ) -> tuple[list[Any], list[Any]]:
        given = [self.input(k, v) for k, v in enumerate(inputs)]
        try:
            results = list(self.main(*(t for t, _ in given), *state, *engine.weights))
        except Exception as e:
            raise translated(e) from None
        count = len(results) - len(state)
        after = results[count:]
        ours = Ranges(span_of(s) for s in (*state, *after)) if state else NOWHERE

        def theirs(at: int) -> bool:
            return any(start <= at < start + max(size, 1) for _, (start, size) in given)

        def shared(tensor: Any) -> bool:
            at = tensor.data_ptr()
            return theirs(at) or at in ours or at in engine.fixed

        def kept(tensor: Any) -> Any:
            return copy_of(tensor) if theirs(tensor.data_ptr()) else tensor

        return [make(r, shared(r)) for r in results[:count]], [kept(s) for s in after]

    def input(self, k: int, value: Any) -> tuple[Any, tuple[int, int]]:
        """A TVM tensor of the value, and where it lies: in place, or copied if not aligned."""
        if not isinstance(value, np.ndarray):
            value = _torch(value)
            import tvm_ffi

            tensor = tvm_ffi.from_dlpack(value)
        else:
            value = value if _usable(value) else self.copied(k, value)
            tensor = tensor_of(value)
        return tensor, (tensor.data_ptr(), value.nbytes)

    def copied(self, k: int, value: Any) -> Any:
        buffer = self.buffers.get(k)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = aligned(value.nbytes).view(value.dtype).reshape(value.shape)
            self.buffers[k] = buffer
        np.copyto(buffer, value)
        return buffer


def _usable(value: Any) -> bool:
    flags = value.flags
    return bool(flags.c_contiguous and flags.writeable and address(value) % ALIGNMENT == 0)


def _torch(value: Any) -> Any:
    """The tensor itself, or a copy that lies as TVM needs it; torch aligns what it allocates."""
    found = (value.detach() if value.requires_grad else value).contiguous()
    return found if found.data_ptr() % ALIGNMENT == 0 else found.clone()


def view(data: Any, shape: Sequence[int], dtype: str) -> Any:
    """A TVM tensor over aligned bytes."""
    return tensor_of(data.view(numpy_dtype(dtype)).reshape(tuple(shape)))


def tensor_of(array: Any) -> Any:
    """A TVM tensor over the memory of an aligned numpy array."""
    import tvm_ffi

    if array.dtype.kind != "V":
        return tvm_ffi.from_dlpack(array)
    from tvm.runtime import _ffi_api  # bfloat16, which numpy's exchange protocol does not know

    flat = tvm_ffi.from_dlpack(array.reshape(-1).view(np.uint8))
    dtype = tvm_ffi.dtype(str(array.dtype))
    return _ffi_api.TVMTensorCreateView(flat, tvm_ffi.Shape(array.shape), dtype, 0)


def to_numpy(tensor: Any) -> Any:
    """A numpy array over a TVM tensor's memory (bfloat16: a copy)."""
    return tensor.numpy() if tensor.dtype == "bfloat16" else np.from_dlpack(tensor)


def copy_of(tensor: Any) -> Any:
    array = to_numpy(tensor)
    copy = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return tensor_of(copy)


def span_of(tensor: Any) -> tuple[int, int]:
    array = to_numpy(tensor)
    return address(array), array.nbytes


class Ranges:
    """Spans of memory, (address, bytes), that can be asked whether an address is in one."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self.spans = sorted(spans)

    def __contains__(self, at: int) -> bool:
        k = bisect.bisect_right(self.spans, (at, 1 << 62)) - 1
        return k >= 0 and at < self.spans[k][0] + max(self.spans[k][1], 1)


NOWHERE = Ranges(())


def opened(code: Any, source: Path | None) -> Any:
    """The library as a TVM module; its file is gone before this returns.

    It is unpacked into a folder only this user can read. Linux keeps what is mapped alive without
    a name, so nothing is left to clean up later, however the process ends.
    """
    what = f"{source}: its" if source else "the"
    problem = elf_problem(code)
    if problem:
        raise ArtifactError(f"{what} library cannot be opened: {problem}")
    tvm = import_tvm()
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = os.path.join(folder, LIBRARY)
        with open(path, "xb") as file:
            file.write(code)
        try:
            return tvm.runtime.load_module(path)
        except Exception as e:
            reason = str(e).splitlines()[0]
            raise ArtifactError(
                f"{what} library cannot be opened: {reason} (it is unpacked to "
                f"{tempfile.gettempdir()}; set TMPDIR if programs may not run from there)"
            ) from None


def _instrument(tap: Tap, host: Callable[[Any], Any]) -> Callable[..., int]:
    from tvm.runtime import Tensor

    def see(function: Any, name: str, before: bool, result: Any, *args: Any) -> int:
        if not before and not name.startswith(BOOKKEEPING):
            tap(name, [host(a) for a in args if isinstance(a, Tensor)])
        return 0

    return see


def translated(error: Exception) -> Exception:
    """TVM's error as one line; a check of indices in the program is an IndexError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    kinds: Mapping[str, type[Exception]] = {"IndexError": IndexError, "ValueError": ValueError}
    return kinds.get(type(error).__name__, RunError)(text)
