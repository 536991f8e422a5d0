"""The command line: every command a thin shell around the public API, imported when it runs."""

from __future__ import annotations

import click

from qcompiler import __version__
from qcompiler.cli.bench import bench
from qcompiler.cli.build import compile_, demo, targets
from qcompiler.cli.calibrate import calibrate, merge
from qcompiler.cli.exits import guarded
from qcompiler.cli.explain import explain
from qcompiler.cli.front import front
from qcompiler.cli.graphs import inspect, opt
from qcompiler.cli.run import run, verify
from qcompiler.cli.tune import tune


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qcompiler")
def commands() -> None:
    """Turn PyTorch models into fast, exact integer programs.

    Exit codes: 0 done, 1 the model or data cannot be handled (one message says why), 2 wrong
    usage. QC_DEBUG=1 shows passes, times, and tracebacks of errors.
    """


for command in (compile_, run, verify, inspect, opt, front, explain, calibrate, merge, tune,
                bench, targets, demo):
    commands.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """The `qcompiler` program: exits with the command's code."""
    raise SystemExit(guarded(commands, arguments))
