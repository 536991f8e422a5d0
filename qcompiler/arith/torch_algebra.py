"""The algebra of the reference interpreter: plain torch operations, differentiable where float."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from .algebra import LANES, RowAlgebra

DTYPES: Final = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""The dtype names of the law and what torch calls them."""

EXPONENT_BIAS = 127
MANTISSA_BITS = 23


class TorchAlgebra:
    """`RowAlgebra[Tensor]`; each method is the torch operation that rounds as the protocol says."""

    def const(self, value: float, dtype: str = "float32", /) -> Tensor:
        return torch.tensor(value, dtype=DTYPES[dtype])

    def add(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a / b

    def trunc_div(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.div(a, b, rounding_mode="trunc")

    def sqrt(self, a: Tensor, /) -> Tensor:
        # Torch's roots are MKL's, off by one ulp at times: in float32 above some thousand elements,
        # in float64 always; numpy's are IEEE's.
        if a.dtype is not torch.float64 or a.requires_grad:
            return torch.sqrt(a.double()).to(a.dtype)
        with np.errstate(invalid="ignore"):
            return torch.as_tensor(np.sqrt(a.numpy()))

    def neg(self, a: Tensor, /) -> Tensor:
        return -a

    def abs(self, a: Tensor, /) -> Tensor:
        return torch.abs(a)

    def rint(self, a: Tensor, /) -> Tensor:
        return torch.round(a)

    def lt(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a < b

    def gt(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a > b

    def le(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a <= b

    def ge(self, a: Tensor, b: Tensor, /) -> Tensor:
        return a >= b

    def eq(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.eq(a, b)

    def where(self, condition: Tensor, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.where(condition, a, b)

    def logical_and(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.logical_and(a, b)

    def logical_or(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.logical_or(a, b)

    def logical_not(self, a: Tensor, /) -> Tensor:
        return torch.logical_not(a)

    def min(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.where(a < b, a, b)

    def max(self, a: Tensor, b: Tensor, /) -> Tensor:
        return torch.where(a > b, a, b)

    def cast(self, a: Tensor, dtype: str, /) -> Tensor:
        return a.to(DTYPES[dtype])

    def exp2i(self, i: Tensor, /) -> Tensor:
        return ((i + EXPONENT_BIAS) << MANTISSA_BITS).view(torch.float32)

    def float_bits(self, a: Tensor, /) -> Tensor:
        return a.detach().view(torch.int32)

    def bits_float(self, a: Tensor, /) -> Tensor:
        return a.view(torch.float32)

    def shift_right(self, a: Tensor, count: int, /) -> Tensor:
        return a >> count

    def lookup(self, table: Tensor, index: Tensor, /) -> Tensor:
        return table[index.long()]

    def row_size(self, x: Tensor, /) -> Tensor:
        return torch.tensor(x.shape[-1], dtype=torch.float32)

    def row_max(self, x: Tensor, /) -> Tensor:
        largest = torch.where(torch.isnan(x), -torch.inf, x).amax(-1, keepdim=True)
        return torch.where(largest == 0, 0.0, largest)

    def row_top(self, x: Tensor, /) -> Tensor:
        largest = x.amax(-1, keepdim=True)
        return torch.where(largest == 0, 0.0, largest) if x.is_floating_point() else largest

    def row_sum(self, x: Tensor, /) -> Tensor:
        size = x.shape[-1]
        steps = -(-size // LANES)
        padded = torch.nn.functional.pad(x, (0, steps * LANES - size))
        lanes = torch.zeros((*x.shape[:-1], LANES), dtype=x.dtype, device=x.device)
        for step in padded.reshape(*x.shape[:-1], steps, LANES).unbind(-2):
            lanes = lanes + step
        width = LANES
        while width > 1:
            width //= 2
            lanes = lanes[..., :width] + lanes[..., width:]
        return lanes

    def keep(self, x: Tensor, /) -> Tensor:
        return x


TORCH: Final[RowAlgebra[Tensor]] = TorchAlgebra()
"""The reference: what the interpreter computes and every target must reproduce."""
