"""The four verbs that wire passes, targets and runtime together: quantize, build, compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.config import Config, from_env
from qcompiler.context import Context, Event
from qcompiler.graph import Graph, Level
from qcompiler.observers import observers_of
from qcompiler.ops import DynamicQuantize, Quantize
from qcompiler.recipe import Activations, Recipe, recipe_of
from qcompiler.tradeoff import DROPS, FrontPoint, continued

if TYPE_CHECKING:
    from qcompiler.accept import Evaluate
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets import Target

Progress = Callable[[str, int, int], None]


def quantize(
    graph: Graph,
    calibration: Iterable[Any] | None = None,
    target: str | Target = "x86-64-v3",
    recipe: str | Recipe = "int8",
    progress: Progress | None = None,
    *,
    max_drop: float | None = None,
    max_time: float | None = None,
    evaluate: Evaluate | None = None,
) -> Graph:
    """A FLOAT graph to an INTEGER graph for the target's proofs; any target can build it.

    calibration: iterable of tensor | tuple (positional) | dict (keyword), cut along axis 0 into
    pieces of the traced batch size; required by recipes with static activations. max_drop: decibels
    that may be lost at the outputs against int8, of recipes that choose sums. max_time: instead,
    milliseconds of a call on one core by the target's times; the most accurate choices within it
    are made. evaluate: a metric, higher is better, called with a function of the model's inputs;
    then max_drop is in its units, against the float model (0 unless given), and the fastest graph
    tried that holds it is returned.
    Raises ValueError (and subclasses) in one or two lines that name node, expected and got.
    """
    if max_time is not None:
        if max_drop is not None or evaluate is not None:
            raise ValueError("quantize: expected max_time alone, got a loss or a metric, too")
        recipe = recipe_of(recipe).lasting(max_time)
    if max_drop is None and evaluate is None:
        return _quantized(graph, calibration, target, recipe, progress)
    allowed = max_drop or 0.0
    wanted = recipe_of(recipe)
    if evaluate is None:
        less = wanted.dropping(allowed)
        return _quantized(graph, calibration, target, less, progress)
    from qcompiler.accept import accepted

    _at(graph, Level.FLOAT, "quantize", "give it what qc.trace returns")
    items = list(calibration) if calibration is not None else None
    return accepted(
        graph, wanted, lambda r: _quantized(graph, items, target, r, progress), evaluate, allowed
    )  # fmt: skip


def _quantized(
    graph: Graph, calibration: Iterable[Any] | None, target: str | Target, recipe: str | Recipe,
    progress: Progress | None, listen: tuple[Event, ...] = (),
) -> Graph:  # fmt: skip
    from qcompiler import passes
    from qcompiler import targets as machines

    _at(graph, Level.FLOAT, "quantize", "give it what qc.trace returns")
    config = _config()
    ctx = context(graph, calibration, machines.get(target), recipe, progress)
    ctx = replace(ctx, listen=listen)
    steps = passes.quantize.stages(graph, ctx, observers_of(config), config.bisect)
    return _last(graph, steps)


def _at(graph: Any, level: Level, verb: str, cure: str) -> None:
    """Raises ValueError unless the value is a graph at that level."""
    if isinstance(graph, Graph) and graph.level is level:
        return
    found = graph.level.name if isinstance(graph, Graph) else type(graph).__name__
    raise ValueError(f"{verb}: expected a graph at {level.name}, got {found}; {cure}")


def _config() -> Config:
    """Raises ValueError for a QC_PRINT that would never print."""
    from qcompiler import passes

    config = from_env()
    known = ("all", "changed", *(p.name for p in passes.ALL))
    if config.print and config.print not in known:
        raise ValueError(f"QC_PRINT: expected one of {', '.join(known)}, got {config.print!r}")
    return config


def context(
    graph: Graph, calibration: Iterable[Any] | None, target: Target, recipe: str | Recipe,
    progress: Progress | None = None,
) -> Context:  # fmt: skip
    """What the passes that quantize the graph know; the data only for recipes that need it."""
    wanted = recipe_of(recipe)
    data = calibration if wanted.activations is Activations.STATIC else None
    sample, data = _peek(data, graph)
    ctx = Context(target, wanted, data, sample=sample)
    return replace(ctx, progress=progress) if progress else ctx


def _last(graph: Graph, steps: Iterable[Graph]) -> Graph:
    return [graph, *steps][-1]


def _peek(data: Iterable[Any] | None, graph: Graph) -> tuple[Any, Iterable[Any] | None]:
    """The first piece of the calibration data, and the data with that item still in it."""
    from qcompiler.data import DataError, cut_items, items_of

    if data is None:
        return None, None
    items = items_of(data, graph)
    rest = iter(items)
    first = list(islice(rest, 1))
    try:
        sample = next(cut_items(first, graph))[0]
    except DataError:  # told by calibrate, which says what QC_REPRO asks for
        sample = None
    return sample, items if isinstance(items, Sized) else chain(first, rest)


def front(
    graph: Graph, calibration: Iterable[Any] | None = None, target: str | Target = "x86-64-v3",
    recipe: str | Recipe = "auto", drops: Sequence[float] = DROPS, file: Path | str | None = None,
    progress: Progress | None = None,
) -> list[FrontPoint]:  # fmt: skip
    """What accuracy costs: of each drop (decibels at the outputs against int8) the fastest choices
    that lose no more, those that others are as good as left out, by time. graph: FLOAT.

    Nothing is measured; `quantize` with that max_drop makes a point. file: JSON, written after each
    point, so that an interrupted front goes on. Raises FrontError for a file that is something
    else, ValueError.
    """
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.passes.assign_precision import search_of
    from qcompiler.pipeline import Pipeline

    less = recipe_of(recipe).dropping(0.0)
    _at(graph, Level.FLOAT, "front", "give it what qc.trace returns")
    ctx = context(graph, calibration, machines.get(target), less, progress)
    before = passes.QUANTIZE[: passes.QUANTIZE.index(passes.by_name("assign-precision"))]
    search = search_of(Pipeline(before)(graph, ctx), ctx)
    return continued(search.point, search.digest, drops, file, ctx.progress)


def build(graph: Graph, target: str | Target = "x86-64-v3") -> CompiledModel:
    """An INTEGER graph to a program for the target, in memory; `save` writes it.

    Raises LowerError listing every node without a kernel, with the reason.
    """
    return _built(graph, target)


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

    _at(graph, Level.INTEGER, "tune", "run qc.quantize first, with recipe='float32' for no codes")
    machine = machines.get(target)
    machines.require_buildable(graph)
    fused = passes.regions(graph, Context(machine))
    show = progress or (lambda what, done, total: None)
    times = THREADS.run(1, lambda: measured(fused, machine, show))
    return machine.with_times(times)


def _built(
    graph: Graph, target: str | Target, source: Graph | None = None, calibration: str | None = None
) -> CompiledModel:
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets.build import build as lowered

    _at(graph, Level.INTEGER, "build", "run qc.quantize first, with recipe='float32' for no codes")
    machine = machines.get(target)
    machines.require_buildable(graph)
    config = _config()
    ctx = Context(machine)
    observers = observers_of(config)
    # QC_BISECT counts on from the passes of quantize.
    left = max(config.bisect - passes.quantize.optional, 0) if config.bisect >= 0 else -1
    fused = _last(graph, passes.build.stages(graph, ctx, observers, left))

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
    if tuned and calibration is not None and not isinstance(calibration, Sized):
        calibration = list(calibration)  # it is read twice
    hashes: list[str] = []

    def listen(event: str, *details: Any) -> None:
        if event == "calibrated":
            hashes.extend(details)

    if tuned:
        return _tuned(graph, calibration, machine, recipe_of(recipe), say, listen, keep, hashes)
    say("quantize", 0, 0)
    quantized = _quantized(graph, calibration, machine, recipe, progress, (listen,))
    say("build", 0, 0)
    model = _built(quantized, machine, graph, next(iter(hashes), None))
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
    quantized = _quantized(graph, calibration, machine, untimed, say, (listen,))
    machine = tune(quantized, machine, say)
    keep(machine)
    for again in (False, True):
        say("quantize", 0, 0)
        quantized = _quantized(graph, calibration, machine, recipe, say)
        say("build", 0, 0)
        model = _built(quantized, machine, graph, next(iter(hashes), None))
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
    plain = _quantized(graph, None, made.target, float32, progress)
    sample, _ = _peek(calibration, graph)
    inputs = list(sample) if sample is not None else made_up(graph)
    if inputs is None or graph.state or _is_float(made.quantized):
        return {}
    models = {float32: _built(plain, made.target), recipe_of(recipe): made.model}
    int8 = recipe_of("int8")
    if recipe_of(recipe).activations is int8.activations and int8 not in models:
        base = _quantized(graph, calibration, made.target, int8, progress)
        if not _is_float(base):
            models[int8] = _built(base, made.target)
    normal = normalized(graph)
    if progress:
        progress("compare", 0, 0)
    programs = {
        program_name(normal, wanted): CompiledModel(model.bundle, threads=1)
        for wanted, model in models.items()
    }
    us = microseconds(programs, inputs)
    return {name: {WHOLE: time} for name, time in us.items()}


def normalized(graph: Graph) -> Graph:
    """A FLOAT graph as it is before anything is chosen: what programs are named by."""
    from qcompiler import passes
    from qcompiler.pipeline import Pipeline

    return Pipeline(passes.NORMALIZE)(graph)


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
