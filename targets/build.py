"""A graph to a shared library: Relax memory planning, LLVM code, and a linker."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import relax

from qcompiler import nvcc
from qcompiler.graph import Graph

from .base import Target
from .database import digest
from .link import linker
from .lower import Lowered, lower

if TYPE_CHECKING:
    import torch

CREATE = "ffi.Module.create.cuda"
"""What TVM makes modules of machine code with."""
# TVM has one such function for all threads.
_without_cuda = threading.Lock()


@dataclass(frozen=True)
class Library:
    """A built graph: the bytes of a shared object whose Relax function is `main`.

    weights: (digest, tensor) in the order of main's parameters after inputs and state. faults: what
    the last results of main mean, see lower.Lowered. device: what runs main, as TVM names it.
    kernels: machine code of a device, for the source in `code`; empty where no compiler was found.
    instructions: see lower.Lowered. database: digest of the measured times that it was built with.
    """

    code: bytes
    weights: tuple[tuple[str, torch.Tensor], ...]
    target: str
    features: tuple[str, ...]
    faults: tuple[str, ...] = ()
    device: str = "cpu"
    kernels: bytes = b""
    instructions: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None


def build(
    graph: Graph, target: Target, see: Callable[[Callable[[], str]], None] | None = None
) -> Library:
    """The library of a FUSED graph. Raises LowerError, or LinkError without a linker.

    see: called with a function that gives the TIR of the kernels as text (TVMScript).
    """
    lowered = lower(graph, target)
    if see is not None:
        see(lowered.mod.script)
    executable = compiled(lowered, target)
    return Library(
        shared_object(executable, target), lowered.weights, target.name, target.features,
        lowered.faults, target.device, _machine_code(executable, target), lowered.instructions,
        digest(target.times),
    )  # fmt: skip


def compiled(lowered: Lowered, target: Target) -> Any:
    """The executable of a lowered graph, in memory. A GPU's kernels are text in it."""
    machine = tvm.target.Target(dict(target.tvm))
    # Loops stay loops in the text of a GPU's kernels, which nvcc then unrolls.
    config = {} if target.device == "cpu" else {"tirx.UnrollLoop": {"explicit_unroll": False}}
    as_text = nullcontext() if target.device == "cpu" else _device_code_as_text()
    with as_text, tvm.transform.PassContext(config=config):
        return tvm.compile(lowered.mod, target=machine, relax_pipeline=_pipeline())


@contextmanager
def _device_code_as_text() -> Iterator[None]:
    """TVM keeps CUDA kernels as source, as it does where it finds no CUDA runtime.

    Where it finds one it would compile them at once, with fast math and for the device at hand.
    """
    with _without_cuda:
        create = tvm_ffi.get_global_func(CREATE, allow_missing=True)
        if create is None:
            yield
            return
        tvm_ffi.remove_global_func(CREATE)
        try:
            yield
        finally:
            tvm_ffi.register_global_func(CREATE, create)


def device_source(executable: Any) -> str:
    """The text of a GPU's kernels; empty for a CPU."""

    def texts(module: Any) -> Iterator[str]:
        if module.kind == "cuda":
            yield module.inspect_source("cuda")
        for part in module.imports:
            yield from texts(part)

    return "".join(texts(executable.mod))


def _machine_code(executable: Any, target: Target) -> bytes:
    if target.device == "cpu" or not nvcc.found():
        return b""
    return nvcc.fatbin(device_source(executable), target.architecture)


def shared_object(executable: Any, target: Target) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path), fcompile=linker(target.triple))
        return path.read_bytes()


def _pipeline() -> Any:
    """TVM's own, without what rewrites operators: there are only kernel calls and views here."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.StaticPlanBlockMemory(),
            t.LowerAllocTensor(),
            t.KillAfterLastUse(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
        ]
    )


def load(library: Library) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The library as a function of torch tensors (inputs, then state), for tests and timing."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library.code)
        file.flush()
        module = tvm.runtime.load_module(file.name)
    return runner(module, library.weights)


def runner(module: Any, weights: tuple[tuple[str, torch.Tensor], ...]) -> Callable[..., Any]:
    """`main` of an executable for a CPU, called with torch tensors; weights are bound."""
    from torch.utils.dlpack import from_dlpack

    machine = relax.VirtualMachine(module, tvm.cpu())
    bound = [tvm.runtime.from_dlpack(tensor) for _, tensor in weights]
    main = machine["main"]

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args = [tvm.runtime.from_dlpack(i.detach().contiguous()) for i in inputs]
        return tuple(from_dlpack(r) for r in main(*args, *bound))

    return call
