"""Measure one task: every program prepared, judged on the held-out input, and timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qcompiler.api import Progress
from qcompiler.bench.bars import SCALED
from qcompiler.bench.ours import Built, Traced, built
from qcompiler.bench.row import OURS, REFERENCE, Row, precision_of
from qcompiler.bench.task import Task
from qcompiler.peers import Job, Mode, Precision, Program, Skipped
from qcompiler.peers.exported import ExportError, tensors
from qcompiler.peers.mode import first_line
from qcompiler.recipe import Recipe, recipe_of
from qcompiler.report.quality import sqnr
from qcompiler.targets import Target
from qcompiler.timing import CALM, in_long_turns


@dataclass(frozen=True)
class Plan:
    """What is measured of each task. recipes: ours; None: those that make sense for the task,
    where one that is refused is listed with its reason and ends nothing."""

    target: Target
    recipes: tuple[str | Recipe, ...] | None
    modes: tuple[Mode, ...] = ()
    threads: int = 1
    rounds: int = 10
    batch: int = 1


@dataclass(frozen=True, eq=False)
class Candidate:
    """A row to be measured. program: None where it has a failure."""

    row: Row
    program: Program | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """The rows of a task, and our programs by recipe."""

    rows: tuple[Row, ...]
    built: dict[str, Built]


def measured(
    task: Task, plan: Plan, show: Progress, single: Callable[[], Task] | None = None
) -> Measured:
    """single: the same task at batch 1, where the plan's batch is larger."""
    torch.set_num_threads(plan.threads)
    show(f"trace {task.name}", 0, 0)
    traced = Traced.of(task)
    programs: dict[str, Built] = {}
    with TemporaryDirectory(prefix="qcompiler-bench-") as folder:
        candidates = [_reference(task, plan)]
        candidates += _ours(traced, plan, programs, show)
        if single is not None:
            candidates += _at_batch_1(single(), plan, show)
        candidates += _peers(traced, plan, Path(folder), show)
        rows = _timed([_judged(c, task, candidates[0], plan) for c in candidates], plan, show)
    gc.collect()
    return Measured(tuple(rows), programs)


def _reference(task: Task, plan: Plan) -> Candidate:
    row = Row(f"float32 ({REFERENCE})", REFERENCE, "float32", Precision.FLOAT32,
              plan.threads, plan.batch)  # fmt: skip

    def call() -> Any:
        torch.set_num_threads(plan.threads)
        with torch.inference_mode():
            return task.callable(*task.args, **task.kwargs)

    return Candidate(row, Program(call, lambda found: [t.numpy() for t in tensors(found)]))


def _ours(
    traced: Traced, plan: Plan, programs: dict[str, Built], show: Progress
) -> Iterator[Candidate]:
    """What is built is put into `programs`, by recipe."""
    for recipe in traced.task.recipes if plan.recipes is None else plan.recipes:
        name = recipe if isinstance(recipe, str) else recipe.name
        row = Row(f"{name} ({plan.target.name})", OURS, name, precision_of(name),
                  plan.threads, plan.batch)  # fmt: skip
        try:
            made = built(traced, recipe, plan.target, show)
        except Exception as e:
            if plan.recipes is not None:
                raise
            yield Candidate(replace(row, failure=reason(e)))
            continue
        programs[name] = made
        row = replace(row, seconds=made.seconds, whole=made.whole)
        yield Candidate(row, made.program(plan.threads))
        if plan.threads > 1 and name == SCALED:
            single = replace(row, program=f"{row.program}, 1 thread", threads=1, scaling=True)
            yield Candidate(single, made.program(1))


def _at_batch_1(task: Task, plan: Plan, show: Progress) -> Iterator[Candidate]:
    row = Row(f"{SCALED} ({plan.target.name}), batch 1", OURS, SCALED, precision_of(SCALED),
              plan.threads, scaling=True)  # fmt: skip
    try:
        made = built(Traced.of(task), SCALED, plan.target, show)
    except Exception as e:
        yield Candidate(replace(row, failure=reason(e)))
        return
    yield Candidate(row, made.program(plan.threads))


def _peers(traced: Traced, plan: Plan, folder: Path, show: Progress) -> Iterator[Candidate]:
    modes = [m for m in plan.modes if traced.task.family in m.families]
    if not modes:
        return
    job = traced.task.job(traced.graph, plan.threads, folder)
    for done, mode in enumerate(modes):
        show(f"prepare {mode.label}", done + 1, len(modes))
        yield _prepared(mode, job, plan)
        gc.collect()


def _prepared(mode: Mode, job: Job, plan: Plan) -> Candidate:
    row = Row(mode.label, mode.peer, mode.name, mode.precision, plan.threads, plan.batch,
              note=mode.note())  # fmt: skip
    try:
        return Candidate(row, mode.prepare(job))
    except Exception as e:
        return Candidate(replace(row, failure=reason(e)))


def reason(error: Exception) -> str:
    """The error as one line, with its type where that says something to a reader."""
    text, kind = first_line(error), type(error).__name__
    told = isinstance(error, ValueError | ImportError | Skipped | ExportError) or text == kind
    return text if told else f"{kind}: {text}"


def _judged(candidate: Candidate, task: Task, reference: Candidate, plan: Plan) -> Candidate:
    """With the SQNR of its outputs; a program that fails when it is called is a failure."""
    row, program = candidate.row, candidate.program
    if program is None or candidate is reference:
        return candidate
    assert reference.program is not None
    try:
        found = program.outputs()
        other = row.scaling and row.batch < reference.row.batch
        quality = None if other else quality_of(reference.program.outputs(), found)
    except Exception as e:
        if row.ours and plan.recipes is not None:
            raise
        return Candidate(replace(row, failure=reason(e)))
    judged = task.judged or row.precision is Precision.FLOAT32
    return Candidate(replace(row, sqnr=quality if judged else None), program)


def quality_of(wanted: Sequence[Any], found: Sequence[Any]) -> float:
    """The lowest SQNR among the outputs that hold floats. ValueError when they do not match."""
    if len(wanted) != len(found):
        raise ValueError(f"expected {len(wanted)} outputs, as torch gives, got {len(found)}")
    pairs = zip(wanted, found, strict=True)
    return min((sqnr(w, f) for w, f in pairs if w.dtype.kind == "f"), default=float("inf"))


def _timed(candidates: Sequence[Candidate], plan: Plan, show: Progress) -> list[Row]:
    calls = {c.row.program: c.program.call for c in candidates if c.program is not None}
    # TVM's pool of workers can shrink later, never grow.
    order = sorted(calls, key=lambda name: name.endswith("1 thread"))
    calm = CALM if plan.threads > 1 else 0.0
    times = in_long_turns({k: calls[k] for k in order}, plan.rounds, calm, show)
    return [replace(c.row, times=times.get(c.row.program)) for c in candidates]


def wanted_recipes(recipe: Recipe | str) -> tuple[str | Recipe, ...]:
    """Float32, and the one asked for."""
    float32 = recipe_of("float32")
    return tuple(dict.fromkeys((float32, recipe_of(recipe))))
