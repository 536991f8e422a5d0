"""What the core may ask of a target: a Protocol; the machines themselves are in targets/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qcompiler.arith import SumRule
from qcompiler.graph import Node
from qcompiler.ops import Packing
from qcompiler.types import DType


@dataclass(frozen=True)
class Sums:
    """How one instruction adds products of int8 weights.

    rule: what must be proven about them; None: nothing. low, high: bounds of the activation codes
    as it takes them.
    """

    rule: SumRule | None
    low: int
    high: int


@dataclass(frozen=True)
class Times:
    """Microseconds of each of several choices, all measured or all estimated."""

    us: tuple[float, ...]
    measured: bool


class Target(Protocol):
    """Facts about a machine that passes may use; passes never name one."""

    @property
    def name(self) -> str: ...

    def refuses(self, node: Node) -> str | None:
        """Why the node cannot be lowered here; None when it can."""

    def refuses_integer(self, node: Node) -> str | None:
        """Why the integer form of a float node has no kernel here; None when it has."""

    def sums(self, low: int, high: int) -> Sequence[Sums]:
        """The instructions for activation codes in [low, high] and int8 weights, fastest first."""

    def microseconds(
        self, node: Node, choices: Sequence[Sums | None], codes: DType
    ) -> Times | None:
        """How long a layer that reads codes of that type takes on one core, where its weights are
        proven for each of these sums, or (None) in float32. None: nothing is known of one."""

    def least(self, what: str) -> float | None:
        """Microseconds that were measured of what has that name, a whole program say; None: it was
        not measured."""

    def quantizing(self, node: Node) -> float:
        """Microseconds of making codes of the node's value in a kernel of its own."""

    def dequantizing(self, node: Node) -> float:
        """Microseconds of making float32 of the codes of the node's value."""

    def packing(self, node: Node) -> Packing | None:
        """How the kernel that takes this matmul or convolution reads its weights."""
