"""What the core may ask of a target: a Protocol; the machines themselves are in targets/."""

from __future__ import annotations

from typing import Protocol

from qcompiler.arith import SumRule
from qcompiler.graph import Node
from qcompiler.ops import Packing
from qcompiler.types import DType


class Target(Protocol):
    """Facts about a machine that passes may use; passes never name one."""

    @property
    def name(self) -> str: ...

    def refuses(self, node: Node) -> str | None:
        """Why the node cannot be lowered here; None when it can."""

    def refuses_integer(self, node: Node) -> str | None:
        """Why the integer form of a float node has no kernel here; None when it has."""

    def sum_rule(self, a: DType, b: DType) -> SumRule | None:
        """What the fast instruction for codes a x b adds in 16 bits; None: nothing."""

    def depth(self, a: DType, b: DType) -> int:
        """How many adjacent products along the reduction axis one accumulator lane takes."""

    def packing(self, node: Node) -> Packing | None:
        """How the kernel that takes this matmul or convolution reads its weights."""
