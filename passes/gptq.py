"""GPTQ: weights rounded one after the other, each error made up for by those still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.pipeline import Pass, declare

from .round_weights import Rounding, group_order, permuted, rounded

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Columns whose errors are taken to all later ones at once (Frantar et al. 2022)."""


def compensated(problem: Rounding) -> Tensor:
    """Codes by Frantar et al. (ICLR 2023): the inverse of the second moments says how the weights
    not rounded yet best make up for an error; those that matter most come first."""
    import torch

    order = group_order(problem.moments)
    moments = permuted(permuted(problem.moments, order).transpose(1, 2), order)
    root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    # [G, K, N]: a weight of all channels lies in one piece.
    scales = permuted(problem.scales, order).transpose(1, 2).contiguous()
    left = permuted(problem.real, order).transpose(1, 2) * scales
    codes = torch.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for k in range(start, end):
            codes[:, k] = (left[:, k] / scales[:, k]).round().clamp(-problem.qmax, problem.qmax)
            error = (left[:, k] - codes[:, k] * scales[:, k]) / root[:, k, k, None]
            errors[:, k - start] = error
            left[:, k:end] -= root[:, k, k:end, None] * error.unsqueeze(1)
        left[:, end:] -= root[:, start:end, end:].transpose(1, 2) @ errors
    return permuted(codes.transpose(1, 2), order.argsort(1))


@declare("gptq", Level.QDQ, required=True)
@dataclass(frozen=True)
class Gptq(Pass):
    """dq(q(W)) => dq(q(W')): W' lies on the same codes, its errors chosen so that they cancel in
    what the layer makes of the calibration data. Needs data."""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        return rounded(graph, ctx, compensated, self.name)


gptq = Gptq()
