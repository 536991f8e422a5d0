"""explain: why the error is what it is, of a model or of one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qcompiler.cli.exits import Refused
from qcompiler.cli.run import ARTIFACT

if TYPE_CHECKING:
    from qcompiler.report import Layer, Report


@click.command()
@ARTIFACT
@click.argument("node", required=False)
def explain(artifact: str, node: str | None) -> None:
    """Say where the error of a model comes from, and what helps; or all that is known of NODE.

    NODE: the name of a layer, a value, or a module. The model was compiled with --explain. Needs
    no PyTorch.
    """
    from qcompiler.report import Report, errors
    from qcompiler.runtime.bundle import REPORT, read

    bundle = read(artifact, to_run=False)
    report = Report.from_json(bundle.text(REPORT))
    layers = [] if node is None else _layers(report, node)
    for layer in layers:
        why = f": {layer.reason}" if layer.reason else ""
        click.echo(f"{layer.name}: {layer.op} {layer.detail}, {layer.precision}{why}")
    if report.errors is None and not layers:
        raise Refused(
            f"{artifact} does not say where its error comes from: compile it with --explain"
        )
    if report.errors is None:
        click.echo("where its error comes from is not known: compile with --explain")
        return
    names = {layer.name for layer in layers}
    found = None if node is None else tuple(
        e for e in report.errors.ranked()
        if e in report.errors.of(node) or e.name in names
    )  # fmt: skip
    if not layers and found == ():
        known = ", ".join(dict.fromkeys(e.name for e in report.errors.ranked()[:5]))
        raise Refused(f"{artifact} has no layer, value or module {node!r}; it has {known}, ...")
    click.echo(errors.render(report.errors, found), nl=False)


def _layers(report: Report, node: str) -> list[Layer]:
    """The layers of that name, or of a module of that name."""
    return [
        layer for layer in report.layers
        if layer.name == node or f"{layer.origin.split(' ')[0]}.".startswith(f"{node}.")
    ]  # fmt: skip
