"""A session of `qcompiler bench`: tasks measured one after the other, shown as they are done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from qcompiler.api import Progress
from qcompiler.bench import surroundings, table
from qcompiler.bench.bars import Verdict, in_time, verdicts
from qcompiler.bench.measure import Measured, Plan, measured
from qcompiler.bench.peak import Peak, peaks
from qcompiler.bench.per_op import OpTime, per_op
from qcompiler.bench.resident import Resident, memory_verdict, residents
from qcompiler.bench.row import Row
from qcompiler.bench.task import Task
from qcompiler.runtime import CompiledModel
from qcompiler.targets.database import WHOLE

Open = Callable[[int], Task]
"""batch -> the task, made when its turn comes: models are large."""


@dataclass(frozen=True)
class Wish:
    """What is asked for beside times. per_op: the recipe whose kernels are timed one by one, or
    empty. peers: names, for the memory."""

    peers: tuple[str, ...] = ()
    per_op: str = ""
    compile: bool = False
    memory: bool = False


@dataclass(frozen=True)
class Done:
    """The results for one task."""

    name: str
    rows: tuple[Row, ...]
    bars: tuple[Verdict, ...]
    per_op: tuple[OpTime, ...] = ()


@dataclass(frozen=True)
class Results:
    """All of a session."""

    works: tuple[Done, ...]
    memory: tuple[Resident, ...] = ()
    bars: tuple[Verdict, ...] = ()

    def as_json(self, source: str, plan: Plan) -> dict[str, Any]:
        """source: as the command names it; of a single one, the times come first by program."""
        times = {r.program: asdict(r.times) for r in _rows(self.works) if r.times is not None}
        found = {
            "source": source, "threads": plan.threads, "batch": plan.batch,
            "machine": surroundings.machine(), "versions": surroundings.versions(),
            **({"times_ms": times} if len(self.works) == 1 else {}),
            "works": [asdict(done) for done in self.works],
            "memory": [asdict(r) for r in self.memory],
            "bars": [asdict(v) for v in self.bars],
        }  # fmt: skip
        return plain(found)  # type: ignore[no-any-return]


    def whole_times(self) -> dict[str, dict[str, float]]:
        """Rows for a kernel database: our programs at one thread."""
        return {
            row.whole: {WHOLE: round(row.times.least * 1e3, 2)} for row in _rows(self.works)
            if row.whole and row.threads == 1 and row.times is not None
        }  # fmt: skip


def _rows(works: Iterable[Done]) -> list[Row]:
    return [row for done in works for row in done.rows]


def plain(value: Any) -> Any:
    """The value as JSON has it: enums by value, infinite and undefined numbers as texts."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def session(
    tasks: Sequence[Open], plan: Plan, wish: Wish, show: Progress,
    say: Callable[[Any], None],
) -> Results:  # fmt: skip
    """say: told of each table once it is there."""
    works: list[Done] = []
    for opened in tasks:
        works.append(_one(opened, plan, wish, show, say))
    memory = residents(plan.target, wish.peers, plan.threads, show) if wish.memory else []
    if memory:
        say(table.memory_table(memory))
    last = memory_verdict(memory) if memory else None
    bars = [v for done in works for v in done.bars] + [v for v in (last,) if v is not None]
    if bars:
        say(table.bars_table(bars))
    if wish.peers or len(works) > 1:
        versions = ", ".join(f"{k} {v}" for k, v in surroundings.versions().items())
        say(f"{surroundings.machine()}\n{versions}")
    return Results(tuple(works), tuple(memory), tuple(bars))


def _one(opened: Open, plan: Plan, wish: Wish, show: Progress, say: Callable[[Any], None]) -> Done:
    task = opened(plan.batch)
    single = (lambda: opened(1)) if plan.batch > 1 else None
    found = measured(task, plan, show, single)
    say(table.times_table(title(task.name, plan, found.rows), found.rows))
    if table.remarks(found.rows):
        say(table.remarks(found.rows))
    bars = verdicts(task.name, found.rows) if wish.peers else []
    if wish.compile:
        say(table.seconds_table(task.name, found.rows))
        bars = [*bars, *in_time(task.name, found.rows)]
    ops = _ops(wish.per_op, found, plan, say) if wish.per_op else []
    return Done(task.name, found.rows, tuple(bars), tuple(ops))


def title(name: str, plan: Plan, rows: Sequence[Row]) -> str:
    plural = "s" if plan.threads > 1 else ""
    batch = f", batch {plan.batch}" if plan.batch > 1 else ""
    return f"{name}: one call, {plan.threads} thread{plural}{batch}, {plan.rounds} rounds"


def _ops(recipe: str, found: Measured, plan: Plan, say: Callable[[Any], None]) -> list[OpTime]:
    built = found.built.get(recipe)
    if built is None:
        say(f"per op: there is no program of recipe {recipe!r}")
        return []
    row = next(r for r in found.rows if r.ours and r.setting == recipe and not r.scaling)
    model = CompiledModel(built.model.bundle, threads=plan.threads)
    return ops_of(model, built.inputs, row.ms, row.program, say)


def ops_of(
    model: CompiledModel, inputs: Sequence[Any], call_ms: float, name: str,
    say: Callable[[Any], None],
) -> list[OpTime]:  # fmt: skip
    """The kernels of one of our programs, shown."""
    float32, integer = peaks(model.manifest.features)
    limits = (_times(float32, model.threads), _times(integer, model.threads))
    found = per_op(model, inputs, limits)
    say(table.ops_table(f"{name}, per kernel", found))
    say(table.ops_summary(found, (float32, integer), call_ms))
    return found


def _times(peak: Peak | None, threads: int) -> float | None:
    return peak.gmacs * threads if peak is not None else None


def with_calibration(task: Task, calibration: Callable[[], Iterable[Any]]) -> Task:
    """The task calibrated on the user's data instead of its own."""
    return replace(task, calibration=calibration, judged=True)
