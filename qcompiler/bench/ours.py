"""Our programs of a task, one per recipe, with the seconds that each stage took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qcompiler.api import Progress, normalized, stages_of
from qcompiler.bench.task import Task
from qcompiler.frontend import trace
from qcompiler.frontend.trees import flatten
from qcompiler.graph import Graph
from qcompiler.peers import Program
from qcompiler.recipe import Activations, Recipe, recipe_of
from qcompiler.runtime import CompiledModel
from qcompiler.targets import Target
from qcompiler.whole import program_name


@dataclass(frozen=True, eq=False)
class Traced:
    """The FLOAT graph of a task, and the seconds it took."""

    task: Task
    graph: Graph
    seconds: float

    @cached_property
    def normal(self) -> Graph:
        """What is quantized of it, before anything is chosen."""
        return normalized(self.graph)

    @staticmethod
    def of(task: Task) -> Traced:
        start = time.perf_counter()
        options = {**task.options, "kwargs": dict(task.kwargs) or None}
        graph = trace(task.module, task.args, **options)
        return Traced(task, graph, time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Built:
    """One of our programs and the inputs it is measured on. seconds: by stage. whole: the name of
    its time in a kernel database; empty where a quantized one has come out in float."""

    model: CompiledModel
    inputs: Sequence[Any]
    seconds: Mapping[str, float]
    whole: str

    def program(self, threads: int) -> Program:
        """With a library of its own, so that programs of other thread counts stand beside it."""
        model = CompiledModel(self.model.bundle, threads=threads)
        return Program(lambda: model(*self.inputs), _arrays)


def built(traced: Traced, recipe: str | Recipe, target: Target, show: Progress) -> Built:
    """Raises whatever quantize and build raise: a refusal says why."""
    task = traced.task
    wanted = recipe_of(recipe)
    began: dict[str, float] = {}

    def mark(what: str, done: int, total: int) -> None:
        began.setdefault(what, time.perf_counter())
        show(f"{what} {wanted.name}", done, total)

    made = stages_of(traced.graph, task.calibration(), target, wanted, mark).model
    end = time.perf_counter()
    seconds = {
        "trace": traced.seconds,
        "quantize": began["build"] - began["quantize"],
        "build": end - began["build"],
    }
    inputs = flatten(made.manifest.main.trees[0], task.args, task.kwargs)
    as_wished = wanted.activations is Activations.NONE or made.report.integer_share > 0
    name = program_name(traced.normal, wanted) if as_wished else ""
    return Built(made, inputs, seconds, name)


def _arrays(results: Any) -> Sequence[Any]:
    values = results if isinstance(results, tuple) else (results,)
    return [v.numpy() if hasattr(v, "detach") else v for v in values]
