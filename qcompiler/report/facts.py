"""A report as plain data: frozen, printable, and JSON both ways without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qcompiler.ledger import Ledger

FORMAT = 1
"""Version of the JSON form; another one is refused."""

Numbers = Mapping[str, float]
NUMBERS = ("sqnr_db", "times_ms", "instructions")
"""The fields of a report that are such."""


class ReportError(ValueError):
    """A text is no report of this version."""


@dataclass(frozen=True)
class Layer:
    """One op that computes: what it is, what it costs, and how it is computed now.

    detail: shape facts for a reader. macs: multiply-adds for the traced shape, a symbolic
    dimension counted as its least value. precision: float32, or the dtype of the weights or codes
    it computes with (int8). reason: why it is float; empty otherwise. bytes_float32, bytes_now:
    its parameters, as float32 and as they are stored.
    """

    name: str
    op: str
    detail: str = ""
    origin: str = ""
    macs: int = 0
    precision: str = "float32"
    reason: str = ""
    bytes_float32: int = 0
    bytes_now: int = 0

    @property
    def integer(self) -> bool:
        return self.precision.startswith("int")


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    quantizes, dequantizes: conversions left between float and codes. bytes_float32, bytes_now:
    all constants of the model. instructions: multiply-adds by the instruction that does them; empty
    where nothing was built. sqnr_db: per output, against the float graph, in dB (see quality).
    times_ms: median time of a call in milliseconds, by what ran. errors: where the error at the
    outputs comes from; None where nobody asked.
    """

    target: str
    recipe: str
    layers: tuple[Layer, ...]
    quantizes: int
    dequantizes: int
    bytes_float32: int
    bytes_now: int
    sqnr_db: Numbers = field(default_factory=dict)
    times_ms: Numbers = field(default_factory=dict)
    instructions: Numbers = field(default_factory=dict)
    errors: Ledger | None = None

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def integer_share(self) -> float:
        """Share of the multiply-adds that are integer, 0 to 1; 0 where there are none."""
        done = sum(layer.macs for layer in self.layers if layer.integer)
        return done / self.macs if self.macs else 0.0

    @property
    def floats(self) -> tuple[Layer, ...]:
        """The layers that stayed float, those with most multiply-adds first."""
        kept = [layer for layer in self.layers if not layer.integer]
        return tuple(sorted(kept, key=lambda layer: -layer.macs))

    def __str__(self) -> str:
        from qcompiler.report.table import render

        return render(self)

    def to_json(self) -> str:
        """The report as JSON text; equal reports give equal texts."""
        rows = [
            {f.name: getattr(layer, f.name) for f in fields(Layer) if _differs(layer, f)}
            for layer in self.layers
        ]
        body = {f.name: getattr(self, f.name) for f in fields(Report)}
        errors = body.pop("errors")
        numbers: dict[str, Any] = {name: _plain(body[name]) for name in NUMBERS}
        if errors is not None:
            numbers["errors"] = errors.to_json()
        return json.dumps({"format": FORMAT, **body, **numbers, "layers": rows}, indent=1)

    @staticmethod
    def from_json(text: str) -> Report:
        """Raises ReportError where the text is no report of this format."""
        try:
            body: dict[str, Any] = json.loads(text)
            found = body.pop("format")
            if found != FORMAT:
                raise ReportError(f"report: expected format {FORMAT}, got {found!r}")
            layers = tuple(Layer(**row) for row in body.pop("layers"))
            numbers: dict[str, Any] = {k: _numbers(body.pop(k, {})) for k in NUMBERS}
            found = body.pop("errors", None)
            errors = None if found is None else Ledger.from_json(found)
            return Report(layers=layers, errors=errors, **numbers, **body)
        except ReportError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ReportError(f"report: malformed: {e}") from e


def _differs(layer: Layer, f: Any) -> bool:
    return bool(getattr(layer, f.name) != f.default)


def _plain(numbers: Numbers) -> dict[str, float | str]:
    """JSON has no infinity: an exact output's SQNR is written as a string."""
    return {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}


def _numbers(plain: Mapping[str, float | str]) -> Numbers:
    return {k: float(v) for k, v in plain.items()}
