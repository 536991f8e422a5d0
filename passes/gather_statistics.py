"""Gather statistics: the interpreter over calibration data, a fold over values, kept in a file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.context import Context
from qcompiler.data import DataError, cut_items
from qcompiler.graph import Graph, Node
from qcompiler.interpret import run
from qcompiler.ops import Const
from qcompiler.statistics import Shard, Statistics, model_hash
from qcompiler.stats import EMPTY, Stats
from qcompiler.types import DType, TensorType

from .share_scales import only_clamped

if TYPE_CHECKING:
    import torch

KEPT_EVERY = 10.0
"""Seconds after which unfinished statistics are written again."""


def counted(graph: Graph) -> list[Node]:
    """The values that statistics are taken of: each float32 value that is no constant, and that
    more than a clamp reads."""
    users, results = graph.users(), set(graph.results)
    return [n for n in users if _is_value(n) and not only_clamped(n, users, results)]


def _is_value(node: Node) -> bool:
    is_float = isinstance(node.type, TensorType) and node.type.dtype is DType.FLOAT32
    return is_float and not isinstance(node.op, Const)


def gathered(graph: Graph, ctx: Context, file: Path | str | None = None) -> Statistics:
    """Statistics over the data of ctx, item by item. file: where they are kept, written now and
    then; what it holds of the same data already is not computed again.

    Raises DataError for a file of other data or of another model.
    """
    begun = _begun(graph, file)
    values = begun.values if begun is not None else {}
    rest = _Rest(graph, begun, {node: values.get(node.name, EMPTY) for node in counted(graph)})
    _take_all(rest, ctx, file)
    if begun is not None and rest.done < begun.items:
        _require_same(begun, "", file)
    found = rest.found()
    if file is not None:
        found.save(file)
    return found


def gathered_once(
    graph: Graph, ctx: Context, wanted: Sequence[Node]
) -> tuple[dict[Node, Stats], str]:
    """(statistics of these values, SHA-256 of the data), of no use beyond this graph."""
    rest = _Rest(graph, None, {node: EMPTY for node in wanted})
    _take_all(rest, ctx, None)
    return rest.stats, rest.hash.hexdigest()


def _take_all(rest: _Rest, ctx: Context, file: Path | str | None) -> None:
    import torch

    begun = rest.begun
    total = len(ctx.data) if isinstance(ctx.data, Sized) else 0
    with torch.no_grad():
        for done, item in enumerate(cut_items(ctx.data, rest.graph), 1):
            rest.take(item, done)
            if begun is not None and done == begun.items:
                _require_same(begun, rest.hash.hexdigest(), file)
            ctx.progress("calibrate", done, total)
            if file is not None and rest.due():
                rest.found().save(file)


@dataclass
class _Rest:
    """Statistics while they are gathered. begun: those of the first items, from before."""

    graph: Graph
    begun: Statistics | None
    stats: dict[Node, Stats]
    sample: tuple[torch.Tensor, ...] = ()
    done: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    written: float = field(default_factory=time.monotonic)

    def take(self, item: list[tuple[torch.Tensor, ...]], number: int) -> None:
        """Raises DataError for ids that are outside of their table, naming the item."""
        import torch

        seen = self.begun is not None and number <= self.begun.items
        for piece in item:
            self.sample = self.sample or piece
            if self.stats and not seen:
                try:
                    run(self.graph, piece, see=self.see)
                except IndexError as e:
                    raise DataError(f"calibration item {number - 1}: {e}") from e
            for value in piece:
                self.hash.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.done = number

    def see(self, node: Node, value: torch.Tensor | Any) -> None:
        if node in self.stats:
            self.stats[node] = self.stats[node].merge(Stats.of(value))

    def due(self) -> bool:
        """Whether it is time to write what there is, beyond what a file has."""
        new = self.begun is None or self.done > self.begun.items
        late = time.monotonic() - self.written > KEPT_EVERY
        if new and late:
            self.written = time.monotonic()
        return new and late

    def found(self) -> Statistics:
        values = {node.name: stats for node, stats in self.stats.items()}
        shard = Shard(self.hash.hexdigest(), self.done)
        return Statistics(model_hash(self.graph), (shard,), values, self.sample)


def _begun(graph: Graph, file: Path | str | None) -> Statistics | None:
    """What a file holds already; None where there is none."""
    if file is None or not Path(file).exists():
        return None
    found = Statistics.load(file).of(graph)
    if len(found.shards) != 1:
        raise DataError(f"{file}: merged statistics cannot be gone on with; name another file")
    return found


def _require_same(begun: Statistics, digest: str, file: Path | str | None) -> None:
    if begun.shards[0].digest != digest:
        raise DataError(
            f"{file} holds the statistics of {begun.items} items of other data: name another file "
            f"or remove it"
        )
