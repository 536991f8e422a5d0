"""Trade-off: what accuracy costs, point by point, each of which `quantize(max_drop=)` makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qcompiler.atomic import replacing

DROPS = (-6.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 6.0)
"""Decibels against int8."""
FORMAT = "qcompiler front"


class FrontError(ValueError):
    """The file is none that can be continued."""


@dataclass(frozen=True)
class FrontPoint:
    """max_drop: what may be lost against int8, dB. ms: of a call on one core by the target's times;
    where the whole program was never measured, of layers and conversions alone. sqnr_db: at the
    outputs, as it is simulated. floats: layers that compute in float32."""

    max_drop: float
    ms: float
    sqnr_db: float
    floats: int


def continued(
    point: Callable[[float], FrontPoint], of: str, drops: Sequence[float],
    file: Path | str | None, show: Callable[[str, int, int], None],
) -> list[FrontPoint]:  # fmt: skip
    """The points of these drops, those that another is as good as left out, by time.

    of: a hash of all that they depend on. file: written after each point; what it has of the same
    hash is not computed again. Raises FrontError for a file that is something else.
    """
    known = {p.max_drop: p for p in _read(file, of)}
    for done, drop in enumerate(drops):
        if drop not in known:
            show("front", done, len(drops))
            known[drop] = point(drop)
            if file is not None:
                _write(file, of, known.values())
    return best_of([known[drop] for drop in drops])


def best_of(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Those that no other is as good as in both, by time."""
    found: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.sqnr_db, p.max_drop)):
        if not found or point.sqnr_db > found[-1].sqnr_db:
            found.append(point)
    return found


def _write(file: Path | str, digest: str, points: Iterable[FrontPoint]) -> None:
    rows = [asdict(p) | {"sqnr_db": str(p.sqnr_db)} for p in points]
    with replacing(file) as out:
        out.write(json.dumps({"format": FORMAT, "of": digest, "points": rows}, indent=1).encode())


def saved(file: Path | str) -> list[FrontPoint]:
    """The points of a file, those that others are as good as left out, by time.

    Raises OSError, FrontError for a file that is something else.
    """
    return best_of(_parsed(file)[1])


def _read(file: Path | str | None, digest: str) -> list[FrontPoint]:
    if file is None or not Path(file).exists():
        return []
    of, rows = _parsed(file)
    if of != digest:
        raise FrontError(
            f"{file}: it is the front of another model, data, recipe or times; give another file"
        )
    return rows


def _parsed(file: Path | str) -> tuple[str, list[FrontPoint]]:
    """(the hash of what it is of, its points)."""
    try:
        body = json.loads(Path(file).read_text())
        rows = [FrontPoint(**row | {"sqnr_db": float(row["sqnr_db"])}) for row in body["points"]]
        given, of = body["format"], body["of"]
    except (ValueError, KeyError, TypeError):
        given, of, rows = "", "", []
    if given != FORMAT or not isinstance(of, str):
        raise FrontError(f"{file}: expected a front that `qcompiler front` wrote")
    return of, rows
