"""Decompose: attention into matmul and softmax, so that each part is quantized and fused."""

from __future__ import annotations

import math

from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    Arange,
    Attention,
    Compare,
    Const,
    Matmul,
    Mul,
    Permute,
    Relation,
    Reshape,
    Softmax,
    Where,
    const,
)  # fmt: skip
from qcompiler.pipeline import rewrites
from qcompiler.rewrite import Miss, Sweep
from qcompiler.types import DType


def attention_into_matmuls(node: Node, sweep: Sweep) -> Node | Miss | None:
    """attention(q, k, v, mask) => matmul(softmax(matmul(q, k^T) * scale + mask), v)."""
    match node:
        case Node(Attention(scale, causal), (q, k, v, *mask)):
            rank = k.tensor.rank
            swap = (*range(rank - 2), rank - 1, rank - 2)
            scores = Mul()(Matmul()(q, Permute(swap)(k)), const(scale))
            if mask:
                scores = _masked(scores, mask[0])
            if causal:
                scores = _masked(scores, _lower_triangle(scores))
            return Matmul()(Softmax()(scores), v)
    return None


def _masked(scores: Node, mask: Node) -> Node:
    """A bool mask keeps what is true; a float mask is added."""
    if mask.tensor.dtype is not DType.BOOL:
        return Add()(scores, mask)
    return Where()(mask, scores, const(-math.inf))


def _lower_triangle(scores: Node) -> Node:
    """A bool [L, S] mask: position i attends to positions up to i."""
    import torch

    rows, columns = scores.tensor.shape[-2:]
    if isinstance(rows, int) and isinstance(columns, int):
        return Const(torch.ones(rows, columns, dtype=torch.bool).tril())()
    i = Reshape((rows, 1))(Arange(0, 1, rows)())
    j = Reshape((1, columns))(Arange(0, 1, columns)())
    return Compare(Relation.GE)(i, j)


decompose = rewrites("decompose", (attention_into_matmuls,), required=True)
