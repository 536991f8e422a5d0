"""A ledger as text and as a section of the page: where the error comes from, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from qcompiler.ledger import PARTS, Entry, Ledger, decibels
from qcompiler.report.table import WIDTH, table

if TYPE_CHECKING:
    from qcompiler.report.html import Section

FIRST = 15
"""Rows that a reader sees at once; the others make little of the error."""

COLUMNS = ("of the error", "of", "what", *PARTS, "alone", "us in float", "why")


def render(ledger: Ledger, entries: Sequence[Entry] | None = None) -> str:
    """Totals, the entries with most of the error (or those given), and the remedies tried."""
    from rich.console import Console
    from rich.text import Text

    shown = ledger.ranked()[:FIRST] if entries is None else entries
    rows = table(*COLUMNS)
    for entry in shown:
        rows.add_row(*map(Text, _row(entry, ledger)))
    out = StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False)
    for name, value in totals(ledger):
        console.print(f"{name:<16} {value}", markup=False, highlight=False, soft_wrap=True)
    console.print(rows)
    if len(shown) < len(ledger.entries) and entries is None:
        console.print(f"and {len(ledger.entries) - len(shown)} more", highlight=False)
    for line in remedies(shown):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"


def totals(ledger: Ledger) -> list[tuple[str, str]]:
    """(name, value): the error, and how it is made up."""
    rows = [("SQNR", f"{ledger.sqnr_db:.1f} dB at the outputs, over {ledger.samples} samples")]
    parts = {**ledger.parts(), "integers": ledger.integers, "residual": ledger.residual}
    rows.append(("made up of", ", ".join(f"{p} {share(v, ledger)}" for p, v in parts.items())))
    timed = [e for e in ledger.by_time() if e.share > 0][:3]
    if timed:
        names = ", ".join(f"{e.name} ({e.kind})" for e in timed)
        rows.append(("cheapest cure", f"{names}: most error removed per microsecond in float"))
    return rows


def remedies(entries: Sequence[Entry]) -> Iterator[str]:
    """One line for each that was tried and helped."""
    for entry in entries:
        for r in entry.remedies:
            yield f"{entry.name} ({entry.kind}): {r.what}: {r.gain_db:+.2f} dB at the outputs"


def share(noise: float, ledger: Ledger) -> str:
    """Of the whole error, in percent."""
    return f"{100 * noise / ledger.total:.1f} %" if ledger.total > 0 else "0 %"


def section(ledger: Ledger) -> Section:
    """For the page."""
    from qcompiler.report.html import Section

    rows = tuple(_row(entry, ledger) for entry in ledger.ranked()[:FIRST])
    told = [f"{name}: {value}." for name, value in totals(ledger)]
    told += [f"{line}." for line in remedies(ledger.ranked()[:FIRST])]
    return Section("Where the error comes from", COLUMNS, rows, " ".join(told))


def _row(entry: Entry, ledger: Ledger) -> tuple[str, ...]:
    parts = (entry.parts.get(p) for p in PARTS)
    us = entry.microseconds
    return (
        share(entry.share, ledger), entry.kind, entry.name,
        *("" if p is None else share(p, ledger) for p in parts),
        "" if entry.alone is None else f"{decibels(entry.alone):.1f} dB",
        "" if us is None else f"{us:+.0f}", entry.cause,
    )  # fmt: skip
