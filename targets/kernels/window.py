"""Pools and resize: images read window by window, with the elementwise steps that follow.

Channels last: channels are the lanes. Channels first is right but slow, one element at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.ops import AvgPool2d, IntSumPool2d, MaxPool2d, Resize, Window
from qcompiler.types import Dim as GraphDim
from qcompiler.types import DType

from .algebra import TIR, Primitives, Value, dtype_bits, number
from .build import Buffer, Expr, Operand, function, local, vector
from .formula import evaluate, supported, uses
from .launch import Answer, Launch, Machine, Miss, Site, dims, operand
from .loops import UNROLL, Axis, broadcast_steps, contiguous, nest, offset, points, read, write

if TYPE_CHECKING:
    import torch

POOLS = (MaxPool2d, AvgPool2d, IntSumPool2d)


@dataclass(frozen=True)
class Image:
    """Where element (n, c, y, x) of an input lies."""

    buffer: Buffer
    steps: tuple[int, int, int, int]
    height: int
    width: int

    def load(self, image: Expr, channel: Expr, y: Expr, x: Expr, lanes: int) -> Value:
        n, c, h, w = self.steps
        return read(self.buffer, image * n + channel * c + y * h + x * w, c, lanes)


# at(n, algebra, image, place (n, c, y, x), lanes, tables) -> the anchor's value there
At = Callable[..., Value]


def lower(site: Site, machine: Machine) -> Answer:
    """pool elementwise*, resize elementwise*."""
    anchors = [b for b in site.body if isinstance(b.op, (*POOLS, Resize))]
    rest = [b for b in site.body if b not in anchors]
    if len(anchors) != 1 or not all(isinstance(b.op, Elementwise) for b in rest):
        return None
    (anchor,) = anchors
    problem = supported([*site.body, *site.node.inputs])
    if problem:
        return Miss(problem)
    if any(isinstance(d, str) for d in dims(anchor.inputs[0].tensor.shape)[1:]):
        return Miss("only the batch dimension of images may be symbolic")
    if anchor.inputs[0] in rest:
        return Miss("steps before a window are computed in a kernel of their own")
    rule, tables = _rule(anchor)
    region = _Region(site, anchor, machine.primitives, rule, tables)
    key = ("window", site.key, machine.primitives)
    return Launch(key, region.function, (*region.leaves, *tables))


def _rule(anchor: Node) -> tuple[At, tuple[torch.Tensor, ...]]:
    """How the anchor's value is computed, and the tables that takes."""
    height, width = _size(anchor)
    match anchor.op:
        case MaxPool2d(window=window):
            return _max_pool(window.fitted(height, width), anchor.tensor.dtype), ()
        case IntSumPool2d(window=window, zero_point=zero_point):
            return _sum_pool(window.fitted(height, width), zero_point), ()
        case AvgPool2d(window=window):
            counts = anchor.op.counts(height, width)
            uniform = bool((counts == counts[0, 0]).all())
            count = np.float32(counts[0, 0].item()) if uniform else None
            rule = _average(window.fitted(height, width), count)
            return rule, () if uniform else (counts,)
        case Resize():
            return _resize(anchor.op, height, width)
    raise TypeError(f"{anchor.op.kind} reads no windows")


def _last(anchor: Node) -> bool:
    last: bool = anchor.op.channels_last  # type: ignore[attr-defined]
    return last


def _size(anchor: Node) -> tuple[int, int]:
    shape = anchor.inputs[0].tensor.shape
    height, width = shape[1:3] if _last(anchor) else shape[2:4]
    assert isinstance(height, int) and isinstance(width, int)
    return height, width


def _taps(window: Window, image: Image, place: Sequence[Expr], lanes: int,
          inside: Callable[[Value], None], outside: Callable[[], None] | None) -> None:  # fmt: skip
    """inside(the element) for every kernel position within the image, else outside()."""
    n, c, y, x = place
    (top, bottom), (left, right) = window.padding
    with T.serial(0, window.kernel[0]) as i, T.serial(0, window.kernel[1]) as j:
        row = y * window.stride[0] + i * window.dilation[0] - top
        column = x * window.stride[1] + j * window.dilation[1] - left
        within = []
        if top or bottom:
            within += [row >= 0, row < image.height]
        if left or right:
            within += [column >= 0, column < image.width]
        if not within:
            inside(image.load(n, c, row, column, lanes))
            return
        with T.If(tirx.all(*within)):
            with T.Then():
                inside(image.load(n, c, row, column, lanes))
            if outside is not None:
                with T.Else():
                    outside()


@dataclass(frozen=True)
class _Accumulator:
    room: Buffer
    lanes: int

    @staticmethod
    def of(start: np.generic, lanes: int) -> _Accumulator:
        made = _Accumulator(local(lanes, start.dtype.name), lanes)
        made.set(start)
        return made

    def get(self) -> Value:
        return vector(self.room, 0, self.lanes)

    def set(self, value: Value) -> None:
        write(self.room, 0, 1, value, self.lanes)


def _max_pool(window: Window, dtype: DType) -> At:
    """The largest; NaN wins, as in torch.maximum."""
    least = number(-math.inf if dtype.is_float else dtype.limits[0], dtype.value)

    def at(n: TIR, image: Image, place: Sequence[Expr], lanes: int, tables: Any) -> Value:
        best = _Accumulator.of(least, lanes)

        def larger(x: Value) -> None:
            known = best.get()
            rest = n.where(n.eq(x, x), known, x) if dtype.is_float else known
            best.set(n.where(n.gt(x, known), x, rest))

        _taps(window, image, place, lanes, larger, None)
        return best.get()

    return at


def _sum_pool(window: Window, zero_point: int) -> At:
    def at(n: TIR, image: Image, place: Sequence[Expr], lanes: int, tables: Any) -> Value:
        total = _Accumulator.of(np.int32(0), lanes)

        def added(x: Value) -> None:
            centred = n.sub(n.cast(x, "int32"), number(zero_point, "int32"))
            total.set(n.add(total.get(), centred))

        _taps(window, image, place, lanes, added, None)
        return total.get()

    return at


def _average(window: Window, count: np.generic | None) -> At:
    """Taps in row-major order, padding as +0.0, then one division."""

    def at(n: TIR, image: Image, place: Sequence[Expr], lanes: int, tables: Any) -> Value:
        # -0.0 is what changes no first tap, not even -0.0.
        total = _Accumulator.of(np.float32(-0.0), lanes)

        def added(x: Value) -> None:
            total.set(n.add(total.get(), x))

        _taps(window, image, place, lanes, added, lambda: added(np.float32(0.0)))
        if count is not None:
            return n.div(total.get(), count)
        (table,) = tables
        return n.div(total.get(), table[place[2], place[3]])

    return at


def _resize(op: Resize, height: int, width: int) -> tuple[At, tuple[torch.Tensor, ...]]:
    import torch

    rows, columns = op.sources(0, height), op.sources(1, width)
    low = [torch.tensor(s[0], dtype=torch.int32) for s in (rows, columns)]
    if not op.bilinear:
        return _nearest, tuple(low)
    high = [torch.tensor(s[1], dtype=torch.int32) for s in (rows, columns)]
    weight = [torch.tensor(s[2], dtype=torch.float32) for s in (rows, columns)]
    return _bilinear, (*low, *high, *weight)


def _nearest(n: TIR, image: Image, place: Sequence[Expr], lanes: int, tables: Any) -> Value:
    batch, channel, y, x = place
    rows, columns = tables
    return image.load(batch, channel, rows[y], columns[x], lanes)


def _bilinear(n: TIR, image: Image, place: Sequence[Expr], lanes: int, tables: Any) -> Value:
    """a + (b - a) * t along the width, then along the height."""
    batch, channel, y, x = place
    top, left, bottom, right, down, across = tables

    def between(a: Value, b: Value, t: Value) -> Value:
        return n.add(a, n.mul(n.sub(b, a), t))

    def row(at: Expr) -> Value:
        a = image.load(batch, channel, at, left[x], lanes)
        return between(a, image.load(batch, channel, at, right[x], lanes), across[x])

    return between(row(top[y]), row(bottom[y]), down[y])


@dataclass(frozen=True, eq=False)
class _Region:
    """A windowed anchor and the steps of its output's shape."""

    site: Site
    anchor: Node
    primitives: Primitives
    rule: At
    tables: tuple[torch.Tensor, ...]

    @property
    def steps(self) -> list[Node]:
        return [b for b in self.site.body if b is not self.anchor]

    @property
    def views(self) -> list[tuple[Node, tuple[GraphDim, ...]]]:
        return [(n, s) for n, s in uses(self.steps) if s is not None and n is not self.anchor]

    @property
    def leaves(self) -> list[Node]:
        read_by_steps = [n for n, _ in uses(self.steps) if n is not self.anchor]
        return list(dict.fromkeys([self.anchor.inputs[0], *read_by_steps]))

    @property
    def lanes(self) -> int:
        if not _last(self.anchor):
            return 1
        nodes = [*self.site.body, *self.leaves]
        return UNROLL * self.primitives.lanes(max(dtype_bits(n.tensor.dtype.value) for n in nodes))

    def function(self) -> Any:
        operands = [operand(f"x{k}", leaf.tensor) for k, leaf in enumerate(self.leaves)]
        tables = [_table(k, t) for k, t in enumerate(self.tables)]
        result = operand("out", self.site.body[-1].tensor)
        steps = [broadcast_steps(dims(s), result.shape) for _, s in self.views]
        steps.append(contiguous(result.shape))
        axes = [Axis(d, tuple(s[k] for s in steps)) for k, d in enumerate(result.shape)]
        loops = nest(axes, self.lanes, self._work(), self.primitives.grid)
        made: list[Any] = []
        with function(self.anchor.op.kind, made, self.primitives.grid) as params:
            flat = params.flat(*operands, *tables, result)
            of = dict(zip(self.leaves, flat, strict=False))
            shaped = [
                _Table(b, t.shape)
                for b, t in zip(flat[len(operands) : -1], self.tables, strict=True)
            ]
            with points(loops, params.symbols.dim) as (index, at):

                def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Value:
                    k = self.views.index((leaf, shape))
                    start = offset(axes, k, index, at)
                    return read(of[leaf], start, loops.inner.steps[k], loops.lanes)

                n = TIR(self.primitives)
                value = self.rule(n, self._image(of), self._place(index, at), loops.lanes, shaped)
                values = evaluate(self.steps, n, load, of.__getitem__, {self.anchor: value})
                start = offset(axes, len(steps) - 1, index, at)
                write(flat[-1], start, 1, values[self.site.body[-1]], loops.lanes)
        return made[0]

    def _work(self) -> int:
        """Steps an element takes."""
        op = self.anchor.op
        window = None if isinstance(op, Resize) else op.window  # type: ignore[attr-defined]
        return len(self.site.body) + (math.prod(window.kernel) if window else len(self.tables))

    def _image(self, of: dict[Node, Buffer]) -> Image:
        x = self.anchor.inputs[0]
        s = contiguous(dims(x.tensor.shape))
        order = (s[0], s[3], s[1], s[2]) if _last(self.anchor) else (s[0], s[1], s[2], s[3])
        return Image(of[x], order, *_size(self.anchor))

    def _place(self, index: Sequence[Expr], at: Expr) -> tuple[Expr, ...]:
        """(image, channel, y, x) of the output."""
        if _last(self.anchor):
            return index[0], at, index[1], index[2]
        return index[0], index[1], index[2], at


@dataclass(frozen=True)
class _Table:
    """A constant table indexed as it is shaped."""

    flat: Buffer
    shape: Sequence[int]

    def __getitem__(self, index: Any) -> Expr:
        if len(self.shape) == 1:
            return self.flat[index]
        y, x = index
        return self.flat[y * self.shape[1] + x]


def _table(k: int, t: torch.Tensor) -> Operand:
    return Operand(f"table{k}", tuple(t.shape), DType.of(t.dtype).value)


