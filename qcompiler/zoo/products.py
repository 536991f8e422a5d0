"""Single products, on which kernels are compared: a square matrix product, and a vector's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qcompiler.zoo.randomize import noise

GEMM = 768
GEMV_IN, GEMV_OUT = 4096, 11008
"""The wide layer of Llama-7B's feed-forward net."""


def linear(width: int, out: int) -> nn.Linear:
    """A layer without bias, its seeded normal weights scaled to keep the input's spread."""
    layer = nn.Linear(width, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(noise(out, width) / math.sqrt(width))
    return layer.eval()


def gemm768() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A product of 768 rows of 768 numbers with 768 columns."""
    return linear(GEMM, GEMM), (noise(GEMM, GEMM, seed=1),)


def gemv() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A product of one row of 4096 numbers with 11008 columns."""
    return linear(GEMV_IN, GEMV_OUT), (noise(1, GEMV_IN, seed=1),)
