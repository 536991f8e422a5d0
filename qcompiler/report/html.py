"""The report as one HTML page that needs neither network nor script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import __version__
from qcompiler.atomic import replacing
from qcompiler.graph import Graph
from qcompiler.report import plots, table
from qcompiler.report.facts import Report
from qcompiler.report.tensors import Activation, Weight, activations, weights
from qcompiler.tradeoff import FrontPoint

FIRST = 12
"""Histograms that show at once, those of the layers with most multiply-adds; the rest fold out."""


WIDE, NARROW = 6, 3
"""Cards side by side, at most, in a window of the page's full width and in a smaller one."""


@dataclass(frozen=True)
class Section:
    """A table of its own, put before the layers: rows of text under columns, a remark, and above
    them a drawing, an <svg> element of ours."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remark: str = ""
    drawing: str = ""


def front_section(points: Sequence[FrontPoint]) -> Section:
    """What accuracy costs: the points of a front, drawn where matplotlib is installed."""
    rows = tuple(
        (f"{p.max_drop:+g} dB", f"{p.ms:.3f}", table.decibels(p.sqnr_db), str(p.floats))
        for p in points
    )
    remark = (
        "Each point is the fastest that loses no more than its --max-drop against int8, with which "
        "`qcompiler compile` makes it."
    )
    drawing = plots.front(points) if plots.available() else ""
    columns = ("may lose", "ms of a call", "SQNR", "layers in float32")
    return Section("What accuracy costs", columns, rows, remark, drawing)


def page(
    report: Report,
    graph: Graph | None = None,
    float_graph: Graph | None = None,
    title: str = "Quantization report",
    sections: Sequence[Section] = (),
) -> str:
    """The page as text.

    graph: the INTEGER graph, for histograms of its weights, ranges of its activations and its own
    text. float_graph: what it was made from, for the weights before. Where matplotlib is not
    installed the page says so in place of the histograms.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    drawn = graph is not None and plots.available()
    found = weights(graph, float_graph) if graph is not None and drawn else []
    shapes = Environment(
        loader=PackageLoader("qcompiler", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shapes.filters.update(big=table.big, size=table.size, decibels=table.decibels)
    shown = cards(report)
    ranges = [_range(a) for a in activations(graph)] if graph is not None else []
    facts: dict[str, Any] = {
        "title": title,
        "version": __version__,
        "report": report,
        "totals": table.totals(report),
        "cards": shown,
        "columns": (columns(len(shown), WIDE), columns(len(shown), NARROW)),
        "sections": sections,
        "reasons": table.by_reason(report),
        "rows": layer_rows(report, found),
        "plots": _plots(found),
        "first": FIRST,
        "undrawn": graph is not None and not drawn,
        "activations": ranges,
        "values": _plots([row["a"] for row in ranges if row["a"].counts]) if drawn else [],
        "text": str(graph) if graph is not None else "",
    }
    return shapes.get_template("template.html").render(facts)


def write_page(path: Path, *args: Any, **options: Any) -> None:
    """Write `page(...)` to a file, whole or not at all. Raises OSError where it cannot."""
    text = page(*args, **options)
    with replacing(path) as file:
        file.write(text.encode())


def cards(report: Report) -> list[tuple[str, str, str]]:
    """(number, unit or name, remark) of the facts a reader looks for first."""
    saved = report.bytes_float32 / report.bytes_now if report.bytes_now else 1.0
    found = [
        (table.percent(report.integer_share), "of the multiply-adds are integer",
         f"{table.big(report.macs)} in all"),
        (table.size(report.bytes_now), "of constants",
         f"{table.size(report.bytes_float32)} as float32, {saved:.1f} times as much"),
    ]  # fmt: skip
    for name, db in report.sqnr_db.items():
        found.append((table.decibels(db), f"SQNR of {name}", "against float32"))
    for name, ms in report.times_ms.items():
        found.append((f"{ms:.1f} ms", name, "median of a call"))
    return found


def columns(count: int, most: int) -> int:
    """In how many columns cards stand, so that the rows are as even as they can be."""
    rows = max(-(-count // most), 1)
    return max(-(-count // rows), 1)


def layer_rows(report: Report, found: Sequence[Weight]) -> list[dict[str, Any]]:
    """The layers with what their row shows beside their own fields."""
    most = max((layer.macs for layer in report.layers), default=0)
    by_name = {w.layer: w for w in found}
    return [
        {
            "layer": layer,
            "bar": f"{100 * layer.macs / most:.1f}" if most else "0",
            "weight": by_name.get(layer.name),
        }
        for layer in report.layers
    ]


def _plots(found: Sequence[Any]) -> list[tuple[Any, str]]:
    """Weights or activations, each with its histogram."""
    drawn = plots.histograms([f.counts for f in found]) if found else []
    return list(zip(found, drawn, strict=True))


def _range(a: Activation) -> dict[str, Any]:
    """The activation and, in percent of what both ranges span, where they begin and how wide they
    are."""
    ends = [a.covered, a.seen] if a.seen else [a.covered]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    span = (high - low) or 1.0

    def place(x: tuple[float, float]) -> str:
        left, width = (x[0] - low) / span, (x[1] - x[0]) / span
        return f"left:{100 * left:.1f}%;width:{100 * width:.1f}%"

    seen = place(a.seen) if a.seen else ""
    return {"a": a, "covered": place(a.covered), "seen": seen, "zero": f"{-100 * low / span:.1f}"}
