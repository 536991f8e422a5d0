"""What a graph begins with and bundles: inputs, constants, tuples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Node
from qcompiler.op import Op
from qcompiler.types import DType, QParams, TensorType, TupleType, Type

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Input(Op):
    """A value given by the caller; its type is its declaration."""

    type: TensorType

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.type

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise TypeError("an input has no value of its own; the interpreter binds it")


ALIGNMENT = 64
"""Bytes; where torch itself puts what it allocates."""


def settled(value: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy, in row-major order from an aligned address.

    Matrix libraries give other last bits for the same numbers at another address.
    """
    if value.requires_grad:
        return value  # trained where it lies
    found = value.detach().contiguous()
    return found if found.data_ptr() % ALIGNMENT == 0 else found.clone()


@dataclass(frozen=True, eq=False)
class Const(Op):
    """A value known at compile time. `quant` is set when it holds codes."""

    value: torch.Tensor
    quant_params: QParams | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", settled(self.value))

    @cached_property
    def digest(self) -> str:
        """Hash of dtype, shape and bytes: two constants with equal digests are one."""
        import torch

        value = self.value.detach()
        head = f"{value.dtype}{tuple(value.shape)}".encode()
        data = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return hashlib.sha256(head + data).hexdigest()[:16]

    @cached_property
    def bounds_of_value(self) -> tuple[int, int]:
        """The least and the largest integer it holds; (0, 0) where it is empty."""
        if not self.value.numel():
            return 0, 0
        low, high = self.value.aminmax()
        return int(low), int(high)

    @cached_property
    def finite_range(self) -> tuple[float, float] | None:
        """The least and the largest finite float it holds; None where there is none."""
        import torch

        value = self.value.detach()
        low, high = map(float, value.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            value = value[torch.isfinite(value)]
            low, high = map(float, value.aminmax()) if value.numel() else (math.inf, math.inf)
        return (low, high) if low < math.inf else None

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Const) and self.quant_params == other.quant_params
        return same and self.digest == other.digest  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self.digest, self.quant_params))

    def __repr__(self) -> str:
        return f"const(#{self.digest})"

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(tuple(self.value.shape), DType.of(self.value.dtype), self.quant_params)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.value


def const(value: Any, dtype: DType | None = None, name: str = "") -> Node:
    """A Const node from a tensor, number or list (float32 and int32 unless given)."""
    import torch

    if not isinstance(value, torch.Tensor):
        value = torch.tensor(value)
        if dtype is None:
            dtype = DType.FLOAT32 if value.dtype.is_floating_point else DType.INT32
    if dtype is not None:
        value = value.to(dtype.torch)
    return Const(value.detach())(name=name)


@dataclass(frozen=True)
class Tuple(Op):
    """Several values as one, for ops with several results."""

    def infer(self, *inputs: TensorType) -> TupleType:
        return TupleType(tuple(inputs))

    def eval(self, *inputs: torch.Tensor) -> Any:
        return tuple(inputs)


@dataclass(frozen=True)
class Get(Op):
    """One result of an op that has several."""

    index: int

    def type_of(self, inputs: Sequence[Node]) -> Type:
        (source,) = inputs
        self.expects(isinstance(source.type, TupleType), "an op with several results", source.type)
        assert isinstance(source.type, TupleType)
        self.expects(0 <= self.index < len(source.type.items), "an index in range", self.index)
        return source.type.items[self.index]

    def eval(self, *inputs: Any) -> torch.Tensor:
        value: torch.Tensor = inputs[0][self.index]
        return value
