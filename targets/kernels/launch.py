"""What a kernel is asked (Site) and what it answers (Launch, Miss, or None: not mine)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from qcompiler.graph import Node
from qcompiler.ops import Const, Packing, Region
from qcompiler.types import Dim as GraphDim
from qcompiler.types import TensorType

from .build import Operand
from .dot import Dot
from .geometry import Conv, Dim, Linear

if TYPE_CHECKING:
    import torch

    from .algebra import Primitives
    from .dot import Dot


@dataclass(frozen=True, eq=False)
class Site:
    """A node to be lowered: its steps written out as nodes over its operands."""

    node: Node
    body: tuple[Node, ...]

    @staticmethod
    def of(node: Node) -> Site:
        if isinstance(node.op, Region):
            return Site(node, tuple(node.op.body(node.inputs)))
        return Site(node, (node,))

    @cached_property
    def key(self) -> Hashable:
        """Two sites with equal keys do the same steps on operands of the same types.

        Texts, for 0.0 and -0.0 are equal; numbers among the operands belong to the code.
        """
        index = {node: k for k, node in enumerate((*self.node.inputs, *self.body))}
        steps = tuple((repr(b.op), tuple(index[i] for i in b.inputs)) for b in self.body)
        return steps, tuple(f"{i.type!r} {_number(i)}" for i in self.node.inputs)


def _number(node: Node) -> str:
    """The value of a 0-d constant."""
    known = isinstance(node.op, Const) and node.tensor.rank == 0
    return repr(node.op.value.item()) if known else ""  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Launch:
    """A function and what it is called with; its results follow its operands.

    key: equal keys, equal functions, so that one of them need not be built.
    operands: nodes of the graph, or tensors that the kernel computed.
    fault: the message of a check that the kernel cannot raise itself: then its first result is an
    int32 [1], not 0 where the check failed.
    dot: the instruction of a product.
    """

    key: Hashable
    build: Callable[[], Any]
    operands: Sequence[Node | torch.Tensor]
    fault: str | None = None
    dot: Dot | None = None


@dataclass(frozen=True)
class Miss:
    """The kernel is meant for such a node but cannot take this one."""

    reason: str


@dataclass(frozen=True)
class Templates:
    """How a kind of machine computes products.

    takes: whether a dot may compute a product with constant weights of that geometry. packing: how
    its kernel reads the weights. weighted: builds the kernel (see matmul.conv2d). matmul: the one
    for two activations (see batched.batch_matmul); codes: the type both of its operands get where
    they are codes. coded: whether those for float and int16 decode weights as they read them.
    """

    takes: Callable[[Conv | Linear, Dot], bool]
    packing: Callable[[Conv | Linear, Dot, str], Packing]
    weighted: Callable[..., Any]
    matmul: Callable[..., Any]
    codes: str
    coded: bool = False


class Machine(Protocol):
    """What a kernel is written for: the instructions, the fastest first, the templates that use
    them, scalar primitives, and what was measured."""

    @property
    def isa(self) -> tuple[Dot, ...]: ...

    @property
    def templates(self) -> Templates: ...

    @property
    def primitives(self) -> Primitives: ...

    def tile(self, product: str) -> tuple[int, int] | None:
        """The rows and vectors of the fastest tile measured for a product (see Product.name)."""

    def least(self, product: str) -> float | None:
        """Microseconds of that tile; None: it was not measured."""


Answer = Launch | Miss | None
Kernel = Callable[[Site, Machine], Answer]


def dims(shape: tuple[GraphDim, ...]) -> tuple[Dim, ...]:
    """A shape as the templates want it: a symbolic dimension is a name."""
    return tuple(d if isinstance(d, int) else repr(d) for d in shape)


def operand(name: str, type_: TensorType) -> Operand:
    return Operand(name, dims(type_.shape), type_.dtype.value)
