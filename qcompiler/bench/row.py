"""A row: one program of a task, what it took and how right it was, or why it did not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.peers.mode import Precision
from qcompiler.timing import Times

OURS = "qcompiler"
REFERENCE = "PyTorch"
"""The owner of the program that the results of all others are compared with."""


@dataclass(frozen=True)
class Row:
    """owner: OURS, REFERENCE or a peer; setting: a recipe of ours, or the name of a peer's mode.

    times: milliseconds of a call. sqnr: dB against torch float32 on the held-out input, None where
    there is nothing to judge. seconds: of trace, quantize and build, of ours. failure: why there
    are no times. scaling: whether it is one of ours again, at one thread or batch 1. whole: of ours
    that compute as their recipe says, the name of its time in a kernel database.
    """

    program: str
    owner: str
    setting: str
    precision: Precision
    threads: int = 1
    batch: int = 1
    times: Times | None = None
    sqnr: float | None = None
    note: str = ""
    failure: str = ""
    scaling: bool = False
    whole: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.owner == OURS

    @property
    def ms(self) -> float:
        """The median; asked of measured rows only."""
        assert self.times is not None
        return self.times.median


def precision_of(recipe: str) -> Precision:
    """The group that programs of one of our recipes are compared in."""
    if recipe == "float32":
        return Precision.FLOAT32
    return Precision.FOUR_BIT if recipe.startswith("w4") else Precision.INT8
