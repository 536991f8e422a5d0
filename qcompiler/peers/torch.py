"""PyTorch itself, compiled by Inductor with frozen weights.

Eager PyTorch is no mode: it is what results are compared with, and measured in any case.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qcompiler.peers.exported import tensors
from qcompiler.peers.mode import Job, Mode, Precision, Program, Skipped

PEER = "torch"
COMPILERS = ("g++", "clang++", "c++")
"""What Inductor looks for to compile kernels for the CPU."""


def compiled(job: Job) -> Program:
    """Inductor with freezing: weights are constants that it packs. Compiles in the first call."""
    if not any(map(shutil.which, COMPILERS)):
        raise Skipped(f"torch.compile needs a C++ compiler ({', '.join(COMPILERS)}); install one")
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    torch.set_num_threads(job.threads)
    made = _program(job, torch.compile(job.module))
    with inductor.patch(freezing=True, compile_threads=1):
        made.call()
    return made


def _program(job: Job, module: Callable[..., Any]) -> Program:
    def call() -> Any:
        # Freezing needs no_grad, and knows nothing of inference_mode.
        torch.set_num_threads(job.threads)
        with torch.no_grad():
            return module(*job.inputs)

    return Program(call, _arrays)


def _arrays(results: Any) -> Sequence[Any]:
    return [t.numpy() for t in tensors(results)]


MODES = (Mode(PEER, "float32 compiled", "Inductor, frozen weights", Precision.FLOAT32, compiled),)
