"""Time per node of a program: milliseconds, multiply-adds, share of the machine's peak."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.graph import Node
from qcompiler.names import layer_name
from qcompiler.op import kind_of
from qcompiler.ops import Const, Get, Input, Region, Reshape, Tuple, Unpack
from qcompiler.report.survey import detail, macs
from qcompiler.runtime import CompiledModel
from qcompiler.runtime.clock import kernel_times
from qcompiler.types import TensorType

VIEWS = (Input, Const, Tuple, Get, Reshape, Unpack)
"""Ops that no kernel computes."""
ROUNDS = 20


@dataclass(frozen=True)
class OpTime:
    """A kernel. ms: the median of its calls. share: of the sum over all kernels, 0 to 1.

    gmacs: 10^9 multiply-adds a second, 0 where it computes none. peak: the part of the machine's
    peak for such products that this is; None where that was not measured.
    """

    name: str
    kind: str
    detail: str
    ms: float
    share: float
    macs: int
    gmacs: float
    integer: bool
    peak: float | None = None


def per_op(
    model: CompiledModel, inputs: Sequence[Any], peaks: tuple[float | None, float | None],
    rounds: int = ROUNDS,
) -> list[OpTime]:  # fmt: skip
    """The slowest first. peaks: GMAC/s of float32 and of integer products, all threads together.

    Raises ValueError for a program whose kernels are not its graph's nodes.
    """
    nodes = [n for n in model.graph.nodes() if not isinstance(n.op, VIEWS)]
    times = kernel_times(model, inputs, rounds)
    if {len(row) for row in times} != {len(nodes)}:
        got = ", ".join(sorted({str(len(row)) for row in times}))
        raise ValueError(f"per op: expected {len(nodes)} kernels, one per node, {got} ran")
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    total = sum(medians)
    found = [_row(n, ms, total, peaks) for n, ms in zip(nodes, medians, strict=True)]
    return sorted(found, key=lambda row: -row.ms)


def _row(node: Node, ms: float, total: float, peaks: tuple[float | None, float | None]) -> OpTime:
    anchor = max(body(node), key=macs)
    count = macs(anchor)
    integer = count > 0 and not _type(anchor).dtype.is_float
    rate = count / (ms * 1e6) if ms > 0.0 else 0.0
    limit = peaks[integer]
    # The steps of a region have no names of their own.
    what = detail(anchor) if count else detail(node)
    return OpTime(
        layer_name(node), "+".join(_kinds(node)), what, ms, ms / total if total else 0.0, count,
        rate, integer, rate / limit if limit and count else None,
    )  # fmt: skip


def body(node: Node) -> list[Node]:
    """The nodes that one kernel computes."""
    return node.op.body(node.inputs) if isinstance(node.op, Region) else [node]


def _kinds(node: Node) -> list[str]:
    return [kind_of(type(n.op)) for n in body(node) if not isinstance(n.op, Unpack)]


def _type(node: Node) -> TensorType:
    return node.type if isinstance(node.type, TensorType) else node.type.items[0]
