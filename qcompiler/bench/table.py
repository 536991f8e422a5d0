"""What was measured, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qcompiler.bench.row import Row

if TYPE_CHECKING:
    from qcompiler.bench.bars import Verdict
    from qcompiler.bench.peak import Peak
    from qcompiler.bench.per_op import OpTime
    from qcompiler.bench.resident import Resident

NARROWEST = 120
"""Columns below which a table that goes to no terminal is not squeezed."""
SHOWN = 30
"""Kernels in a table; the rest is one line."""


def console() -> Console:
    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, NARROWEST))


def times_table(title: str, rows: Sequence[Row]) -> Table:
    """Sorted within each group of precision; speed against the fastest float32 that is not ours."""
    judged = any(r.sqnr is not None for r in rows)
    heads = ["program", "median ms", "quartiles ms", "least ms", "speed", *["SQNR dB"] * judged]
    table = Table(*heads, title=title)
    base = baseline(rows)
    for row in (r for r in ordered(rows) if not r.failure):
        name = f"{escape(row.program)}{' *' if row.note else ''}"
        table.add_row(name, *_times(row, base), *[_decibels(row.sqnr)] * judged)
    return table


def remarks(rows: Sequence[Row]) -> str:
    """What the table has no place for: why programs are not in it, and what to know of others."""
    failed = [f"{r.program}: failed: {r.failure}" for r in rows if r.failure]
    notes = dict.fromkeys(r.note for r in rows if r.note and not r.failure)
    return escape("\n".join([*(f"* {note}" for note in notes), *failed]))


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By precision, the fastest first; without peers as they are."""
    if all(r.ours or r is rows[0] for r in rows):
        return list(rows)
    groups = list(dict.fromkeys(r.precision for r in rows))
    return sorted(rows, key=lambda r: (groups.index(r.precision), r.ms if r.times else math.inf))


def baseline(rows: Sequence[Row]) -> Row | None:
    """What speeds are relative to: the fastest of the first row's precision that is not ours."""
    timed = [r for r in rows if r.times is not None]
    others = [r for r in timed if not r.ours and r.precision is timed[0].precision]
    return min(others, key=lambda r: r.ms, default=timed[0] if timed else None)


def _times(row: Row, base: Row | None) -> tuple[str, ...]:
    if row.times is None or base is None:
        return "-", "-", "-", "-"
    per_item = (base.ms / base.batch) / (row.ms / row.batch)
    t = row.times
    spread = f"{t.low:.3f} - {t.high:.3f}"
    return f"{t.median:.3f}", spread, f"{t.least:.3f}", f"{per_item:.2f}x"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def bars_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table("work", "bar", "ours", "best peer", "ratio", "SQNR, needed", "", title="bars")
    for v in verdicts:
        sqnr = "" if v.needed is None else f"{_decibels(v.sqnr)}, {v.needed:.1f}"
        table.add_row(v.work, v.bar, _side(v.ours, v.ours_value), _side(v.peer, v.peer_value),
                      "" if v.ratio is None else f"{v.ratio:.2f}", sqnr, _word(v))  # fmt: skip
    return table


def _side(name: str, value: float | None) -> str:
    return "-" if value is None else f"{escape(name)} {value:.2f}"


def _word(v: Verdict) -> str:
    said = {True: "[green]met[/]", False: "[red]NOT met[/]", None: "not measured"}[v.met]
    return f"{said}: {escape(v.reason)}" if v.reason else said


def seconds_table(work: str, rows: Sequence[Row]) -> Table:
    table = Table("program", "trace s", "quantize s", "build s", title=f"{work}: compilation")
    for row in rows:
        if row.seconds and not row.scaling:
            cells = (f"{row.seconds[k]:.1f}" for k in ("trace", "quantize", "build"))
            table.add_row(escape(row.program), *cells)
    return table


def memory_table(found: Sequence[Resident]) -> Table:
    table = Table("process", "resident MB", "peak MB", title="load and run ResNet-50 int8")
    for r in found:
        cells = (f"failed: {escape(r.failure)}", "") if r.failure else (
            f"{r.resident:.0f}", f"{r.peak:.0f}")  # fmt: skip
        table.add_row(escape(f"{r.program} ({r.owner})"), *cells)
    return table


def ops_table(title: str, ops: Sequence[OpTime], shown: int = SHOWN) -> Table:
    table = Table(title=title)
    table.add_column("node", overflow="fold")
    for head in ("kernel", "shape", "ms", "share", "GMAC/s", "of peak"):
        table.add_column(head)
    for op in ops[:shown]:
        rate = f"{op.gmacs:.1f}" if op.macs else ""
        peak = "" if op.peak is None else f"{op.peak:.0%}"
        table.add_row(escape(op.name), escape(_short(op)), escape(op.detail), f"{op.ms:.3f}",
                      f"{op.share:.1%}", rate, peak)  # fmt: skip
    rest = ops[shown:]
    if rest:
        table.add_row(f"{len(rest)} more", "", "", f"{sum(o.ms for o in rest):.3f}",
                      f"{sum(o.share for o in rest):.1%}", "", "")  # fmt: skip
    return table


def _short(op: OpTime) -> str:
    """The first op of a region, and how many follow it; JSON names them all."""
    first, *rest = op.kind.split("+")
    return f"{first} + {len(rest)}" if rest else first


def ops_summary(ops: Sequence[OpTime], peaks: Sequence[Peak | None], call_ms: float) -> str:
    """The sum of the kernels against the call, and what shares of the peak refer to."""
    total = sum(o.ms for o in ops)
    macs = sum(o.macs for o in ops)
    lines = [
        f"{len(ops)} kernels, {total:.3f} ms in all; a call takes {call_ms:.3f} ms; "
        f"{macs / 1e6:.1f} M multiply-adds at {macs / (total * 1e6):.1f} GMAC/s"
    ]
    for peak in filter(None, peaks):
        kind = "integer" if peak.integer else "float32"
        lines.append(f"peak of one core, {kind}: {peak.gmacs:.1f} GMAC/s ({peak.what})")
    return "\n".join(lines)
