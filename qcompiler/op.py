"""The base of all operations: one op = one frozen dataclass that answers every question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qcompiler import arith
from qcompiler.graph import EMPTY, Node, Note
from qcompiler.types import Dim, DType, QParams, TensorType, Type

if TYPE_CHECKING:
    import torch


class QuantRule:
    """What an op means for quantization. The four cases below are all there are."""


@dataclass(frozen=True)
class Compute(QuantRule):
    """Inputs and output each have parameters of their own."""


@dataclass(frozen=True)
class Same(QuantRule):
    """The output holds the input's codes, moved or selected: it shares its parameters."""


@dataclass(frozen=True)
class Fixed(QuantRule):
    """The output range is known without data."""

    lo: float
    hi: float


@dataclass(frozen=True)
class Float(QuantRule):
    """Never integer, for the reason given."""

    reason: str


class OpError(ValueError):
    """An op was given operands it does not accept."""


class Op:
    """An operation kind. Subclasses are frozen dataclasses whose fields are the attributes."""

    quant: ClassVar[QuantRule] = Float("no integer form exists")

    @property
    def kind(self) -> str:
        return kind_of(type(self))

    def infer(self, *inputs: TensorType) -> Type:
        """The result type. Raises OpError on operands the op does not accept."""
        raise TypeError(f"{self.kind} defines no infer")

    def eval(self, *inputs: torch.Tensor) -> Any:
        """The result; exact where integer, differentiable where float."""
        raise TypeError(f"{self.kind} defines no eval")

    def type_of(self, inputs: Sequence[Node]) -> Type:
        """The result type given the operand nodes, for ops whose type shows a Const's value."""
        return self.infer(*(i.tensor for i in inputs))

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float] | None:
        """An interval that holds every result for operands in `ranges`; None if unknown."""
        return (self.quant.lo, self.quant.hi) if isinstance(self.quant, Fixed) else None

    def __call__(self, *inputs: Node, name: str = "", note: Note = EMPTY) -> Node:
        return Node(self, inputs, self.type_of(inputs), name, note)

    def expects(self, holds: bool, expected: str, *got: object) -> None:
        if not holds:
            shown = ", ".join(map(repr, got))
            raise OpError(f"{self.kind}: expected {expected}, got {shown}")


def kind_of(cls: type[Op]) -> str:
    """`MaxPool2d` is written `max_pool2d` in a dump."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def broadcast(op: Op, *shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The common shape under PyTorch's rules; symbolic dimensions match only themselves and 1."""
    rank = max(map(len, shapes), default=0)
    result: list[Dim] = []
    for k in range(rank):
        dims = [s[k - rank + len(s)] for s in shapes if k - rank + len(s) >= 0]
        wide = [d for d in dims if d != 1]
        op.expects(all(d == wide[0] for d in wide), "shapes that broadcast", *shapes)
        result.append(wide[0] if wide else 1)
    return tuple(result)


class Elementwise(Op):
    """An op whose formula holds element by element, under broadcasting.

    `law` is written once over an Algebra: the interpreter runs it on tensors, a target emits it
    as code, so the two cannot disagree.
    """

    quant: ClassVar[QuantRule] = Compute()
    arity: ClassVar[tuple[int, int]] = (2, 2)  # fewest and most operands

    def law(self, n: arith.Algebra[Any], *xs: Any) -> Any:
        raise TypeError(f"{self.kind} defines no law")

    def dtype(self, *inputs: TensorType) -> DType:
        self.expects(
            all(i.dtype == inputs[0].dtype for i in inputs), "operands of one dtype", *inputs
        )
        return inputs[0].dtype

    def params(self, *inputs: TensorType) -> QParams | None:
        """Quantization parameters of the result, when it is a tensor of codes."""
        return None

    def aligned(self, operand: int) -> bool:
        """Whether the operand broadcasts against the result (a lookup table does not)."""
        return True

    def infer(self, *inputs: TensorType) -> TensorType:
        low, high = self.arity
        counted = f"{low} operands" if low == high else f"{low} to {high} operands"
        self.expects(low <= len(inputs) <= high, counted, *inputs)
        shape = broadcast(self, *(i.shape for i in inputs))
        return TensorType(shape, self.dtype(*inputs), self.params(*inputs))

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.law(arith.TORCH, *inputs)
        return result


class Unary(Elementwise):
    """A float function of one tensor; on codes it becomes a 256-entry table."""

    arity: ClassVar[tuple[int, int]] = (1, 1)


class RowOp(Op):
    """A float op over rows of the last axis, written once over a row algebra."""

    def law(self, n: Any, *xs: Any) -> Any:
        raise TypeError(f"{self.kind} defines no law")

    def infer(self, *inputs: TensorType) -> Type:
        x = inputs[0]
        self.expects(x.dtype.is_float and x.rank > 0, "a float tensor of rank 1 or more", x)
        return TensorType(x.shape, x.dtype)

    def eval(self, *inputs: torch.Tensor) -> Any:
        return self.law(arith.TORCH, *inputs)


class Movement(Op):
    """Values are moved, repeated or selected, never changed: codes stay codes."""

    quant: ClassVar[QuantRule] = Same()

    def bounds(self, *ranges: tuple[float, float]) -> tuple[float, float]:
        return min(low for low, _ in ranges), max(high for _, high in ranges)
