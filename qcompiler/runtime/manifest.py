"""The manifest: what a program takes, gives and needs, as plain data that JSON holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from qcompiler.runtime.errors import ArtifactError

FORMAT = "qcompiler artifact"
VERSION = 1
ALIGNMENT = 64
"""Bytes. TVM's generated code loads whole vectors from addresses it takes to be so aligned."""

ARCHITECTURE = "sm_"
"""How the names of GPU architectures begin."""

Size = Union[int, str]  # noqa: UP007  (a number, or an expression in the entry's symbols)


@dataclass(frozen=True, repr=False)
class Spec:
    """One tensor of a call; dtype by the name that torch, numpy and TVM share."""

    name: str
    dtype: str
    shape: tuple[Size, ...]

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Entry:
    """A function of the library: `name(*inputs, *state, *weights) -> (*outputs, *state)`.

    initial: digests of the state's first values; weights: digests, in order. symbols: least and
    largest value (None: any) of each named dimension. trees: the module's own nesting of inputs
    and outputs (see frontend/trees.py). faults: messages of checks that a device makes: as many
    more results follow, int32 [1], and one that is not 0 is an error.
    """

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    state: tuple[Spec, ...] = ()
    initial: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    symbols: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    trees: tuple[str, str] = ("", "")
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in the member of weights, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Member:
    """The size in bytes and the SHA-256 of a member."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """hashes: of the model, the calibration data and more, where known. versions: of what made
    the artifact. device: what runs the kernels, `cpu` or `cuda`. features: CPU flags the code
    needs, as /proc/cpuinfo names them, and the least architecture of the device, `sm_80`."""

    target: str
    features: tuple[str, ...]
    recipe: str
    entries: Mapping[str, Entry]
    tensors: Mapping[str, Stored] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def cpu_features(self) -> tuple[str, ...]:
        return tuple(f for f in self.features if not f.startswith(ARCHITECTURE))

    @property
    def architecture(self) -> str:
        """The least compute capability of a GPU, as nvcc names it; empty for a CPU."""
        return "".join(f for f in self.features if f.startswith(ARCHITECTURE))

    @property
    def main(self) -> Entry:
        return self.entries["main"]

    def to_json(self) -> str:
        rows = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(rows, indent=1, sort_keys=True) + "\n"


def from_json(text: bytes | str) -> Manifest:
    """Raises ArtifactError for another format or version, or a field of a wrong kind."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        raise ArtifactError("its manifest is not JSON") from None
    if not isinstance(rows, dict) or rows.get("format") != FORMAT:
        raise ArtifactError("its manifest is not one of qcompiler")
    got = rows.get("version")
    if type(got) is not int or got != VERSION:
        raise ArtifactError(
            f"expected format version {VERSION}, got {got!r}; compile the model again, or use the "
            "qcompiler that wrote it"
        )
    try:
        return _manifest(rows)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ArtifactError(f"its manifest is malformed: {type(e).__name__} {e}") from None


def _manifest(rows: Mapping[str, Any]) -> Manifest:
    entries = {str(k): _entry(v) for k, v in rows["entries"].items()}
    if "main" not in entries:
        raise ValueError("no entry 'main'")
    stored = {
        str(k): Stored(_text(v["dtype"]), _ints(v["shape"]), _int(v["offset"]), _int(v["size"]))
        for k, v in rows["tensors"].items()
    }
    members = {
        str(k): Member(_int(v["size"]), str(v["sha256"])) for k, v in rows["members"].items()
    }
    return Manifest(
        _text(rows["target"]), _strings(rows["features"]), _text(rows["recipe"]), entries, stored,
        members, dict(rows["hashes"]), dict(rows["versions"]), _text(rows.get("device", "cpu")),
    )  # fmt: skip


def _entry(row: Mapping[str, Any]) -> Entry:
    before, after = _strings(row["trees"])
    symbols = {
        str(name): (_int(low), None if high is None else _int(high))
        for name, (low, high) in row["symbols"].items()
    }
    inputs, outputs, state = (tuple(map(_spec, row[key])) for key in ("inputs", "outputs", "state"))
    initial, weights = _strings(row["initial"]), _strings(row["weights"])
    faults = _strings(row.get("faults", []))
    made = Entry(inputs, outputs, state, initial, weights, symbols, (before, after), faults)
    if len(made.initial) != len(made.state):
        raise ValueError(f"{len(made.state)} states, {len(made.initial)} initial values")
    return made


def _spec(row: Mapping[str, Any]) -> Spec:
    shape = tuple(_text(d) if isinstance(d, str) else _int(d) for d in row["shape"])
    return Spec(_text(row["name"]), _text(row["dtype"]), shape)


def _text(value: Any) -> str:
    """Messages and listings show it on one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"expected text on one line, got {value!r}")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a size, got {value!r}")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(map(_int, values))


def _strings(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"expected a list of strings, got {values!r}")
    return tuple(map(_text, values))
