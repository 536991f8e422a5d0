"""The whole way, from a module to a program, with what it goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qcompiler.context import Event
from qcompiler.graph import Graph, Level
from qcompiler.ops import DynamicQuantize, Quantize
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.statistics import Statistics

from .building import build, built, tune
from .quantizing import Progress, normalized, peek, quantized_by

if TYPE_CHECKING:
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets import Target



@dataclass(frozen=True)
class Stages:
    """What a compilation went through: the FLOAT graph where it began with one, the INTEGER
    graph, the target as it was tuned, the program."""

    traced: Graph | None
    quantized: Graph
    target: Target
    model: CompiledModel


def stages(
    module: Any,
    example_inputs: Any,
    calibration: Iterable[Any] | None = None,
    target: str | Target = "x86-64-v3",
    recipe: str | Recipe = "int8",
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    progress: Progress | None = None,
    tuned: bool = False,
    keep: Callable[[Target], None] = lambda target: None,
) -> Stages:
    """What `compile` does, with the graphs on the way. progress: called (what, done, total).
    tuned: measure first, see `tune`, and quantize by these times. keep: told of the target as soon
    as more is measured."""
    from qcompiler.frontend import trace

    if progress:
        progress("trace", 0, 0)
    traced = trace(module, example_inputs, kwargs, dynamic_shapes)
    return stages_of(traced, calibration, target, recipe, progress, tuned, keep)


def stages_of(
    graph: Graph, calibration: Iterable[Any] | None, target: str | Target, recipe: str | Recipe,
    progress: Progress | None = None, tuned: bool = False,
    keep: Callable[[Target], None] = lambda target: None,
) -> Stages:  # fmt: skip
    """The same from a graph on: one at FLOAT is quantized, one at INTEGER is built as it is."""
    from qcompiler import targets

    say = progress or (lambda what, done, total: None)
    targets.require_buildable(graph)
    machine = targets.get(target)
    if graph.level is Level.INTEGER:
        machine = tune(graph, machine, progress) if tuned else machine
        keep(machine)
        say("build", 0, 0)
        return Stages(None, graph, machine, build(graph, machine))
    kept = calibration is None or isinstance(calibration, Sized | Statistics)
    if tuned and calibration is not None and not kept:
        calibration = list(calibration)  # it is read twice
    hashes: list[str] = []

    def listen(event: str, *details: Any) -> None:
        if event == "calibrated":
            hashes.extend(details)

    if tuned:
        return _tuned(graph, calibration, machine, recipe_of(recipe), say, listen, keep, hashes)
    say("quantize", 0, 0)
    quantized = quantized_by(graph, calibration, machine, recipe, progress, (listen,))
    say("build", 0, 0)
    model = built(quantized, machine, graph, next(iter(hashes), None))
    return Stages(graph, quantized, machine, model)


def _tuned(
    graph: Graph, calibration: Iterable[Any] | None, machine: Target, recipe: Recipe,
    say: Progress, listen: Event, keep: Callable[[Target], None], hashes: Sequence[str],
) -> Stages:  # fmt: skip
    """Quantized for what to measure, then by what was measured, and again where the whole program
    turns out to be slower than in float32."""
    from qcompiler.targets.database import of_layers

    # What was measured of this program before decides nothing.
    machine = replace(machine, times=of_layers(machine.times))
    say("quantize", 0, 0)
    untimed = replace(recipe, max_time=None)
    quantized = quantized_by(graph, calibration, machine, untimed, say, (listen,))
    machine = tune(quantized, machine, say)
    keep(machine)
    for again in (False, True):
        say("quantize", 0, 0)
        quantized = quantized_by(graph, calibration, machine, recipe, say)
        say("build", 0, 0)
        model = built(quantized, machine, graph, next(iter(hashes), None))
        made = Stages(graph, quantized, machine, model)
        times = {} if again else whole_times(made, calibration, recipe, say)
        machine = machine.with_times(times)
        keep(machine)
        if not _changes(times, recipe):
            break
    return replace(made, target=machine)


def _changes(times: Mapping[str, Mapping[str, float]], recipe: Recipe) -> bool:
    """Whether other choices follow from these times of whole programs, float32 first."""
    us = [least for row in times.values() for least in row.values()]
    return bool(us) and (us[1] > us[0] or recipe.max_time is not None)


def whole_times(
    made: Stages, calibration: Iterable[Any] | None, recipe: str | Recipe,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Rows for a kernel database: the programs in float32, as it was made, and by recipe int8, from
    which times of other choices are told, measured in turns on one core. None where that has no
    integers, has state, or its inputs have no fixed shape."""
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets.database import WHOLE
    from qcompiler.whole import made_up, microseconds, program_name

    graph, float32 = made.traced, recipe_of("float32")
    assert graph is not None
    plain = quantized_by(graph, None, made.target, float32, progress)
    sample, _ = peek(calibration, graph)
    inputs = list(sample) if sample is not None else made_up(graph)
    if inputs is None or graph.state or _is_float(made.quantized):
        return {}
    models = {float32: built(plain, made.target), recipe_of(recipe): made.model}
    int8 = recipe_of("int8")
    if recipe_of(recipe).activations is int8.activations and int8 not in models:
        base = quantized_by(graph, calibration, made.target, int8, progress)
        if not _is_float(base):
            models[int8] = built(base, made.target)
    normal = normalized(graph)
    if progress:
        progress("compare", 0, 0)
    programs = {
        program_name(normal, wanted): CompiledModel(model.bundle, threads=1)
        for wanted, model in models.items()
    }
    us = microseconds(programs, inputs)
    return {name: {WHOLE: time} for name, time in us.items()}


def _is_float(graph: Graph) -> bool:
    """Whether nothing in the graph, INTEGER, computes with codes."""
    return not any(isinstance(node.op, Quantize | DynamicQuantize) for node in graph.nodes())


def compile(
    module: Any,
    example_inputs: Any,
    calibration: Iterable[Any] | None = None,
    target: str | Target = "x86-64-v3",
    recipe: str | Recipe = "int8",
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    progress: Progress | None = None,
) -> CompiledModel:
    """trace, quantize and build in one: a PyTorch model to a program for the target."""
    return stages(
        module, example_inputs, calibration, target, recipe, kwargs, dynamic_shapes, progress
    ).model
