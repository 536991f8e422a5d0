"""--emulate: a program of another machine, called in software that stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.exits import Refused

if TYPE_CHECKING:
    from qcompiler.runtime import CompiledModel

EMULATE = click.option(
    "--emulate", is_flag=True,
    help="Run it on an emulated machine (slow); needs PyTorch. `qcompiler targets` lists which.",
)  # fmt: skip

Called = Callable[[Sequence[Any], bool], Any]
"""(arrays of the inputs, whether to tap) -> what has `outputs` and, where tapped, `taps`."""


def opened(artifact: str, threads: int | None, emulate: bool) -> tuple[CompiledModel, Called]:
    """The model of an artifact, and how it is called: here, or where its machine is emulated.

    Raises Refused with the reason where it cannot be emulated.
    """
    from qcompiler.runtime import load

    if emulate and threads is not None:
        raise click.UsageError("--threads has no effect with --emulate; leave one out")
    elsewhere = _elsewhere(artifact) if emulate else None
    if elsewhere is not None:
        return elsewhere
    model = load(artifact, threads)

    def here(inputs: Sequence[Any], tap: bool) -> Any:
        return model.tapped(inputs) if tap else model.called(inputs)

    return model, here


def _elsewhere(artifact: str) -> tuple[CompiledModel, Called] | None:
    """None where this process stands in for the machine from now on."""
    from qcompiler.runtime import CompiledModel, emulation
    from qcompiler.runtime.bundle import read

    bundle = read(artifact, to_run=False)
    emulator = emulation.of(bundle.manifest.device)
    if emulator is not None:
        _prepare(emulator, bundle.manifest.target)
    from qcompiler import targets as machines

    target = machines.get(bundle.manifest.target)
    if target.emulator is None:
        raise Refused(f"{target.name} is not emulated: run the model without --emulate")
    reason = target.emulator.missing()
    if reason is not None:
        raise Refused(f"{target.name} cannot be emulated here: {reason}")
    call = target.emulator.begin(Path(artifact), lambda text: click.echo(text, err=True))
    return None if call is None else (CompiledModel(bundle), call)


def _prepare(emulator: Any, target: str) -> None:
    """Before TVM's compiler is imported, which takes the real driver where there is one."""
    reason = emulator.available()
    if reason is not None:
        raise Refused(f"{target} cannot be emulated here: {reason}")
    emulator.prepare()
