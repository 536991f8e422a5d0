"""Commands on a compiled model: run, verify."""

from __future__ import annotations

from typing import Any

import click

from qcompiler.atomic import replacing
from qcompiler.cli.emulate import EMULATE, opened
from qcompiler.cli.exits import REFUSED
from qcompiler.cli.sources import allowed_threads, arrays_of, by_name, require_writable

ARTIFACT = click.argument(
    "artifact", type=click.Path(exists=True, dir_okay=False, readable=False)
)  # reading it says why it cannot be read
THREADS = click.option(
    "--threads", type=int, callback=allowed_threads,
    help="Threads to use; the physical cores unless given.",
)  # fmt: skip
SHOWN = 20  # rows of a table; the rest is counted


@click.command()
@ARTIFACT
@click.argument("inputs")
@click.option("-o", "--output", required=True, metavar="FILE", help="Results, one array each.")
@THREADS
@EMULATE
def run(artifact: str, inputs: str, output: str, threads: int | None, emulate: bool) -> None:
    """Run a compiled model on the arrays of an .npz file, one per input, by name.

    Arrays have the input's own shape. Needs neither PyTorch nor a compiler.
    """
    import numpy as np

    from qcompiler.runtime.signature import check

    arrays = arrays_of(inputs, "INPUTS")
    require_writable(output)
    model, call = opened(artifact, threads, emulate)
    entry = model.manifest.main
    values = by_name(arrays, [s.name for s in entry.inputs], inputs)
    check(entry, values)
    results = call(values, False).outputs
    named = {s.name: v for s, v in zip(entry.outputs, results, strict=True)}
    with replacing(output) as file:
        np.savez(file, **named)
    for name, value in named.items():
        click.echo(f"{name}: {value.dtype}[{','.join(map(str, value.shape))}]")


@click.command()
@ARTIFACT
@click.argument("inputs", required=False)
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@THREADS
@EMULATE
def verify(
    artifact: str, inputs: str | None, seed: int, threads: int | None, emulate: bool
) -> int:
    """Compare a compiled model with the reference interpreter, kernel by kernel.

    Integers and elementwise float must agree in every bit; float matmul and convolution within
    1e-4 of the largest magnitude. Without INPUTS (.npz) the inputs are random.
    """
    import torch  # before load, so that its absence is told at once

    from qcompiler.runtime.verify import verify as compared

    model, call = opened(artifact, threads, emulate)
    given = None
    if inputs is not None:
        names = [s.name for s in model.manifest.main.inputs]
        given = [torch.from_numpy(a) for a in by_name(arrays_of(inputs, "INPUTS"), names, inputs)]
    verdict = compared(model, given, seed, lambda values: call(values, True))
    _show(verdict)
    return 0 if verdict.holds else REFUSED


def _show(verdict: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("output", "elements", "differ", "largest error", "must be")
    for c in verdict.outputs:
        must = "equal" if c.exact else "checked by kernel" if verdict.kernels else "within 1e-4"
        table.add_row(c.name, str(c.count), str(c.differing), f"{c.error:.3g}", must)
    Console().print(table)
    exact = sum(c.exact for c in verdict.kernels)
    within = len(verdict.kernels) - exact
    click.echo(f"kernels compared on their own operands: {exact} exact, {within} within 1e-4")
    for c in verdict.failures[:SHOWN]:
        click.echo(f"differs: {c}", err=True)
    if len(verdict.failures) > SHOWN:
        click.echo(f"... and {len(verdict.failures) - SHOWN} more", err=True)
    click.echo("verified" if verdict.holds else "NOT verified", err=not verdict.holds)
