"""Layer moments: the second moments of what layers multiply their weights with, over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qcompiler.context import Context
from qcompiler.data import DataError, pieces
from qcompiler.graph import Graph, Node
from qcompiler.interpret import constant_values, run
from qcompiler.moments import Moments
from qcompiler.ops import Conv2d

if TYPE_CHECKING:
    import torch

ROWS = 1024
"""Positions of a sample that count, evenly apart: neighbours tell little that is new, and each
takes K^2 multiply-adds."""

MEMORY = 1 << 30
"""Bytes of moments held at once; where layers need more, the data is read again."""

FLOAT64_BYTES = 8


def blocks(layers: Sequence[Node]) -> Iterator[range]:
    """The layers by their places, so many at once as fit in MEMORY, at least one."""
    start, used = 0, 0
    for k, layer in enumerate(layers):
        size = _bytes(layer)
        if k > start and used + size > MEMORY:
            yield range(start, k)
            start, used = k, 0
        used += size
    if layers:
        yield range(start, len(layers))


def _bytes(layer: Node) -> int:
    size = math.prod(layer.inputs[1].tensor.ints[1:])
    groups = layer.op.groups if isinstance(layer.op, Conv2d) else 1
    return groups * size * size * FLOAT64_BYTES


def layer_moments(graph: Graph, ctx: Context, layers: Sequence[Node]) -> dict[Node, Moments]:
    """By layer, as the graph computes it: of each group's inputs [groups, K, K], K in the order of
    a row of its weight [O, K]. Layers that read one value in one way share them.

    Raises DataError where there is no calibration data.
    """
    import torch

    if ctx.data is None:
        raise DataError(
            "rounding weights by what they are multiplied with needs calibration data, got none; "
            "pass an iterable of inputs, or choose rounding='nearest'"
        )
    keys = {layer: _reads(layer) for layer in layers}
    readers: dict[Node, list[Node]] = {}
    for layer in {key: layer for layer, key in reversed(keys.items())}.values():
        readers.setdefault(layer.inputs[0], []).append(layer)
    found: dict[tuple[Any, ...], Moments] = {}

    def see(node: Node, value: Any) -> None:
        for layer in readers.get(node, ()):
            seen, key = Moments.of(rows_of(layer, value)), keys[layer]
            found[key] = found[key].merge(seen) if key in found else seen

    with torch.no_grad():
        known = constant_values(graph)
        for piece in pieces(ctx.data, graph):
            run(graph, piece, see=see, keep=known)
    return {layer: found[key] for layer, key in keys.items() if key in found}


def _reads(layer: Node) -> tuple[Any, ...]:
    """What decides the rows: equal keys mean equal moments."""
    if isinstance(layer.op, Conv2d):
        return layer.inputs[0], layer.op, layer.inputs[1].tensor.ints[1:]
    return (layer.inputs[0],)


def rows_of(layer: Node, x: torch.Tensor) -> torch.Tensor:
    """float32 [groups, N, K]: what each output's weights are multiplied with, N at most ROWS of a
    batch."""
    op = layer.op
    if not isinstance(op, Conv2d):
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: -(-len(rows) // ROWS)].unsqueeze(0)
    columns = patches(op, x, layer.inputs[1].tensor.ints[2:])  # [B, C k, L]
    step = -(-columns.shape[0] * columns.shape[2] // ROWS)
    parts = columns[:, :, ::step].unflatten(1, (op.groups, -1))
    found: torch.Tensor = parts.permute(1, 0, 3, 2).flatten(1, 2)
    return found


def patches(op: Conv2d, x: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """[B, C * kh * kw, positions]: the inputs under the window at each of its positions."""
    import torch.nn.functional as F

    (top, bottom), (left, right) = op.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.unfold(padded, kernel, op.dilation, 0, op.stride)
