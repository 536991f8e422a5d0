"""Exit codes and the one message that goes with them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any

import click

from qcompiler.config import from_env
from qcompiler.errors import TORCH, MissingTorch

DONE, REFUSED, USAGE = 0, 1, 2
STOPPED = 130  # as shells report a program that was interrupted


class Refused(Exception):
    """The command cannot do what was asked; the message says why."""


def guarded(command: click.Command, arguments: list[str] | None) -> int:
    """Run the command; whatever it raises becomes a message on stderr and an exit code."""
    # As an exception, so that files being written are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = command.main(arguments, "qcompiler", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return STOPPED
    except BrokenPipeError:  # the reader of our output has left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except Exception as e:
        return _failed(e)


def _failed(error: Exception) -> int:
    try:
        debug = from_env().debug
    except ValueError as e:
        click.echo(f"error: {e}", err=True)
        return USAGE
    if debug:
        traceback.print_exception(error)
    else:
        click.echo(f"error: {message(error)}", err=True)
    return REFUSED


def message(error: Exception) -> str:
    """What a user reads of an error."""
    absent = isinstance(error, ModuleNotFoundError) and error.name in TORCH
    if absent or isinstance(error, MissingTorch):
        return "this needs PyTorch: pip install 'qcompiler[torch]'"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, EXPECTED):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (set QC_DEBUG=1 for the traceback)"


EXPECTED: tuple[type[Exception], ...] = (
    Refused, ValueError, ImportError, OSError, IndexError, RuntimeError,
)  # fmt: skip


def usage(error: Exception, option: str) -> Any:
    """The same error as wrong usage of an option."""
    return click.BadParameter(message(error), param_hint=f"'{option}'")
