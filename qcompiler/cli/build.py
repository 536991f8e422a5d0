"""Commands that make programs: compile, targets, demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from qcompiler.cli.exits import usage
from qcompiler.cli.progress import progress
from qcompiler.cli.sources import (
    DATA_HELP,
    GRAPH_HELP,
    SOURCE_HELP,
    data_of,
    graph_of,
    model_of,
    require_writable,
)

TARGET = click.option(
    "--target", default="x86-64-v3", show_default=True, metavar="T",
    help="The machine to build for; `native` is this one.",
)  # fmt: skip
RECIPE = click.option(
    "--recipe", default="int8", show_default=True, metavar="R",
    help="float32, int8, int8-fast, auto, int8-dynamic, w8a16, w4a16, w4a8, or a .toml file.",
)  # fmt: skip
LOSS = click.option(
    "--max-drop", type=float, metavar="DB",
    help="Decibels at the outputs that may be lost for speed, against int8; of the recipes that "
    "choose sums: auto, int8-fast, int8-dynamic.",
)  # fmt: skip
SPAN = click.option(
    "--max-time", type=float, metavar="MS",
    help="Instead: milliseconds of a call on one core, by measured times; the most accurate "
    "choices within it are made.",
)  # fmt: skip
ROUNDING = click.option(
    "--rounding", type=click.Choice(["nearest", "adaround", "gptq"]),
    help="Of weights: each to the nearest code, or together, so that errors cancel in what layers "
    "make of the calibration data. Takes longer to compile; the program is as fast.",
)  # fmt: skip
SCALING = click.option(
    "--scaling", type=click.Choice(["none", "equalize", "smooth", "awq"]),
    help="Of channels between two layers, or a norm and a layer, before: by weights, by "
    "activations and weights, or by what rounding weights costs. The program is as fast.",
)  # fmt: skip
DATA = click.option("--calibration", metavar="DATA", help=f"{DATA_HELP}.")


def chosen(target: str, recipe: str) -> tuple[Any, Any]:
    """The target and the recipe of these names. Raises click.BadParameter."""
    from qcompiler import targets as machines
    from qcompiler.recipe import recipe_of

    try:
        wanted = recipe_of(recipe)
    except (ValueError, OSError) as e:
        raise usage(e, "--recipe") from None
    try:
        return machines.get(target), wanted
    except machines.TargetError as e:
        raise usage(e, "--target") from None


def given(option: str) -> bool:
    """Whether the user wrote the option."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def limited(recipe: Any, max_drop: float | None, max_time: float | None) -> Any:
    """The recipe with what it may lose or how long it may take. Raises click.BadParameter where it
    has nothing to choose, UsageError for both."""
    if max_drop is not None and max_time is not None:
        raise click.UsageError("--max-drop and --max-time: give one of them")
    try:
        if max_time is not None:
            return recipe.lasting(max_time)
        return recipe if max_drop is None else recipe.dropping(max_drop)
    except ValueError as e:
        raise usage(e, "--max-drop" if max_time is None else "--max-time") from None


def refined(recipe: Any, rounding: str | None, scaling: str | None) -> Any:
    """The recipe with these methods where they are given."""
    from dataclasses import replace

    given = {"rounding": rounding, "scaling": scaling}
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def stages(
    source: str, graph: Any, calibration: str | None, machine: Any, recipe: Any, show: Any,
    tuned: bool, database: str | None,
) -> Any:  # fmt: skip
    """What a compilation of the source went through. graph: of it, where it names one. database:
    where times are kept as soon as they are measured."""
    from qcompiler import api
    from qcompiler.targets import database as kernels

    def keep(target: Any) -> None:
        if tuned and database is not None:
            kernels.write(database, target.name, kernels.new(target.times, machine.times))

    data = data_of(calibration)
    if graph is not None:
        return api.stages_of(graph, data, machine, recipe, show, tuned, keep)
    model = model_of(source)
    return api.stages(
        model.module, model.inputs, data, machine, recipe, progress=show, tuned=tuned, keep=keep,
        **model.options,
    )  # fmt: skip


def timed(machine: Any, database: str) -> Any:
    """The target with the times of a file. Raises OSError, DatabaseError."""
    from qcompiler.targets import database as kernels

    return machine.with_times(kernels.read(database).get(machine.name, {}))


def needs_data(recipe: Any, calibration: str | None) -> None:
    """Raises click.UsageError when the recipe cannot do without calibration data."""
    from qcompiler.recipe import Activations

    if not recipe.needs_data or calibration is not None:
        return
    if recipe.activations is Activations.STATIC:
        raise click.UsageError(
            f"recipe {recipe.name!r} has static activations and needs --calibration DATA "
            f"({DATA_HELP}); `int8-dynamic` needs none"
        )
    raise click.UsageError(
        f"rounding {recipe.rounding.value!r} and scaling {recipe.scaling.value!r} go by data: they "
        f"need --calibration DATA ({DATA_HELP})"
    )


@click.command("compile", epilog=f"{SOURCE_HELP} {GRAPH_HELP}")
@click.argument("source")
@TARGET
@RECIPE
@DATA
@click.option("-o", "--output", required=True, metavar="FILE", help="The artifact, m.qcm.")
@click.option("--report", metavar="FILE", help="Also write an HTML report.")
@click.option("--front", metavar="FILE",
              help="What `qcompiler front -o` wrote of the model, for the report.")  # fmt: skip
@click.option("--database", metavar="FILE", help="Times that --tune has measured, to be used.")
@click.option("--tune", "tuned", is_flag=True,
              help="Measure on this machine how long each product takes by each instruction and "
              "tile; with --database the times are kept there.")  # fmt: skip
@LOSS
@SPAN
@ROUNDING
@SCALING
@click.option("--explain", "explained", is_flag=True,
              help="Also find out where the error comes from, for `qcompiler explain` and the "
              "report.")  # fmt: skip
def compile_(
    source: str, target: str, recipe: str, calibration: str | None, output: str,
    report: str | None, front: str | None, database: str | None, tuned: bool,
    max_drop: float | None, max_time: float | None, rounding: str | None, scaling: str | None,
    explained: bool,
) -> None:  # fmt: skip
    """Compile a PyTorch model to a .qcm artifact.

    It holds native code: give it only to those who trust you, open only those you trust.
    """
    from qcompiler.graph import Level

    machine, wanted = chosen(target, recipe)
    wanted = refined(limited(wanted, max_drop, max_time), rounding, scaling)
    graph = graph_of(source)
    if graph is None or graph.level is Level.FLOAT:
        needs_data(wanted, calibration)
        explainable(explained, calibration)
    elif explained or rounding or scaling:
        raise click.UsageError(
            f"{source} is quantized already: --explain, --rounding and --scaling need a model or a "
            f"FLOAT graph"
        )
    elif graph.recipe and graph.recipe != wanted.name and given("recipe"):
        raise click.UsageError(
            f"{source} was quantized with recipe {graph.recipe!r} and is built as it is; leave "
            "--recipe out, or compile the FLOAT graph"
        )
    require_writable(output, report, *([database] if tuned else []))
    sections = _front_sections(front, report)
    if database is not None and (Path(database).exists() or not tuned):
        machine = timed(machine, database)

    with progress(sys.stdout) as show:
        show("load", 0, 0)
        done = stages(source, graph, calibration, machine, wanted, show, tuned, database)
        model = done.model
        if explained:
            model = with_errors(done, calibration, wanted, show)
            sections.append(_errors_section(model.report.errors))
        show("write", 0, 0)
        model.save(output)
        if report is not None:
            from qcompiler.report import write_page

            write_page(Path(report), model.report, done.quantized, done.traced,
                       sections=sections)  # fmt: skip
    click.echo(f"{output}: {summary(done.model)}")


def explainable(explained: bool, calibration: str | None) -> None:
    """Raises click.UsageError where --explain has no data to compare on."""
    if explained and (calibration is None or calibration.endswith(".safetensors")):
        raise click.UsageError(
            f"--explain compares the model with its float original on data: give --calibration "
            f"DATA ({DATA_HELP}), no statistics"
        )


def with_errors(done: Any, calibration: str | None, recipe: Any, show: Any) -> Any:
    """The model whose report says where its error comes from."""
    from dataclasses import replace

    from qcompiler import api

    data = data_of(calibration)
    assert done.traced is not None and data is not None
    found = api.explain(done.traced, data, done.target, recipe, show)
    return done.model.with_report(replace(done.model.report, errors=found))


def _errors_section(errors: Any) -> Any:
    from qcompiler.report.errors import section

    return section(errors)


def _front_sections(front: str | None, report: str | None) -> list[Any]:
    """Raises click.UsageError where no report is asked for, OSError, FrontError."""
    if front is None:
        return []
    if report is None:
        raise click.UsageError("--front is shown in a report; add --report FILE")
    from qcompiler.report.html import front_section
    from qcompiler.tradeoff import saved

    return [front_section(saved(front))]


def summary(model: Any) -> str:
    """One line: recipe, target, size, share of integer work."""
    report, size = model.report, sum(model.bundle.sizes.values())
    kept = f", {len(report.floats)} layers in float" if report.floats else ""
    return (
        f"{model.manifest.recipe} for {model.manifest.target}, {size / 1e6:.1f} MB, "
        f"{report.integer_share:.0%} of the multiply-adds in integers{kept}"
    )


@click.command()
def targets() -> None:
    """The machines to build for: their instructions, what runs on them in integers and what in
    float, and whether this machine runs or emulates them."""
    from rich.console import Console
    from rich.table import Table

    from qcompiler import targets as machines

    here = machines.host_features()
    table = Table(show_lines=True)
    table.add_column("target", no_wrap=True)
    table.add_column("instructions", min_width=len("mma_m16n8k32,"))
    for heading in ("ops", "runs here", "emulated here"):
        table.add_column(heading, overflow="fold")
    kinds = [(t.integer_ops, t.float_ops) for t in machines.DONE]
    letters = {kind: chr(ord("A") + k) for k, kind in enumerate(dict.fromkeys(kinds))}
    for target in machines.DONE:
        table.add_row(
            target.name, ", ".join(d.name for d in target.isa),
            letters[target.integer_ops, target.float_ops], running(target, here),
            emulation(target),
        )  # fmt: skip
    Console().print(table)
    for (integer, floats), letter in letters.items():
        click.echo(f"{letter}: integer {', '.join(integer)};\n   float {', '.join(floats)}")
    try:
        click.echo(f"native is {machines.native().name}")
    except machines.TargetError as e:
        click.echo(f"native: {e}")


def running(target: Any, here: frozenset[str]) -> str:
    """Whether this machine runs a target's programs."""
    from qcompiler.runtime.device import lacking

    missing = [f for f in target.features if f not in here and f != target.architecture]
    if missing:
        return f"no: lacks {', '.join(missing)}"
    reason = lacking(target.device, target.architecture) if target.architecture else None
    # In brackets: what a loader said of a library, longer than the column is wide.
    return "yes" if reason is None else f"no: {reason.partition(' (')[0]}"


def emulation(target: Any) -> str:
    """Whether --emulate works here for a target."""
    if target.emulator is None:
        return "no"
    reason = target.emulator.missing()
    return "yes" if reason is None else f"no: {reason}"


@click.command()
@click.option("-o", "--output", default="demo", show_default=True, metavar="DIR",
              help="Where the model, the graph dumps and the report go.")  # fmt: skip
def demo(output: str) -> None:
    """Compile a pretrained EfficientNet-Lite0 to int8 and compare it with PyTorch."""
    from qcompiler.demo import main

    main(Path(output))
