"""Schemes: how tensors of each kind are quantized before their parameters are chosen."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.types import DType, Scheme

ACTIVATION = Scheme(DType.UINT8, 0, 255)
ROWS = Scheme(DType.INT8, -127, 127, symmetric=True, dynamic=True)
WEIGHT = Scheme(DType.INT8, -127, 127, symmetric=True, axis=0)
NARROW = replace(WEIGHT, qmin=-7, qmax=7)  # 4 bits, in groups
