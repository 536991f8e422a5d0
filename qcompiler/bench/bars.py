"""The bars our programs must clear, as data, and the verdict on each, a function of the rows.

A bar holds for the fastest of our programs whose SQNR is at least the highest among the peers of
its group within 5 % of that group's fastest, less 0.5 dB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qcompiler.bench.row import Row
from qcompiler.peers.mode import Precision

CLOSE = 1.05
"""How much slower than the fastest a peer may be for its SQNR to count."""
ALLOWANCE = 0.5
"""dB that our SQNR may be below theirs."""
FLOAT32, INT8, FOUR_BIT = Precision
SCALED = "int8"
"""The recipe that is also measured at one thread and at batch 1, for the bars about scaling."""


@dataclass(frozen=True)
class Bar:
    """Our time must be at most `ratio` times that of the best peer of `group`.

    recipe: of ours, for a bar that asks nothing of the SQNR; empty: the fastest that qualifies.
    """

    work: str
    group: Precision
    ratio: float
    recipe: str = ""

    def __str__(self) -> str:
        return f"{self.recipe or self.group.value} <= {self.ratio:g} x the best {self.group.value}"


@dataclass(frozen=True)
class Scaling:
    """One of our programs against itself, at one thread (threads > 1) or batch 1 (batch > 1): its
    throughput must be at least `ratio` times that."""

    work: str
    ratio: float
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        what = f"{self.threads} threads" if self.threads > 1 else f"batch {self.batch}"
        return f"{what} >= {self.ratio:g} x the throughput of 1"


@dataclass(frozen=True)
class Seconds:
    """Quantize and build must take less than `limit` seconds."""

    work: str
    limit: float

    def __str__(self) -> str:
        return f"quantize + build of {SCALED} < {self.limit:g} s"


@dataclass(frozen=True)
class Verdict:
    """met: None where something needed was not measured. reason: then what. ratio: as the bar
    counts it."""

    work: str
    bar: str
    met: bool | None
    ours: str = ""
    ours_value: float | None = None
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    sqnr: float | None = None
    needed: float | None = None
    reason: str = ""


GOALS: Mapping[str, float] = {
    "gemm768": 0.75, "resnet50": 0.80, "mobilenet_v2": 0.80, "bert_base": 0.75, "vit_b16": 0.75,
    "gpt2_small": 0.75, "gpt2_decode": 0.75, "gemv": 0.90,
}  # fmt: skip
"""Of the best int8 peer's time."""
FLOAT_GOAL = 1.05
BARS: tuple[Bar, ...] = (
    *(Bar(work, INT8, ratio) for work, ratio in GOALS.items()),
    Bar("gemv", FOUR_BIT, 0.5),
    *(Bar(work, INT8, 1.0, recipe="int8") for work in GOALS),
    *(Bar(work, FLOAT32, FLOAT_GOAL, recipe="float32") for work in GOALS),
)
SCALINGS: tuple[Scaling, ...] = (
    Scaling("resnet50", 1.8, threads=2),
    Scaling("bert_base", 1.8, threads=2),
    *(Scaling(work, 1.0, batch=8) for work in GOALS),
)
SECONDS: tuple[Seconds, ...] = (Seconds("resnet50", 60.0), Seconds("bert_base", 90.0))


def verdicts(work: str, rows: Sequence[Row]) -> list[Verdict]:
    """On every bar about this work that these rows, all of one run, are about."""
    full = [r for r in rows if not r.scaling]
    found = [verdict(bar, full) for bar in BARS if bar.work == work and _asked(bar, full)]
    for scaling in (s for s in SCALINGS if s.work == work):
        found += scaled(scaling, rows)
    return found


def _asked(bar: Bar, rows: Iterable[Row]) -> bool:
    """Whether the run had a peer of that group, measured or failed."""
    return any(_is_peer(r) and r.precision is bar.group for r in rows)


def _is_peer(row: Row) -> bool:
    return not row.ours


def verdict(bar: Bar, rows: Sequence[Row]) -> Verdict:
    """rows: of the bar's work, at one batch and thread count."""
    measured = [r for r in rows if r.times is not None]
    peers = [r for r in measured if _is_peer(r) and r.precision is bar.group]
    if not peers:
        return Verdict(bar.work, str(bar), None, reason="no peer was measured")
    best = min(peers, key=lambda r: r.ms)
    mine = [r for r in measured if r.ours and (not bar.recipe or r.setting == bar.recipe)]
    needed = None if bar.recipe else _needed(peers, best)
    fit = [r for r in mine if needed is None or (r.sqnr is not None and r.sqnr >= needed)]
    if not fit:
        why = _nobody(bar, mine, needed)
        return Verdict(bar.work, str(bar), None if not mine else False, peer=best.program,
                       peer_value=best.ms, needed=needed, reason=why)  # fmt: skip
    first = min(fit, key=lambda r: r.ms)
    ratio = first.ms / best.ms
    return Verdict(bar.work, str(bar), ratio <= bar.ratio, first.program, first.ms,
                   best.program, best.ms, ratio, first.sqnr, needed)  # fmt: skip


def _needed(peers: Sequence[Row], best: Row) -> float | None:
    """The SQNR that our program must have."""
    close = [r.sqnr for r in peers if r.ms <= CLOSE * best.ms and r.sqnr is not None]
    known = [s for s in close if not math.isnan(s)]
    return max(known) - ALLOWANCE if known else None


def _nobody(bar: Bar, mine: Sequence[Row], needed: float | None) -> str:
    if not mine:
        return f"{bar.recipe or 'none of ours'} was not measured"
    best = max((r for r in mine if r.sqnr is not None), key=lambda r: r.sqnr or 0.0, default=None)
    found = f"{best.program} has the highest, {best.sqnr:.1f} dB" if best else "none was judged"
    return f"none of ours has {needed:.1f} dB; {found}"


def scaled(bar: Scaling, rows: Sequence[Row]) -> list[Verdict]:
    """None where the run had other threads or another batch than the bar asks for."""
    mine = [r for r in rows if r.ours and r.setting == SCALED and r.times is not None]
    whole = next((r for r in mine if not r.scaling), None)
    single = next((r for r in mine if r.scaling and _single(bar, r)), None)
    if whole is None or single is None or not _same(bar, whole):
        return []
    ratio = (whole.batch / whole.ms) / (single.batch / single.ms)
    return [
        Verdict(bar.work, str(bar), ratio >= bar.ratio, whole.program, whole.ms,
                single.program, single.ms, ratio)
    ]  # fmt: skip


def _single(bar: Scaling, row: Row) -> bool:
    return row.threads == 1 if bar.threads > 1 else row.batch == 1


def _same(bar: Scaling, row: Row) -> bool:
    return row.threads == bar.threads if bar.threads > 1 else row.batch == bar.batch


def in_time(work: str, rows: Sequence[Row]) -> list[Verdict]:
    """The verdict on the seconds that our int8 program took to make."""
    bar = next((b for b in SECONDS if b.work == work), None)
    row = next((r for r in rows if r.ours and r.setting == SCALED and r.seconds), None)
    if bar is None or row is None:
        return []
    spent = row.seconds["quantize"] + row.seconds["build"]
    return [Verdict(work, str(bar), spent < bar.limit, row.program, spent)]
