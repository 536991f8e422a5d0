"""The program of a .qcm file, measured on made-up inputs. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from qcompiler.bench import table
from qcompiler.bench.row import OURS, Row, precision_of
from qcompiler.errors import require_torch
from qcompiler.runtime import CompiledModel, load
from qcompiler.timing import in_long_turns

Progress = Callable[[str, int, int], None]


def bench_artifact(
    path: str, threads: int, rounds: int, per_op: bool, show: Progress, say: Callable[[Any], None]
) -> dict[str, Any]:
    """What was measured, as JSON has it; tables are told to `say`.

    Raises as `load` does, MissingTorch for times per kernel where torch is not installed.
    """
    if per_op:
        require_torch("--per-op")
    model = load(path, threads)
    inputs = inputs_of(model)
    recipe = model.manifest.recipe
    name = f"{recipe} ({model.manifest.target})"
    times = in_long_turns({name: lambda: model(*inputs)}, rounds, progress=show)
    row = Row(name, OURS, recipe, precision_of(recipe), threads, times=times[name])
    say(table.times_table(f"one call, {threads} thread{'s' * (threads > 1)}, {rounds} rounds",
                          [row]))  # fmt: skip
    found = {"source": path, "threads": threads, "times_ms": {name: asdict(times[name])}}
    if not per_op:
        return found
    from qcompiler.bench.session import ops_of

    ops = ops_of(model, inputs, row.ms, name, say)
    return {**found, "per_op": [asdict(op) for op in ops]}


def inputs_of(model: CompiledModel) -> list[Any]:
    """Standard normal floats, zeros for integers, symbolic dimensions at their least."""
    entry = model.manifest.main
    rng = np.random.default_rng(0)
    values = []
    for s in entry.inputs:
        shape = [d if isinstance(d, int) else entry.symbols.get(d, (1, None))[0] for d in s.shape]
        floats = s.dtype.startswith("float")
        made = rng.standard_normal(shape) if floats else np.zeros(shape)
        values.append(made.astype(s.dtype))
    return values
