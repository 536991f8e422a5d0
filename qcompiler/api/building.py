"""From INTEGER to a program: build, and tune, which measures kernels for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.observers import observers_of

from .quantizing import Progress, at, configured, last

if TYPE_CHECKING:
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets import Target



def build(graph: Graph, target: str | Target = "x86-64-v3") -> CompiledModel:
    """An INTEGER graph to a program for the target, in memory; `save` writes it.

    Raises LowerError listing every node without a kernel, with the reason.
    """
    return built(graph, target)


def tune(
    graph: Graph, target: str | Target = "native", progress: Progress | None = None
) -> Target:
    """The target, with times measured on this machine for the products of an INTEGER graph, by
    every instruction for them and in float32: what is quantized for it then chooses by them, and
    what is built for it uses the fastest tiles. See targets.database for files of them.

    Raises TuneError where this machine cannot run the target's programs.
    """
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.runtime.tvm_runtime import THREADS
    from qcompiler.targets.tune import tune as measured

    at(graph, Level.INTEGER, "tune", "run qc.quantize first, with recipe='float32' for no codes")
    machine = machines.get(target)
    machines.require_buildable(graph)
    fused = passes.regions(graph, Context(machine))
    show = progress or (lambda what, done, total: None)
    times = THREADS.run(1, lambda: measured(fused, machine, show))
    return machine.with_times(times)


def built(
    graph: Graph, target: str | Target, source: Graph | None = None, calibration: str | None = None
) -> CompiledModel:
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets.build import build as lowered

    at(graph, Level.INTEGER, "build", "run qc.quantize first, with recipe='float32' for no codes")
    machine = machines.get(target)
    machines.require_buildable(graph)
    config = configured()
    ctx = Context(machine)
    observers = observers_of(config)
    # QC_BISECT counts on from the passes of quantize.
    left = max(config.bisect - passes.quantize.optional, 0) if config.bisect >= 0 else -1
    fused = last(graph, passes.build.stages(graph, ctx, observers, left))

    def see(script: Callable[[], str]) -> None:
        for observer in observers:
            observer.lowered(script)

    try:
        library = lowered(fused, machine, see)
    except Exception as e:
        for observer in observers:
            observer.unbuilt(graph, ctx, e)
        raise
    return CompiledModel.of(library, fused, graph, source, calibration)
