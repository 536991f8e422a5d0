"""A peer's mode: one way another runtime computes a model, as a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.machine import features

if TYPE_CHECKING:
    import torch

Inputs = tuple[Any, ...]
"""One tensor per argument of the module."""


class Precision(Enum):
    """What programs are compared within: the width of their weights."""

    FLOAT32 = "float32"
    INT8 = "int8"
    FOUR_BIT = "4 bit"


class Family(Enum):
    """What a work spends its time on; it decides which modes make sense."""

    CONVOLUTION = "convolution"
    TRANSFORMER = "transformer"
    PRODUCT = "product"
    WEIGHTS = "weights"  # read once per call, so that memory bounds it


EVERY = frozenset(Family)
DENSE = EVERY - {Family.CONVOLUTION}
BOUND_BY_WEIGHTS = frozenset({Family.WEIGHTS})

SUMS_IN_32_BITS = frozenset({"avx_vnni", "avx512_vnni", "asimddp", "i8mm"})
"""CPU features with an instruction that adds products of bytes in 32 bits; where there is none,
the fast one adds pairs in 16, and full ranges overflow it."""
SATURATES = "can saturate here: pairs of 8-bit products are added in 16 bits"


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be computed: a module, the held-out inputs it is measured on, calibration data.

    threads: how many a program may use. folder: for files, removed with the job.
    """

    name: str
    module: torch.nn.Module
    inputs: Inputs
    calibration: tuple[Inputs, ...]
    family: Family
    threads: int
    folder: Path


@dataclass(frozen=True, eq=False)
class Program:
    """call: computes the job once. values: what a call gave, as arrays in the module's order. on:
    the same program with other inputs; None where nobody asks for that."""

    call: Callable[[], Any]
    values: Callable[[Any], Sequence[Any]]
    on: Callable[[Inputs], Program] | None = None

    def outputs(self) -> list[Any]:
        """The results of one call, copied."""
        return [value.copy() for value in self.values(self.call())]


@dataclass(frozen=True, eq=False)
class Mode:
    """One setting of a peer.

    what: the setting in the peer's own words. prepare: the program of a job; raises whatever the
    peer raises, Skipped for what this machine lacks. saturates: whether its sums of bytes overflow
    where the machine has no 32-bit ones. families: the works it makes sense for.
    """

    peer: str
    name: str
    what: str
    precision: Precision
    prepare: Callable[[Job], Program]
    saturates: bool = False
    families: frozenset[Family] = EVERY

    @property
    def label(self) -> str:
        return f"{self.name} ({self.peer})"

    def note(self, here: frozenset[str] | None = None) -> str:
        """What a reader must know of its results on a machine with these CPU features (this one
        unless given)."""
        found = features() if here is None else here
        if not self.saturates or found & SUMS_IN_32_BITS:
            return ""
        return SATURATES


class Skipped(RuntimeError):
    """A mode that cannot be had here; the message says why."""


def normalises(module: torch.nn.Module) -> bool:
    """Whether it has a LayerNorm: what peers call a transformer and set otherwise."""
    import torch

    return any(isinstance(m, torch.nn.LayerNorm) for m in module.modules())


def first_line(error: Exception) -> str:
    """What an error says, as one line; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
