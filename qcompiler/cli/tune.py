"""tune: measured times for a kernel database."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qcompiler.cli.build import DATA, RECIPE, TARGET, chosen, needs_data, stages, timed
from qcompiler.cli.progress import progress
from qcompiler.cli.sources import SOURCE_HELP, graph_of, require_writable


@click.command(epilog=SOURCE_HELP)
@click.argument("source")
@TARGET
@RECIPE
@DATA
@click.option("--database", metavar="FILE", required=True,
              help="Where the times are kept, and used if there are some.")  # fmt: skip
def tune(source: str, target: str, recipe: str, calibration: str | None, database: str) -> None:
    """Measure how long a model takes on this machine.

    Each product is measured by every instruction for it and in float32, then the whole program
    against the one in float32. compile, front and bench take the times by --database: layers that
    are faster in float32 compute in it, and whole programs, too.
    """
    from qcompiler.graph import Level

    machine, wanted = chosen(target, recipe)
    graph = graph_of(source)
    if graph is not None and graph.level is not Level.FLOAT:
        raise click.BadParameter(
            f"expected a FLOAT graph, got {graph.level.name}: it was quantized already",
            param_hint="'SOURCE'",
        )
    needs_data(wanted, calibration)
    require_writable(database)
    from qcompiler.targets import database as kernels

    if Path(database).exists():
        machine = timed(machine, database)
    with progress(sys.stdout) as show:
        show("load", 0, 0)
        done = stages(source, graph, calibration, machine, wanted, show, True, database)
    new = kernels.new(done.target.times, machine.times)
    whole = {name: row[kernels.WHOLE] for name, row in new.items()
             if name.startswith(kernels.PROGRAM)}  # fmt: skip
    click.echo(f"{database}: {len(new) - len(whole)} products and conversions")
    for name, us in whole.items():
        click.echo(f"{name.rpartition(' of ')[2]}: {us / 1e3:.3f} ms")
    if done.model.report.floats:
        from rich.console import Console

        from qcompiler.report.table import float_table

        Console().print(float_table(done.model.report))
