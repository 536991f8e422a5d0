"""The bench command: times of our programs and of PyTorch, side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.build import DATA, chosen
from qcompiler.cli.progress import Show, progress
from qcompiler.cli.sources import Model, allowed_threads, data_of, model_of

if TYPE_CHECKING:
    from qcompiler.timing import Times

Calls = dict[str, Callable[[], object]]
EPILOG = (
    "SOURCE is an artifact m.qcm, a .pt2 file, package.module:function, or the NAME of a model in "
    "qcompiler.zoo. Without --calibration a static recipe is calibrated on the example inputs: "
    "its times are right, its results are not."
)


@click.command(epilog=EPILOG)
@click.argument("source")
@click.option("--target", default="native", show_default=True, metavar="T")
@click.option("--recipe", default="int8", show_default=True, metavar="R")
@DATA
@click.option("--rounds", type=click.IntRange(min=2), default=30, show_default=True)
@click.option("--threads", type=int, callback=allowed_threads, default=1, show_default=True)
@click.option("--against", metavar="PEERS", help="Not done yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    source: str, target: str, recipe: str, calibration: str | None, rounds: int, threads: int,
    against: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the time of a call: median and quartiles, all programs in turns."""
    if against is not None:
        raise click.BadParameter(f"{against}: peers are not done yet", param_hint="'--against'")
    from qcompiler.timing import in_turns

    with progress(sys.stderr if as_json else sys.stdout) as show:
        if source.endswith(".qcm"):
            calls = _artifact(source, threads)
        else:
            calls = _compiled(source, target, recipe, calibration, threads, show)
        times = in_turns(calls, rounds, show)
    if as_json:
        rows = {name: asdict(t) for name, t in times.items()}
        click.echo(json.dumps({"source": source, "threads": threads, "times_ms": rows}, indent=1))
    else:
        _table(times, threads)


def _table(times: dict[str, Times], threads: int) -> None:
    from rich.console import Console
    from rich.table import Table

    first = next(iter(times.values()))
    plural = "s" if threads > 1 else ""
    table = Table("program", "median ms", "quartiles ms", "speed",
                  title=f"one call, {threads} thread{plural}, {first.count} rounds")  # fmt: skip
    for name, t in times.items():
        speed = f"{first.median / t.median:.2f}x"
        table.add_row(name, f"{t.median:.3f}", f"{t.low:.3f} - {t.high:.3f}", speed)
    Console().print(table)


def _artifact(path: str, threads: int) -> Calls:
    """The program of an artifact, on standard normal floats and zeros for integers."""
    import numpy as np

    from qcompiler.runtime import load

    if not Path(path).is_file():
        raise click.BadParameter(f"no file {path!r}", param_hint="'SOURCE'")
    model = load(path, threads)
    entry = model.manifest.main
    rng = np.random.default_rng(0)
    values = []
    for s in entry.inputs:
        shape = [d if isinstance(d, int) else entry.symbols.get(d, (1, None))[0] for d in s.shape]
        floats = s.dtype.startswith("float")
        made = rng.standard_normal(shape) if floats else np.zeros(shape)
        values.append(made.astype(s.dtype))
    name = f"{model.manifest.recipe} ({model.manifest.target})"
    return {name: lambda: model(*values)}


def _compiled(
    source: str, target: str, recipe: str, calibration: str | None, threads: int, show: Show
) -> Calls:
    machine, wanted = chosen(target, recipe)
    import torch

    model = _named(source)
    torch.set_num_threads(threads)
    calls: Calls = _eager(model)
    for one in dict.fromkeys(("float32", wanted)):
        name = one if isinstance(one, str) else one.name
        if f"{name} ({machine.name})" not in calls:
            data = data_of(calibration) if calibration else _example(model)
            calls[f"{name} ({machine.name})"] = _program(
                model, data, machine.name, one, threads, show
            )
    return calls


def _named(source: str) -> Model:
    from qcompiler import zoo

    return Model(*zoo.load(source), {}) if source in zoo.MODELS else model_of(source)


def _example(model: Model) -> list[Any]:
    """The example inputs as the one calibration item."""
    return [dict(model.inputs) if isinstance(model.inputs, dict) else model.inputs]


def _eager(model: Model) -> Calls:
    import torch

    module = model.module.module() if hasattr(model.module, "graph_signature") else model.module
    inputs, kwargs = model.inputs, model.options.get("kwargs") or {}
    if isinstance(inputs, dict):
        inputs, kwargs = (), inputs
    args = inputs if isinstance(inputs, tuple) else (inputs,)

    def call() -> object:
        with torch.inference_mode():
            return module(*args, **kwargs)

    return {"float32 (PyTorch)": call}


def _program(
    model: Model, data: Any, target: str, recipe: Any, threads: int, show: Show
) -> Callable[[], object]:
    from qcompiler.api import stages
    from qcompiler.frontend.trees import flatten

    made = stages(
        model.module, model.inputs, data, target, recipe, progress=show, **model.options
    ).model
    made.threads = threads
    inputs, kwargs = model.inputs, model.options.get("kwargs") or {}
    if isinstance(inputs, dict):
        inputs, kwargs = (), inputs
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    values = flatten(made.manifest.main.trees[0], args, kwargs)
    return lambda: made(*values)
