"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SECONDS = 2.0  # between lines about one piece of work, where there is no terminal

Show = Callable[[str, int, int], None]
"""(what, done, total): total 0 where it is not known."""


@contextmanager
def progress(out: TextIO) -> Iterator[Show]:
    """A function to call with what is being done and how much of it is.

    out: where plain lines go: not to stdout where that is for results, nor to stderr where
    scripts expect nothing but errors.
    """
    if not sys.stderr.isatty():
        yield _Lines(out)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(),
               MofNCompleteColumn(), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Lines:
    """A line at the start of each piece of work, then at most one every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.what = ""
        self.last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what == self.what and done != total and now - self.last < SECONDS:
            return
        self.what, self.last = what, now
        count = f" {done}/{total}" if total else f" {done}" if done else ""
        print(f"{what}{count}", file=self.out, flush=True)


class _Bars:
    """A bar for each piece of work; the one before is full when the next begins."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            for task in self.tasks.values():
                self.bars.update(task, total=1, completed=1)
            self.tasks[what] = self.bars.add_task(what, total=total or None)
        self.bars.update(self.tasks[what], completed=done, total=total or None)
