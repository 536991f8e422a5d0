"""The observers behind QC_DEBUG, QC_PRINT, QC_DUMP, QC_CHECK and QC_REPRO."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qcompiler.config import Config, folder_for
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node
from qcompiler.pipeline import Observer, Pass
from qcompiler.rewrite import equation

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the output's largest magnitude; design section 8
SMALLEST = 1e-30  # magnitudes below it count as it


@dataclass
class Timer(Observer):
    """QC_DEBUG: 1 passes and times, 2 rules applied, 3 near misses, 4 the kernels' code."""

    debug: int
    out: TextIO = field(default_factory=lambda: sys.stderr)
    start: float = 0.0

    def before(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        self.start = time.perf_counter()

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        spent = (time.perf_counter() - self.start) * 1e3
        sizes = f"{len(old.nodes())} -> {len(new.nodes())} nodes"
        print(f"{pass_.name:<20} {spent:9.1f} ms  {sizes}  @{new.level.name}", file=self.out)

    def event(self, kind: str, *details: Any) -> None:
        if kind == "applied" and self.debug >= 2:
            rule, before, _ = details
            print(f"  %{before.name}: {equation(rule)}", file=self.out)
        if kind == "missed" and self.debug >= 3:
            rule, node, reason = details
            print(f"  %{node.name}: not {rule.__name__}: {reason}", file=self.out)

    def lowered(self, script: Callable[[], str]) -> None:
        if self.debug >= 4:
            print(script(), file=self.out)


@dataclass
class Printer(Observer):
    """QC_PRINT: the graph after each pass, after those that changed it (as a diff), or one."""

    what: str
    out: TextIO = field(default_factory=lambda: sys.stderr)

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        if self.what in ("all", pass_.name):
            print(f"// after {pass_.name}\n{new}", file=self.out)
        elif self.what == "changed":
            (a, b) = (str(old).splitlines(), str(new).splitlines())
            lines = difflib.unified_diff(a, b, "before", f"after {pass_.name}", n=1, lineterm="")
            self.out.writelines(line + "\n" for line in lines)


@dataclass
class Dumper(Observer):
    """QC_DUMP: numbered files, one per pass, with their constants beside them.

    An INTEGER graph that an earlier pipeline left in the folder is where the numbers go on:
    building follows quantizing. What an earlier run left under later numbers is removed.
    """

    folder: Path
    count: int = 0

    def before(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        if self.count:
            return
        self.count = self._after(str(graph)) if graph.level is Level.INTEGER else 0
        for file in self._files():
            if int(file.name[:2]) >= self.count:
                file.unlink()
        if self.count == 0:
            self._write("input", graph)

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        self._write(pass_.name, new)

    def _after(self, text: str) -> int:
        """The number that follows the file with this text; 0 where there is none."""
        found = next((f for f in reversed(self._files()) if f.read_text() == text), None)
        return int(found.name[:2]) + 1 if found else 0

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9]_*.qir"))

    def _write(self, name: str, graph: Graph) -> None:
        from qcompiler.text import save

        folder_for("QC_DUMP", self.folder)
        save(graph, self.folder / f"{self.count:02}_{name}.qir", self.folder / "constants")
        self.count += 1


class CheckError(ValueError):
    """An exact pass changed the values the graph computes."""


@dataclass
class Checker(Observer):
    """QC_CHECK: an exact pass must not change the numbers, on a kept sample."""

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        if not pass_.exact or ctx.sample is None:
            return
        problem = difference(old, new, ctx.sample)
        if problem:
            raise CheckError(f"after {pass_.name}: {problem}")


def difference(old: Graph, new: Graph, sample: Any) -> str | None:
    """How the two graphs' values differ on the sample, beyond what design section 8 allows."""
    from qcompiler.interpret import run

    integer = old.level >= Level.INTEGER
    pairs = zip(run(old, sample), run(new, sample), new.results, strict=True)
    for a, b, node in pairs:
        exact = not a.is_floating_point() or (integer and not follows_float_anchor(node))
        problem = unequal(a, b) if exact else apart(a, b)
        if problem:
            return f"%{node.name}: {problem}"
    return None


def unequal(a: Tensor, b: Tensor) -> str | None:
    """How many values differ; NaN equals NaN."""
    count = int(((a != b) & ((a == a) | (b == b))).sum())
    return f"{count} of {a.numel()} values differ, expected none" if count else None


def apart(a: Tensor, b: Tensor) -> str | None:
    """How far b is from a, beyond the tolerance; NaN and inf must stand where they stood."""
    finite = a.isfinite()
    if not bool((finite == b.isfinite()).all()):
        return "other values are NaN or infinite than before"
    problem = unequal(a[~finite], b[~finite])
    if problem or not bool(finite.any()):
        return problem
    size = float(a[finite].abs().max())
    error = float((a[finite] - b[finite]).abs().max())
    if error <= TOLERANCE * max(size, SMALLEST):
        return None
    return f"error {error:.3g} of magnitude {size:.3g}, limit {TOLERANCE}"


def follows_float_anchor(node: Node) -> bool:
    """Whether the value depends on one of the ops that have a tolerance."""
    return has_float_anchor(Graph((), (node,)))


def has_float_anchor(graph: Graph) -> bool:
    """Whether a float matmul or convolution, the only ops with a tolerance, occurs."""
    from qcompiler.ops import Conv2d, Linear, Matmul, Region, WeightOnlyLinear

    def anchors(op: object) -> bool:
        if isinstance(op, Region):
            return any(anchors(step.op) for step in op.steps)
        return type(op) in (Conv2d, Linear, Matmul, WeightOnlyLinear)

    return any(anchors(node.op) for node in graph.nodes())


@dataclass
class Reproducer(Observer):
    """QC_REPRO: on any failure the graph, the sample and the one command that repeats it."""

    folder: Path

    def failed(self, pass_: Pass, graph: Graph, ctx: Context, error: Exception) -> None:
        data = " --calibration sample.npz" if ctx.sample is not None else ""
        command = f'qcompiler opt g.qir -p "{pass_}"{_target(ctx)} --recipe {ctx.recipe.name}{data}'
        self._write(graph, ctx, command, error)

    def unbuilt(self, graph: Graph, ctx: Context, error: Exception) -> None:
        self._write(graph, ctx, f"qcompiler compile g.qir{_target(ctx)} -o m.qcm", error)

    def _write(self, graph: Graph, ctx: Context, command: str, error: Exception) -> None:
        import numpy as np

        from qcompiler.text import save

        folder_for("QC_REPRO", self.folder)
        save(graph, self.folder / "g.qir", self.folder / "constants")
        if ctx.sample is not None:
            arrays = [t.numpy()[None] for t in ctx.sample]  # one sample, as --calibration reads it
            named = {n.name: a for n, a in zip(graph.inputs, arrays, strict=False)}
            np.savez(self.folder / "sample.npz", **named)  # type: ignore[arg-type]
        (self.folder / "README").write_text(f"{error}\n\ncd here, then:\n  {command}\n")


def _target(ctx: Context) -> str:
    return f" --target {ctx.target.name}" if ctx.target else ""


def observers_of(config: Config) -> tuple[Observer, ...]:
    """The observers a configuration asks for."""
    chosen: list[Observer] = []
    if config.debug:
        chosen.append(Timer(config.debug))
    if config.print:
        chosen.append(Printer(config.print))
    if config.dump:
        chosen.append(Dumper(config.dump))
    if config.check:
        chosen.append(Checker())
    if config.repro:
        chosen.append(Reproducer(config.repro))
    return tuple(chosen)
