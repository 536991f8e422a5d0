"""From FLOAT to INTEGER: quantize, what accuracy costs, and what makes the error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.config import Config, from_env
from qcompiler.context import Context, Event
from qcompiler.graph import Graph, Level
from qcompiler.observers import observers_of
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.statistics import Statistics
from qcompiler.tradeoff import DROPS, FrontPoint, continued

if TYPE_CHECKING:
    from qcompiler.accept import Evaluate
    from qcompiler.ledger import Ledger
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
    pieces of the traced batch size, or what `calibrate` made of one; required by recipes with
    static activations. max_drop: decibels
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
        return quantized_by(graph, calibration, target, recipe, progress)
    allowed = max_drop or 0.0
    wanted = recipe_of(recipe)
    if evaluate is None:
        less = wanted.dropping(allowed)
        return quantized_by(graph, calibration, target, less, progress)
    from qcompiler.accept import accepted

    at(graph, Level.FLOAT, "quantize", "give it what qc.trace returns")
    items = calibration
    if items is not None and not isinstance(items, Statistics):
        items = list(items)
    return accepted(
        graph, wanted, lambda r: quantized_by(graph, items, target, r, progress), evaluate, allowed
    )  # fmt: skip


def quantized_by(
    graph: Graph, calibration: Iterable[Any] | None, target: str | Target, recipe: str | Recipe,
    progress: Progress | None, listen: tuple[Event, ...] = (),
) -> Graph:  # fmt: skip
    from qcompiler import passes
    from qcompiler import targets as machines

    at(graph, Level.FLOAT, "quantize", "give it what qc.trace returns")
    config = configured()
    ctx = context(graph, calibration, machines.get(target), recipe, progress)
    ctx = replace(ctx, listen=listen)
    steps = passes.quantizing(ctx.recipe).stages(graph, ctx, observers_of(config), config.bisect)
    return last(graph, steps)


def at(graph: Any, level: Level, verb: str, cure: str) -> None:
    """Raises ValueError unless the value is a graph at that level."""
    if isinstance(graph, Graph) and graph.level is level:
        return
    found = graph.level.name if isinstance(graph, Graph) else type(graph).__name__
    raise ValueError(f"{verb}: expected a graph at {level.name}, got {found}; {cure}")


def configured() -> Config:
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
    data = calibration if wanted.needs_data else None
    if wanted.needs_data_again and data is not None and not isinstance(data, Sized):
        data = list(data)
    sample, data = peek(data, graph)
    ctx = Context(target, wanted, data, sample=sample)
    return replace(ctx, progress=progress) if progress else ctx


def last(graph: Graph, steps: Iterable[Graph]) -> Graph:
    return [graph, *steps][-1]


def peek(data: Iterable[Any] | None, graph: Graph) -> tuple[Any, Iterable[Any] | None]:
    """The first piece of the calibration data, and the data with that item still in it."""
    from qcompiler.data import DataError, cut_items, items_of

    if data is None or isinstance(data, Statistics):
        return (None if data is None else data.sample or None), data
    items = items_of(data, graph)
    rest = iter(items)
    first = list(islice(rest, 1))
    try:
        sample = next(cut_items(first, graph))[0]
    except DataError:  # told by calibrate, which says what QC_REPRO asks for
        sample = None
    return sample, items if isinstance(items, Sized) else chain(first, rest)


def calibrate(
    graph: Graph, data: Iterable[Any], file: Path | str | None = None,
    progress: Progress | None = None,
) -> Statistics:  # fmt: skip
    """Statistics of every value of a FLOAT graph over data, which `quantize` takes in the place of
    the data; they merge, in any order to the same bits.

    file: .safetensors, written every few seconds: an interrupted run goes on with what it had.
    Raises DataError, also for a file of another model or of other data, OSError.
    """
    from qcompiler.passes.gather_statistics import gathered

    at(graph, Level.FLOAT, "calibrate", "give it what qc.trace returns")
    ctx = Context(None, recipe_of("int8"), data)
    ctx = replace(ctx, progress=progress) if progress else ctx
    return gathered(normalized(graph), ctx, file)


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
    at(graph, Level.FLOAT, "front", "give it what qc.trace returns")
    ctx = context(graph, calibration, machines.get(target), less, progress)
    steps = passes.quantizing(less).passes
    before = steps[: steps.index(passes.assign_precision)]
    search = search_of(Pipeline(before)(graph, ctx), ctx)
    return continued(search.point, search.digest, drops, file, ctx.progress)


def explain(
    graph: Graph, calibration: Iterable[Any], target: str | Target = "x86-64-v3",
    recipe: str | Recipe = "int8", progress: Progress | None = None,
) -> Ledger:  # fmt: skip
    """Which tensors and weights make the error that `quantize` with the same arguments makes at
    the outputs, why, and what helps, tried out on pieces of the calibration data. graph: FLOAT.

    Takes about as long as `quantize` and a hundred calls of the interpreter. Raises ValueError.
    """
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.passes.explain import explained

    at(graph, Level.FLOAT, "explain", "give it what qc.trace returns")
    items = calibration if isinstance(calibration, Sized) else list(calibration)
    ctx = context(graph, items, machines.get(target), recipe, progress)
    return explained(graph, ctx, passes.quantizing(ctx.recipe), items)


def normalized(graph: Graph) -> Graph:
    """A FLOAT graph as it is before anything is chosen: what programs are named by."""
    from qcompiler import passes
    from qcompiler.pipeline import Pipeline

    return Pipeline(passes.NORMALIZE)(graph)
