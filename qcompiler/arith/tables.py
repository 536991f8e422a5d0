"""Functions of one quantized value, decided on codes: 256-entry tables and folded clamps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .law import dequantize, quantize
from .params import Affine, ArithError, inverse
from .torch_algebra import DTYPES, TORCH

TABLE_SIZE = 256


def unary_table(fn: Callable[[Tensor], Tensor], source: Affine, target: Affine) -> Tensor:
    """All answers of a function from 8-bit codes to 8-bit codes: exact on every target.

    `table[i] = quantize(fn(dequantize(code)))`, dtype of the target, where code is i for uint8 and
    i - 128 for int8 (`table_offset`). fn: float32 [256] -> float32 [256]. Codes outside
    [qmin, qmax] of the source have entries as well.
    """
    codes = torch.arange(TABLE_SIZE, dtype=torch.int32) - table_offset(source.dtype)
    x = dequantize(TORCH, codes, source.scale, source.zero_point)
    with torch.no_grad():
        y = fn(x)
    if y.shape != x.shape or y.dtype != torch.float32:
        raise ArithError(
            f"unary_table: expected float32[{TABLE_SIZE}] from the function, got "
            f"{y.dtype}{list(y.shape)}"
        )
    inv = inverse(target.scale)
    return quantize(TORCH, y, inv, target.zero_point, target.qmin, target.qmax, target.dtype)


def table_offset(dtype: str) -> int:
    """What is added to a code to index its table: 0 for uint8, 128 for int8."""
    if dtype not in ("uint8", "int8"):
        raise ArithError(f"a table needs 8-bit codes, uint8 or int8; got {dtype}")
    return -torch.iinfo(DTYPES[dtype]).min


def clamp_codes(
    lo: float | None, hi: float | None, scale: float, zero_point: int, qmin: int, qmax: int
) -> tuple[int, int]:
    """(qmin', qmax') so that quantizing with them equals `clamp(x, lo, hi)`, then quantizing.

    `q(v) = clamp(rint(v * inv)) + zp` is monotone (a rounded product with a positive constant,
    rounding and clamping all are), and a monotone function commutes with a clamp:
    `q(clamp(x, lo, hi)) = clamp(q(x), q(lo), q(hi))`. With qmin' = q(lo) >= qmin and
    qmax' = q(hi) <= qmax the right side is quantize with the bounds (qmin', qmax'). NaN becomes lo
    on the left and qmin' on the right: the same. Where lo > hi, clamp is hi everywhere.
    """
    low = qmin if lo is None else _code(lo, scale, zero_point, qmin, qmax)
    high = qmax if hi is None else _code(hi, scale, zero_point, qmin, qmax)
    if lo is not None and hi is not None and lo > hi:
        return high, high
    return low, high


def _code(x: float, scale: float, zero_point: int, qmin: int, qmax: int) -> int:
    value = torch.tensor(x, dtype=torch.float32)
    return int(quantize(TORCH, value, inverse(scale), zero_point, qmin, qmax, "int32"))
