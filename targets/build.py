"""A graph to a shared library: Relax memory planning, LLVM code, and a linker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax

from qcompiler.graph import Graph

from .base import Target
from .link import linker
from .lower import Lowered, lower

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Library:
    """A built graph: the bytes of a shared object whose Relax function is `main`.

    weights: (digest, tensor) in the order of main's parameters after inputs and state.
    """

    code: bytes
    weights: tuple[tuple[str, torch.Tensor], ...]
    target: str
    features: tuple[str, ...]


def build(
    graph: Graph, target: Target, see: Callable[[Callable[[], str]], None] | None = None
) -> Library:
    """The library of a FUSED graph. Raises LowerError, or LinkError without a linker.

    see: called with a function that gives the TIR of the kernels as text (TVMScript).
    """
    lowered = lower(graph, target)
    if see is not None:
        see(lowered.mod.script)
    code = shared_object(compiled(lowered, target), target)
    return Library(code, lowered.weights, target.name, target.features)


def compiled(lowered: Lowered, target: Target) -> Any:
    """The executable of a lowered graph, in memory."""
    machine = tvm.target.Target(dict(target.tvm))
    return tvm.compile(lowered.mod, target=machine, relax_pipeline=_pipeline())


def shared_object(executable: Any, target: Target) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path), fcompile=linker(str(target.tvm["mtriple"])))
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
    """`main` of an executable, called with torch tensors; weights are bound."""
    from torch.utils.dlpack import from_dlpack

    machine = relax.VirtualMachine(module, tvm.cpu())
    bound = [tvm.runtime.from_dlpack(tensor) for _, tensor in weights]
    main = machine["main"]

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args = [tvm.runtime.from_dlpack(i.detach().contiguous()) for i in inputs]
        return tuple(from_dlpack(r) for r in main(*args, *bound))

    return call
