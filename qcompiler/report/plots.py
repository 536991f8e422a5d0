"""Plots as SVG text, drawn with matplotlib: histograms, and what accuracy costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from qcompiler.report.tensors import Counts
from qcompiler.tradeoff import FrontPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = (6.4, 2.9)  # inches
SIZE = (2.75, 1.35)  # inches; four fit side by side on the page
LABELLED = 0.92  # share of the axis that may have a label without its text being cut off
APART = 0.15  # share of the axis from 0 on below which two labels would touch
DECADES = {1: "1", 10: "10", 100: "100", 10**3: "1k", 10**4: "10k", 10**5: "100k", 10**6: "1M",
           10**7: "10M", 10**8: "100M"}  # fmt: skip
BEFORE, AFTER, INK = "#c3cad4", "#0b62c4", "#5b6675"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qcompiler",  # the same data, the same text
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": BEFORE,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def available() -> bool:
    """Whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def histograms(found: Sequence[Counts]) -> list[str]:
    """One <svg> each: counts before (filled) and after (line), on a logarithmic axis."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        return [_svg(_histogram(Figure(figsize=SIZE), counts)) for counts in found]


def _histogram(figure: Figure, w: Counts) -> Figure:
    axes: Any = figure.add_axes((0.115, 0.17, 0.865, 0.8))
    if w.before is not None:
        axes.stairs(w.before, w.edges, fill=True, color=BEFORE)
    axes.stairs(w.after, w.edges, color=AFTER, linewidth=0.8)
    top = max(float(w.after.max()), 10.0)
    axes.set_yscale("log")
    axes.set_ylim(0.7, top * 1.6)
    ticks = [count for count in DECADES if count <= top]
    axes.set_yticks(ticks, [DECADES[count] for count in ticks])
    low, high = float(w.edges[0]), float(w.edges[-1])
    ends = [math.copysign(_round_down(LABELLED * abs(x)), x) for x in (low, high)
            if abs(x) > APART * (high - low)]  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_xticks([0.0, *ends], ["0", *(f"{end:g}" for end in ends)])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def front(points: Sequence[FrontPoint]) -> str:
    """One <svg>: milliseconds of a call to the right, decibels upwards, a step from point to point,
    each with what it may lose and, where there are some, its layers in float32."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=WIDE)
        axes: Any = figure.add_axes((0.08, 0.15, 0.9, 0.8))
        known = [p for p in points if math.isfinite(p.sqnr_db)]
        axes.step([p.ms for p in known], [p.sqnr_db for p in known], where="post", color=BEFORE)
        axes.plot([p.ms for p in known], [p.sqnr_db for p in known], "o", color=AFTER, ms=4)
        middle = sum(f([p.ms for p in known], default=0.0) for f in (min, max)) / 2
        for p in known:
            floats = f", {p.floats} in float32" if p.floats else ""
            right = p.ms > middle  # its text goes to the left, or would be cut off
            axes.annotate(f"{p.max_drop:+g} dB{floats}", (p.ms, p.sqnr_db),
                          (-5, 4) if right else (5, -9), textcoords="offset points",
                          ha="right" if right else "left", color=INK)  # fmt: skip
        axes.margins(x=0.12, y=0.14)
        axes.set_xlabel("ms of a call, by measured or estimated times", color=INK)
        axes.set_ylabel("SQNR at the outputs, dB, simulated", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def _round_down(value: float) -> float:
    """A positive number cut after its first digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / unit) * unit


def _svg(figure: Figure) -> str:
    """The <svg> element alone, to stand inside HTML."""
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :].strip()
