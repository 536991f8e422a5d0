"""The report as plain text: totals, what stayed float and why, one row per layer."""

from __future__ import annotations

import math
from io import StringIO
from typing import TYPE_CHECKING

from qcompiler.report.facts import Layer, Report

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table

WIDTH = 240  # columns at most; a table is as wide as what it holds
PROSE = 70  # columns after which a reason is wrapped
NUMBERS = ("ops", "multiply-adds", "float32", "now")


def render(report: Report) -> str:
    """The whole report; the same report gives the same text, on a terminal and elsewhere."""
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False)
    for name, value in totals(report):
        console.print(f"{name:<16} {value}", markup=False, highlight=False, soft_wrap=True)
    for table in [float_table(report)] if report.floats else []:
        console.print(table)
    console.print(layer_table(report))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"


def totals(report: Report) -> list[tuple[str, str]]:
    """(name, value) of everything that is one number, in reading order."""
    rows = [
        ("target", report.target or "any"),
        ("recipe", report.recipe or "none"),
        ("integer", f"{percent(report.integer_share)} of {big(report.macs)} multiply-adds"),
        ("size", f"{size(report.bytes_float32)} float32, {size(report.bytes_now)} now"),
        ("conversions", f"{report.quantizes} quantize, {report.dequantizes} dequantize"),
    ]
    if report.instructions:
        rows.append(("instructions", instructions(report)))
    rows += [(f"SQNR {name}", decibels(value)) for name, value in report.sqnr_db.items()]
    rows += [(f"time {name}", f"{value:.2f} ms") for name, value in report.times_ms.items()]
    return rows


def instructions(report: Report) -> str:
    """The share of the multiply-adds that each instruction does, the largest first."""
    done = sorted(report.instructions.items(), key=lambda row: -row[1])
    total = sum(count for _, count in done) or 1.0
    return ", ".join(f"{name} {percent(count / total)}" for name, count in done)


def float_table(report: Report) -> Table:
    """What stayed float, grouped by reason."""
    from rich.text import Text

    rows = table("stayed float", "ops", "multiply-adds", "why")
    for reason, kept in by_reason(report):
        names = ", ".join(layer.name for layer in kept[:3]) + (", ..." if len(kept) > 3 else "")
        macs = sum(k.macs for k in kept)
        rows.add_row(Text(names), str(len(kept)), big(macs), Text(reason))
    return rows


def by_reason(report: Report) -> list[tuple[str, list[Layer]]]:
    """The float layers by their reason; the reason with most multiply-adds, then layers, first."""
    groups: dict[str, list[Layer]] = {}
    for layer in report.floats:
        groups.setdefault(layer.reason or "no reason was recorded", []).append(layer)
    return sorted(groups.items(), key=lambda g: (-sum(k.macs for k in g[1]), -len(g[1]), g[0]))


def layer_table(report: Report) -> Table:
    """One row per layer, in the order they are computed."""
    from rich.text import Text

    rows = table("layer", "op", "shape", "multiply-adds", "precision", "float32", "now")
    for layer in report.layers:
        rows.add_row(
            Text(layer.name), layer.op, Text(layer.detail), big(layer.macs) if layer.macs else "",
            layer.precision, size(layer.bytes_float32), size(layer.bytes_now),
        )  # fmt: skip
    return rows


def table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, highlight=False)
    for name in columns:
        prose = name in ("stayed float", "why")
        justify: JustifyMethod = "right" if name in NUMBERS else "left"
        table.add_column(name, justify=justify, no_wrap=not prose, max_width=PROSE)
    return table


def percent(share: float) -> str:
    """Rounded down in the last digit that shows, so that 100 % means all of it."""
    return f"{int(share * 1000) / 10:.1f} %"


def big(count: int) -> str:
    """A count with a unit: 385.2 M."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def size(count: int) -> str:
    """Bytes with a unit; nothing for none."""
    if count >= 2**20:
        return f"{count / 2**20:.2f} MiB"
    if count >= 2**10:
        return f"{count / 2**10:.1f} KiB"
    return f"{count} B" if count else ""


def decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f} dB"
