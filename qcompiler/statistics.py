"""Statistics of a model over calibration data as a value: saved, merged, loaded, gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.atomic import replacing
from qcompiler.data import DataError
from qcompiler.graph import Graph
from qcompiler.ops import settled
from qcompiler.stats import Stats

if TYPE_CHECKING:
    import torch

FORMAT = 1
SAMPLE = "sample"
"""Prefix of the tensors of the first piece of data."""


@dataclass(frozen=True)
class Shard:
    """digest: SHA-256 of the bytes of all tensors of the items, in order. items: how many."""

    digest: str
    items: int


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of every value of a model, by its name, in place of the calibration data they were made from.

    model: hash of the graph. shards: what data was seen, by digest. sample: its first piece.
    """

    model: str
    shards: tuple[Shard, ...]
    values: Mapping[str, Stats]
    sample: tuple[torch.Tensor, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        """It stands where calibration data does, but holds no items."""
        raise DataError(
            "expected the calibration data itself, got statistics of it: rounding, scaling and "
            "explain read the data"
        )

    @property
    def digest(self) -> str:
        """Of the data: that of one shard, or of all their digests."""
        if len(self.shards) == 1:
            return self.shards[0].digest
        return hashlib.sha256(" ".join(s.digest for s in self.shards).encode()).hexdigest()

    @property
    def items(self) -> int:
        return sum(s.items for s in self.shards)

    def merge(self, other: Statistics) -> Statistics:
        """Those of both, bit for bit the same in any order. Raises DataError for another model's,
        or for data that is in both."""
        if self.model != other.model:
            raise DataError(
                f"statistics of different models: expected model {self.model[:12]}, got "
                f"{other.model[:12]}; calibrate the same graph"
            )
        twice = {s.digest for s in self.shards} & {s.digest for s in other.shards}
        if twice:
            raise DataError(f"the data {min(twice)[:12]} is in both statistics: leave one out")
        first, second = sorted((self, other), key=lambda s: s.shards[0].digest)
        shards = tuple(sorted((*self.shards, *other.shards), key=lambda s: s.digest))
        values = {name: found.merge(other.values[name]) for name, found in self.values.items()}
        return Statistics(self.model, shards, values, first.sample or second.sample)

    def of(self, graph: Graph) -> Statistics:
        """Itself. Raises DataError where it is another graph's."""
        if self.model == model_hash(graph):
            return self
        raise DataError(
            f"the statistics are of another model ({self.model[:12]}, the graph is "
            f"{model_hash(graph)[:12]}): calibrate this one, without scaling"
        )

    def save(self, path: Path | str) -> None:
        """Write a .safetensors file, whole or not at all. Raises OSError naming the path."""
        from safetensors.torch import save

        tensors = {f"{SAMPLE}.{k}": v.contiguous().clone() for k, v in enumerate(self.sample)}
        for k, stats in enumerate(self.values.values()):
            tensors |= {f"{k}.{key}": value for key, value in stats.to_tensors().items()}
        head = {
            "format": FORMAT, "model": self.model, "values": list(self.values),
            "shards": [[s.digest, s.items] for s in self.shards],
        }  # fmt: skip
        with replacing(path) as file:
            file.write(save(tensors, {"statistics": json.dumps(head)}))

    @staticmethod
    def load(path: Path | str) -> Statistics:
        """Raises DataError for a file that is something else, OSError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                head = json.loads((file.metadata() or {})["statistics"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if head["format"] != FORMAT:
                raise DataError(f"{path}: expected format {FORMAT}, got {head['format']!r}")
            return _read(head, tensors)
        except FileNotFoundError:
            raise FileNotFoundError(2, "no such file", str(path)) from None
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(
                f"{path}: expected statistics that `qcompiler calibrate` wrote ({e})"
            ) from None


def merged(parts: list[Statistics]) -> Statistics:
    """All of them. Raises DataError, see `Statistics.merge`."""
    return reduce(Statistics.merge, parts)


def model_hash(graph: Graph) -> str:
    """SHA-256 of the graph's text, which names constants by their hashes, without statistics."""
    plain = graph.noted({n: _bare(n.note) for n in graph.nodes() if n.note.stats is not None})
    return hashlib.sha256(str(plain).encode()).hexdigest()


def _bare(note: Any) -> Any:
    from dataclasses import replace

    return replace(note, stats=None)


def _read(head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Statistics:
    tables: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        tables.setdefault(place, {})[name] = value
    sample = tables.pop(SAMPLE, {})
    values = {name: Stats.from_tensors(tables[str(k)]) for k, name in enumerate(head["values"])}
    shards = tuple(Shard(str(digest), int(items)) for digest, items in head["shards"])
    ordered = tuple(settled(sample[str(k)]) for k in range(len(sample)))
    return Statistics(str(head["model"]), shards, values, ordered)
