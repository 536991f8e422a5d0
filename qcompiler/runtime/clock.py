"""How long each kernel of a program takes, by the instrument of TVM's virtual machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qcompiler.runtime.engine import BOOKKEEPING, Slot
from qcompiler.runtime.model import CompiledModel
from qcompiler.runtime.tvm_runtime import THREADS


@dataclass(frozen=True, eq=False)
class Clock:
    """An instrument: the nanoseconds of every kernel of a call, in the order they ran.

    Its own work, marshalling a kernel's arguments, lies before `started` and after the end.
    """

    spent: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=lambda: [0])

    def __call__(self, function: Any, name: str, before: bool, result: Any, *args: Any) -> int:
        now = time.perf_counter_ns()
        if name.startswith(BOOKKEEPING):
            return 0
        if not before:
            self.spent.append(now - self.started[0])
            return 0
        self.started[0] = time.perf_counter_ns()
        return 0


def kernel_times(model: CompiledModel, inputs: Sequence[Any], rounds: int) -> list[list[float]]:
    """Milliseconds of every kernel in each of `rounds` calls, from the initial state.

    inputs: as the model is called with. Raises ValueError for a program that is not for a CPU.
    """
    if model.manifest.device != "cpu":
        raise ValueError(f"kernels are timed one by one on a CPU only, not {model.manifest.device}")
    engine, _ = model._ready()
    clock = Clock()
    slot = Slot.of(engine.module)
    slot.machine.set_instrument(clock)
    found: list[list[float]] = []
    for _ in range(rounds + 1):  # the first is a warm-up
        clock.spent.clear()
        state = model._initial()
        THREADS.run(model.threads, lambda s=state: slot.run(inputs, s, engine, _unused))  # type: ignore[misc]
        found.append([ns * 1e-6 for ns in clock.spent])
    return found[1:]


def _unused(tensor: Any, shared: bool) -> None:
    """What is made of a result nobody looks at."""
