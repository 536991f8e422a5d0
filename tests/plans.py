"""Small PLANNED graphs: nodes with statistics and schemes, and what choose-ranges makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qcompiler import arith
from qcompiler.context import Context
from qcompiler.graph import Graph, Level, Node, Note
from qcompiler.ops import Conv2d, Input, Linear, Packing, const
from qcompiler.passes.choose_ranges import choose_ranges
from qcompiler.recipe import RangeMethod, recipe_of
from qcompiler.rewrite import named
from qcompiler.stats import Stats
from qcompiler.target import Sums
from qcompiler.types import DType, QParams, Scheme, TensorType

U8 = Scheme(DType.UINT8, 0, 255)
ROWS = Scheme(DType.INT8, -127, 127, symmetric=True, dynamic=True)
WEIGHT = Scheme(DType.INT8, -127, 127, symmetric=True, axis=0)
MINMAX = replace(recipe_of("int8"), range=RangeMethod.MINMAX)


@dataclass(frozen=True)
class Toy:
    """A machine that adds two products of u8 x s8 in 16 bits, four of them in a lane."""

    rule: arith.SumRule | None = arith.SumRule(2)  # noqa: RUF009  (frozen)
    name: str = "toy"

    def refuses(self, node: Node) -> str | None:
        return None

    def refuses_integer(self, node: Node) -> str | None:
        return None

    def sums(self, low: int, high: int) -> tuple[Sums, ...]:
        return (Sums(self.rule, low, high),) if low >= 0 else ()

    def microseconds(self, node: Node, choices: Sequence[Sums | None], codes: DType) -> None:
        return None

    def least(self, what: str) -> None:
        return None

    def quantizing(self, node: Node) -> float:
        return 0.0

    def dequantizing(self, node: Node) -> float:
        return 0.0

    def packing(self, node: Node) -> Packing | None:
        return Packing(1, 4)


CTX = Context(target=Toy(), recipe=MINMAX)


def spread(low: float, high: float) -> Stats:
    return Stats.of(torch.linspace(low, high, 101))


def source(name: str, low: float, high: float, *shape: int, scheme: Scheme | None = U8) -> Node:
    node = Input(TensorType(shape or (1, 4), DType.FLOAT32))(name=name)
    return replace(node, note=Note(stats=spread(low, high), scheme=scheme))


def held(node: Node, low: float, high: float, scheme: Scheme | None = U8) -> Node:
    return node.with_note(stats=spread(low, high), scheme=scheme)


def graph_of(*outputs: Node) -> Graph:
    """The graph that computes the outputs, at the level ranges are chosen."""
    whole = Graph((), outputs)
    inputs = tuple(n for n in whole.nodes() if isinstance(n.op, Input))
    return named(replace(whole, inputs=inputs, level=Level.PLANNED))


def chosen(*outputs: Node, ctx: Context = CTX) -> dict[str, Node]:
    return {n.name: n for n in choose_ranges.run(graph_of(*outputs), ctx).nodes()}


def params(node: Node) -> QParams:
    assert node.note.scheme is not None and node.note.scheme.params is not None
    return node.note.scheme.params


def span(q: QParams) -> tuple[float, float]:
    return q.scale[0] * (q.qmin - q.zero_point), q.scale[0] * (q.qmax - q.zero_point)


def weighted(name: str, value: torch.Tensor) -> Node:
    return const(value, name=name).with_note(scheme=WEIGHT)


def layer(
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    x: tuple[float, float] = (0.0, 6.0),
    scheme: Scheme = U8,
    groups: int = 1,
) -> Node:
    biases = [const(bias, name="b")] if bias is not None else []
    if w.ndim == 2:
        data = source("x", *x, 1, w.shape[1], scheme=scheme)
        made = Linear()(data, weighted("w", w), *biases, name="y")
    else:
        data = source("x", *x, 1, w.shape[1] * groups, 8, 8, scheme=scheme)
        made = Conv2d(groups=groups)(data, weighted("w", w), *biases, name="y")
    return made.with_note(precision=DType.INT8)


def random_weights(seed: int, *shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=g) * torch.exp(
        torch.randn(shape[0], *[1] * (len(shape) - 1), generator=g) * 2
    )
    return w
