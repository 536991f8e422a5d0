"""The error ledger: what each quantizer adds to the error at the outputs, why, and what helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PARTS = ("clipping", "activations", "weights", "proof", "requantize")
"""What the error of a quantizer is made of: values beyond the range, rounding of activations, of
weights (with what the bias takes back of it), scales grown so that 16-bit sums fit, and codes that
integer arithmetic rounds another way (bias codes, multipliers)."""


@dataclass(frozen=True)
class Remedy:
    """What could be done about an entry, and the decibels that the outputs gained where it was
    tried, everything else as it is."""

    what: str
    gain_db: float


@dataclass(frozen=True)
class Entry:
    """One quantizer: of an activation, or of a layer's weights.

    parts: by name of PARTS, noise power at the outputs as a share of their signal power; below 0
    where it cancels noise of others. alone: the same of the outputs where nothing else is
    quantized; None: not measured. microseconds: how much longer a call is estimated to take with
    the layers that read it in float; None: not known. cause: in words. step: the scale, of weights
    the largest.
    """

    name: str
    kind: str
    origin: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    alone: float | None = None
    microseconds: float | None = None
    cause: str = ""
    step: float = 0.0
    remedies: tuple[Remedy, ...] = ()

    @property
    def share(self) -> float:
        """Of the outputs' signal power."""
        return sum(self.parts.values())

    @property
    def per_microsecond(self) -> float:
        """Noise removed for each microsecond that float costs, at least one."""
        return self.share / max(self.microseconds or 0.0, 1.0)

    @property
    def largest_part(self) -> str:
        return max(self.parts, key=lambda k: self.parts[k]) if self.parts else ""


@dataclass(frozen=True)
class Ledger:
    """total: measured noise power of the INTEGER graph at the outputs, as a share of
    their signal power, over so many samples. integers: what it does to the outputs
    themselves beyond all these. residual: what the parts leave out.
    """

    total: float
    samples: int
    integers: float
    entries: tuple[Entry, ...]

    @property
    def residual(self) -> float:
        return self.total - self.integers - sum(e.share for e in self.entries)

    @property
    def sqnr_db(self) -> float:
        return decibels(self.total)

    def parts(self) -> dict[str, float]:
        """The sums over all entries, by part."""
        return {p: sum(e.parts.get(p, 0.0) for e in self.entries) for p in PARTS}

    def ranked(self) -> tuple[Entry, ...]:
        """Those first that make most noise."""
        return tuple(sorted(self.entries, key=lambda e: -e.share))

    def by_time(self) -> tuple[Entry, ...]:
        """Those first that remove most noise for each microsecond that float costs, where that is
        known."""
        timed = (e for e in self.entries if e.microseconds is not None)
        return tuple(sorted(timed, key=lambda e: -e.per_microsecond))

    def of(self, name: str) -> tuple[Entry, ...]:
        """The entries of a value, a layer, or a module and all below it."""
        return tuple(
            e for e in self.entries
            if e.name == name or f"{e.origin.split(' ')[0]}.".startswith(f"{name}.")
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives an equal value back."""
        return asdict(self)

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Ledger:
        def entry(row: Mapping[str, Any]) -> Entry:
            remedies = tuple(Remedy(**r) for r in row["remedies"])
            return Entry(**{**row, "remedies": remedies})

        entries: Sequence[Mapping[str, Any]] = body["entries"]
        return Ledger(**{**body, "entries": tuple(map(entry, entries))})


def decibels(noise: float) -> float:
    """The signal-to-noise ratio of noise given as a share of the signal."""
    return -10 * math.log10(noise) if noise > 0 else math.inf
