"""front: what accuracy costs in time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qcompiler.cli.build import DATA, TARGET, chosen, needs_data, timed
from qcompiler.cli.progress import progress
from qcompiler.cli.sources import SOURCE_HELP, data_of, require_writable, traced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompiler.tradeoff import FrontPoint


@click.command(epilog=SOURCE_HELP)
@click.argument("source")
@TARGET
@click.option("--recipe", default="auto", show_default=True, metavar="R",
              help="auto, int8-fast, int8-dynamic, or a .toml file.")  # fmt: skip
@DATA
@click.option("--database", metavar="FILE", help="Times that --tune has measured, to be used.")
@click.option("-o", "--output", metavar="FILE",
              help="JSON, written point by point; an interrupted front goes on.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Also draw it, as SVG.")
def front(
    source: str, target: str, recipe: str, calibration: str | None, database: str | None,
    output: str | None, plot: str | None,
) -> None:  # fmt: skip
    """What accuracy costs: the fastest choices within several losses.

    Each is made by `compile --max-drop`. Nothing is measured: time is by the database, noise is
    simulated on a calibration sample.
    """
    machine, wanted = chosen(target, recipe)
    needs_data(wanted, calibration)
    require_writable(output, plot)
    if plot is not None:
        from qcompiler.report import plots

        if not plots.available():
            raise click.UsageError("--plot needs matplotlib: pip install matplotlib")
    from qcompiler.api import front as points_of

    if database is not None:
        machine = timed(machine, database)
    with progress(sys.stdout) as show:
        show("load", 0, 0)
        graph = traced(source)
        points = points_of(graph, data_of(calibration), machine, wanted, file=output, progress=show)
    _print(points)
    if plot is not None:
        from qcompiler.atomic import replacing

        with replacing(plot) as file:
            file.write(plots.front(points).encode())


def _print(points: Sequence[FrontPoint]) -> None:
    from rich.console import Console
    from rich.table import Table

    longest = max(point.ms for point in points) or 1.0
    table = Table("--max-drop", "ms", "", "SQNR dB", "layers in float32")
    for p in points:
        table.add_row(
            f"{p.max_drop:g}", f"{p.ms:.3f}", "█" * round(BAR * p.ms / longest), f"{p.sqnr_db:.1f}",
            str(p.floats),
        )  # fmt: skip
    Console().print(table)


BAR = 24
"""Characters of the longest time."""
