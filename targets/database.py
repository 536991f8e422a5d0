"""The kernel database: measured times of the tiles of products, a JSON file for several targets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qcompiler.atomic import replacing

Times = Mapping[str, Mapping[str, float]]
"""Microseconds by product (its sizes, instruction and operand type) and by tile, `rows x vectors`;
the tile that is estimated to be best comes first."""

FORMAT = "qcompiler kernel database"
VERSION = 1
SHIPPED = Path(__file__).parent / "tuned.json"
"""Common shapes, measured by us."""

MARGIN = 0.98
"""Part of the estimated tile's time that another one must stay below: measurements differ by 1 to
2 % from run to run."""
WHOLE = "0x0"
"""Stands for the only form of a product whose template has no tiles."""
QUANTIZE, DEQUANTIZE = "quantize", "dequantize"
"""Names of the conversions of CONVERTED elements from float32 to codes and back."""
PROGRAM = "program "
"""What names of whole programs begin with."""
CONVERTED = 1 << 16
LARGEST = 64
"""Rows or vectors of a tile: more than any machine has registers for."""


class DatabaseError(ValueError):
    """The file is no kernel database."""


def fastest(times: Mapping[str, float]) -> tuple[int, int]:
    """The tile to use: the estimated one, unless another was clearly faster."""
    first = next(iter(times))
    best = min(times, key=lambda tile: (times[tile], tile))
    rows, vectors = (best if times[best] < MARGIN * times[first] else first).split("x")
    return int(rows), int(vectors)


def digest(times: Times) -> str | None:
    """SHA-256 of the times of layers and conversions: what is chosen for layers depends on all of
    them; None where nothing was measured. Whole programs decide only that there is nothing to
    choose."""
    rows = sorted((name, list(row.items())) for name, row in of_layers(times).items())
    if not rows:
        return None
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def of_layers(times: Times) -> Times:
    """Those of layers and conversions, without whole programs."""
    return {name: row for name, row in times.items() if not name.startswith(PROGRAM)}


def read(path: Path | str) -> dict[str, Times]:
    """The times by target. Raises OSError, DatabaseError naming the file and what is wrong."""
    try:
        rows = json.loads(Path(path).read_text())
    except (ValueError, RecursionError):
        raise DatabaseError(f"{path}: expected a kernel database, got no JSON") from None
    if not isinstance(rows, dict) or rows.get("format") != FORMAT:
        raise DatabaseError(
            f"{path}: expected a kernel database; `qcompiler compile --tune` writes one"
        )
    if rows.get("version") != VERSION:
        raise DatabaseError(
            f"{path}: expected version {VERSION}, got {rows.get('version')!r}; tune again into "
            "another file"
        )
    targets = _mapping(rows.get("targets"), f"{path}: targets")
    return {name: _times(found, f"{path}: {name}") for name, found in targets.items()}


def write(path: Path | str, target: str, times: Times) -> None:
    """The times added to those the file has; what was measured again is replaced.

    Raises OSError, DatabaseError for a file that is something else.
    """
    known = read(path) if Path(path).exists() else {}
    known[target] = {**known.get(target, {}), **times}
    ordered = {name: dict(sorted(known[name].items())) for name in sorted(known)}
    rows = {"format": FORMAT, "version": VERSION, "targets": ordered}
    with replacing(path) as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())


def new(times: Times, known: Times) -> Times:
    """Those that are not known, or were measured again."""
    return {product: row for product, row in times.items() if known.get(product) is not row}


def shipped(target: str) -> Times:
    """What is known of a target without measuring."""
    return _shipped().get(target, {})


@cache
def _shipped() -> dict[str, Times]:
    return read(SHIPPED)


def _times(value: Any, where: str) -> Times:
    products = _mapping(value, where)
    return {product: _tiles(row, f"{where}: {product}") for product, row in products.items()}


def _tiles(value: Any, where: str) -> dict[str, float]:
    row = _mapping(value, where)
    if not row:
        raise DatabaseError(f"{where}: expected times of tiles, got none")
    for tile, us in row.items():
        if not _is_tile(tile):
            raise DatabaseError(f"{where}: expected tiles as ROWSxVECTORS, got {tile!r}")
        number = isinstance(us, int | float) and not isinstance(us, bool)
        if not (number and math.isfinite(us) and us > 0):
            raise DatabaseError(f"{where}: {tile}: expected microseconds above 0, got {us!r}")
    return row


def _is_tile(text: str) -> bool:
    parts = text.split("x")
    return text == WHOLE or (len(parts) == 2 and all(
        p.isdecimal() and len(p) <= 2 and 1 <= int(p) <= LARGEST for p in parts
    ))


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatabaseError(f"{where}: expected an object, got {value!r}")
    return value
