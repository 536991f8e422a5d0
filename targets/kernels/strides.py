"""Loops over a broadcast output, as few as possible, and each operand's steps along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .geometry import Dim

Expr = Any


@dataclass(frozen=True)
class Axis:
    """One loop: its extent, and the step in elements that each operand takes along it."""

    extent: Dim
    steps: tuple[int, ...]


def contiguous(shape: Sequence[Dim]) -> tuple[int, ...]:
    """Row-major steps. Only the first dimension may be symbolic: no step depends on it."""
    steps, step = [], 1
    for k in range(len(shape) - 1, -1, -1):
        steps.append(step)
        if k:
            size = shape[k]
            assert isinstance(size, int)
            step *= size
    return tuple(reversed(steps))


def broadcast_steps(shape: Sequence[Dim], out: Sequence[Dim]) -> tuple[int, ...]:
    """Steps of an operand of `shape` along the axes of `out`, as in numpy: 0 where repeated."""
    full = (1,) * (len(out) - len(shape)) + tuple(shape)
    return tuple(0 if d == 1 else s for d, s in zip(full, contiguous(full), strict=True))


def collapsed(shape: Sequence[Dim], steps: Sequence[tuple[int, ...]]) -> list[Axis]:
    """The loops over `shape`: neighbours that every operand walks as one are joined.

    A symbolic dimension stays a loop of its own, so that all others have known extents.
    """
    axes: list[Axis] = []
    for k, extent in enumerate(shape):
        if extent == 1:
            continue
        axis = Axis(extent, tuple(s[k] for s in steps))
        if axes and _joins(axes[-1], axis):
            outer = axes.pop()
            axis = Axis(outer.extent * axis.extent, axis.steps)  # type: ignore[operator]
        axes.append(axis)
    if not axes or isinstance(axes[-1].extent, str):
        axes.append(Axis(1, tuple(0 for _ in steps)))
    return axes


def _joins(outer: Axis, inner: Axis) -> bool:
    if isinstance(outer.extent, str) or isinstance(inner.extent, str):
        return False
    return all(a == b * inner.extent for a, b in zip(outer.steps, inner.steps, strict=True))
