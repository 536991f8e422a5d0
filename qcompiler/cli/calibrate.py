"""Commands on statistics: calibrate gathers them, merge joins those of shards of the data."""

from __future__ import annotations

import sys

import click

from qcompiler.cli.progress import progress
from qcompiler.cli.sources import DATA_HELP, SOURCE_HELP, data_of, require_writable, traced


@click.command(epilog=SOURCE_HELP)
@click.argument("source")
@click.option("--calibration", required=True, metavar="DATA", help=f"{DATA_HELP}.")
@click.option("-o", "--output", required=True, metavar="FILE",
              help="Statistics, .safetensors; a run that was interrupted goes on.")  # fmt: skip
def calibrate(source: str, calibration: str, output: str) -> None:
    """Gather the statistics of a model's values over calibration data.

    Other commands take the file as their --calibration. Memory does not grow with the data, which
    may also be taken in shards, see merge.
    """
    from qcompiler.api import calibrate as statistics_of

    _named(output)
    require_writable(output)
    with progress(sys.stdout) as show:
        show("load", 0, 0)
        graph = traced(source)
        data = data_of(calibration)
        assert data is not None
        found = statistics_of(graph, data, output, show)
    click.echo(f"{output}: {len(found.values)} values over {found.items} items")


@click.command()
@click.argument("parts", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, readable=False))  # fmt: skip
@click.option("-o", "--output", required=True, metavar="FILE", help="Statistics of all.")
def merge(parts: tuple[str, ...], output: str) -> None:
    """Join statistics of one model over different data: the same bits in any order."""
    from qcompiler.statistics import Statistics, merged

    _named(output)
    require_writable(output)
    found = merged([Statistics.load(part) for part in parts])
    found.save(output)
    click.echo(f"{output}: {len(found.values)} values over {found.items} items")


def _named(output: str) -> None:
    """Raises click.BadParameter for a name that no command would take for statistics."""
    if not output.endswith(".safetensors"):
        raise click.BadParameter(
            f"expected a name that ends in .safetensors, got {output}", param_hint="'--output'"
        )
