"""Regions around a product: which template, which instruction, and the steps as its epilogue."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Node
from qcompiler.op import Elementwise
from qcompiler.ops import (
    Const,
    Conv2d,
    IntConv2d,
    IntLinear,
    IntMatmul,
    Linear,
    Matmul,
    Packing,
    Requantize,
    Unpack,
)  # fmt: skip
from qcompiler.types import Dim as GraphDim

from . import geometry
from .algebra import TIR, Primitives, Value, bind
from .batched import batch_matmul
from .build import Expr, Operand, Point, View
from .coded import CODED, coded_packing, lower_coded
from .dot import Dot
from .formula import evaluate, supported, uses
from .gemv import gemv
from .launch import Answer, Launch, Machine, Miss, Site, Templates, dims, operand
from .matmul import conv2d, linear
from .plan import fitted, one_row
from .requantize import saturates, within
from .weights import Weight, chosen, code_range, moved, packing_for

if TYPE_CHECKING:
    import torch

WEIGHTED = (Conv2d, IntConv2d, Linear, IntLinear)
PRODUCTS = (*WEIGHTED, *CODED, Matmul, IntMatmul)


@dataclass(frozen=True, eq=False)
class Epilogue:
    """The elementwise steps of a region, on accumulators of its anchor."""

    site: Site
    anchor: Node
    primitives: Primitives

    @property
    def steps(self) -> list[Node]:
        return [
            b for b in self.site.body if b is not self.anchor and not isinstance(b.op, Unpack)
        ]

    @property
    def leaves(self) -> list[Node]:
        return list(dict.fromkeys(n for n, _ in uses(self.steps) if n is not self.anchor))

    @property
    def operands(self) -> list[Operand]:
        return [operand(f"e{k}", leaf.tensor) for k, leaf in enumerate(self.leaves)]

    @property
    def saturating(self) -> frozenset[int]:
        """Which steps are requantizations that saturating packs do exactly."""
        if self.primitives.requantize is None:
            return frozenset()
        return frozenset(k for k, s in enumerate(self.steps) if _saturates(s))

    @property
    def key(self) -> Hashable:
        return self.site.key, self.saturating, self.primitives

    def __call__(self, acc: Expr, at: Point, lanes: int, views: Sequence[View]) -> Expr:
        leaves, steps, n = self.leaves, self.steps, TIR(self.primitives)
        fast = {steps[k] for k in self.saturating}

        def load(leaf: Node, shape: tuple[GraphDim, ...]) -> Value:
            view = views[leaves.index(leaf)]
            seen = replace(view, operand=replace(view.operand, shape=dims(shape)))
            return bind(seen.load(at, 1 if not shape or shape[-1] == 1 else lanes))

        def table(leaf: Node) -> Any:
            return views[leaves.index(leaf)].flat

        def special(node: Node, args: Sequence[Value]) -> Value | None:
            if node not in fast:
                return None
            assert self.primitives.requantize is not None and isinstance(node.op, Requantize)
            acc, m = (n.vector(a, lanes) for a in args)
            out, dtype = node.op.out, node.op.to.value
            codes = self.primitives.requantize(acc, m, out.zero_point, lanes, dtype)
            return bind(within(codes, out.qmin, out.qmax, lanes, dtype))

        known = {self.anchor: bind(acc)}
        values = evaluate(steps, n, load, table, known, special)
        return n.vector(values[self.site.body[-1]], lanes)


def _saturates(step: Node) -> bool:
    if not isinstance(step.op, Requantize) or len(step.inputs) != 2:
        return False
    m = step.inputs[1].op
    if not isinstance(m, Const) or not bool((m.value >= 0).all()):
        return False
    return saturates(float(m.value.max()), step.op.to.value)


def lower(site: Site, machine: Machine) -> Answer:
    """[unpack] product elementwise*."""
    anchors = [b for b in site.body if isinstance(b.op, PRODUCTS)]
    if len(anchors) != 1:
        return None
    (anchor,) = anchors
    epilogue = Epilogue(site, anchor, machine.primitives)
    if not all(isinstance(b.op, Elementwise) for b in epilogue.steps):
        return None
    if set(anchor.inputs) & set(epilogue.steps):
        return Miss("steps before a product are computed in a kernel of their own")
    if any(b.tensor.shape != anchor.tensor.shape for b in epilogue.steps):
        return Miss(f"steps after a product must have its shape {anchor.type!r}")
    problem = supported([b for b in site.body if not isinstance(b.op, Unpack)])
    if problem:
        return Miss(problem)
    weight = Weight.of(anchor.inputs[1])
    if isinstance(anchor.op, Matmul | IntMatmul):
        return _matmul(anchor, epilogue, machine)
    if isinstance(anchor.op, CODED):
        return lower_coded(anchor, epilogue, machine)
    if weight is None:
        return Miss("the weight must be a constant")
    return _weighted(anchor, weight, epilogue, machine)


def packing(node: Node, machine: Machine) -> Packing | None:
    """How the kernel for a node with a constant weight reads it."""
    for anchor in Site.of(node).body:
        if isinstance(anchor.op, CODED):
            return coded_packing(anchor, machine)
    product = product_of(node, machine)
    return product.packing if product is not None else None


def product_of(node: Node, machine: Machine) -> Product | None:
    """The product with constant weights that a node computes; None where it computes none."""
    for anchor in Site.of(node).body:
        if isinstance(anchor.op, WEIGHTED):
            weight = Weight.of(anchor.inputs[1])
            made = None if weight is None else Product.of(anchor, weight, machine)
            return made if isinstance(made, Product) else None
    return None


@dataclass(frozen=True)
class Product:
    """A product with constant weights: its sizes, instruction, and what is added to its codes."""

    g: geometry.Conv | geometry.Linear
    dot: Dot
    in_dtype: str
    shift: int
    zero_point: int
    templates: Templates

    @staticmethod
    def of(anchor: Node, weight: Weight, machine: Machine) -> Product | Miss:
        if isinstance(anchor.op, Conv2d) and not anchor.op.channels_last:
            return Miss("convolution kernels read channels last: run the layout pass")
        g, templates = geometry_of(anchor), machine.templates
        if isinstance(g, Miss):
            return g
        isa = [dot for dot in machine.isa if templates.takes(g, dot)]
        x = anchor.inputs[0]
        dtype = x.tensor.dtype.value
        if not isinstance(anchor.op, IntConv2d | IntLinear):
            dot = next((d for d in isa if d.a_dtype == d.b_dtype == dtype), None)
            if dot is None:
                return Miss(f"no instruction for {dtype}")
            return Product(g, fitted(g, dot), dtype, 0, 0, templates).measured(machine)
        codes = code_range(x)
        if isinstance(g, geometry.Conv) and g.padded:  # with a code that x itself may not hold
            zero_point = anchor.op.zero_point
            codes = (min(codes[0], zero_point), max(codes[1], zero_point))
        found = chosen(isa, weight.value, codes, g)
        if found is None:
            return Miss(f"no instruction multiplies {dtype} by {weight.value.dtype} exactly")
        dot, shift = found
        made = Product(g, fitted(g, dot), dtype, shift, anchor.op.zero_point, templates)
        return made.measured(machine)

    @property
    def name(self) -> str:
        """What its time depends on beside the machine and its epilogue."""
        return f"{self.g} by {self.dot.name} of {self.in_dtype}"

    def measured(self, machine: Machine) -> Product:
        """The same with the tile that was measured to be the fastest, where one was."""
        tile = machine.tile(self.name)
        return replace(self, dot=replace(self.dot, tile=tile)) if tile else self

    @property
    def packing(self) -> Packing:
        return self.templates.packing(self.g, self.dot, self.in_dtype)

    def start(self, anchor: Node, weight: Weight) -> Node | torch.Tensor | None:
        """Where the accumulators start: `b - (zp + shift) * sum(w)`, or b itself."""
        import torch

        bias = anchor.inputs[2] if len(anchor.inputs) > 2 else None
        moved = self.zero_point + self.shift
        if moved == 0:
            return bias
        total = -moved * weight.value.to(torch.int64).flatten(1).sum(1)
        if bias is not None:
            if not isinstance(bias.op, Const):
                raise _Unfit("the bias of codes with a zero point must be a constant")
            total = total + bias.op.value
        # Sums wrap: what comes out at the end fits int32.
        return total.to(torch.int32)

    def function(self, out_dtype: str, epilogue: Epilogue, init: bool) -> Any:
        return self.templates.weighted(
            self.g, self.dot, in_dtype=self.in_dtype, out_dtype=out_dtype, epilogue=epilogue,
            operands=epilogue.operands, init=init, pad=self.zero_point, shift=self.shift,
        )  # fmt: skip


def _cpu_weighted(g: geometry.Conv | geometry.Linear, dot: Dot, *, pad: int, **options: Any) -> Any:
    if isinstance(g, geometry.Linear):
        return (gemv if one_row(g, dot) else linear)(g, dot, **options)
    return conv2d(g, dot, pad=pad, **options)


def _cpu_takes(g: geometry.Conv | geometry.Linear, dot: Dot) -> bool:
    """Depthwise: a dot of neighbouring taps, of which a kernel has few."""
    return not (isinstance(g, geometry.Conv) and g.depthwise and dot.depth > dot.taps)


CPU = Templates(_cpu_takes, packing_for, _cpu_weighted, batch_matmul, "int16", coded=True)


class _Unfit(Exception):
    """Why a product cannot be lowered."""


def _weighted(anchor: Node, weight: Weight, epilogue: Epilogue, machine: Machine) -> Answer:
    product = Product.of(anchor, weight, machine)
    if isinstance(product, Miss):
        return product
    try:
        start = product.start(anchor, weight)
    except _Unfit as e:
        return Miss(str(e))
    out = epilogue.site.body[-1].tensor.dtype.value
    starts = [] if start is None else [start]
    operands = [anchor.inputs[0], weight.laid(product.packing), *starts, *epilogue.leaves]
    dot = product.dot
    key = ("product", product.g, dot.name, dot.tile, product.in_dtype, product.shift, epilogue.key)

    def build() -> Any:
        return product.function(out, epilogue, bool(starts))

    return Launch(key, build, operands, dot=product.dot)


def geometry_of(anchor: Node) -> geometry.Conv | geometry.Linear | Miss:
    """The sizes of a product with weights, as kernels compute it: channels last."""
    x, w = (dims(i.tensor.shape) for i in anchor.inputs[:2])
    op = anchor.op
    if not isinstance(op, Conv2d):
        n, k = w
        assert isinstance(n, int) and isinstance(k, int)
        return geometry.Linear(x[:-1], k, n)
    batch, height, width, channels = x if op.channels_last else (x[0], *x[2:], x[1])
    (top, bottom), (left, right) = op.padding
    sizes = (height, width, channels, *w)
    if any(isinstance(d, str) for d in sizes):
        return Miss("only the batch dimension of a convolution may be symbolic")
    h, wide, c, o, _, kh, kw = (int(d) for d in sizes)
    pads = (top, left, bottom, right)
    return geometry.Conv(
        batch, h, wide, c, o, (kh, kw), op.stride, op.dilation, pads, op.groups
    )


def _matmul(anchor: Node, epilogue: Epilogue, machine: Machine) -> Answer:
    """Both operands are activations."""
    template = machine.templates.matmul
    a, b = anchor.inputs
    left, right = dims(a.tensor.shape), dims(b.tensor.shape)
    if left[:-2] != right[:-2]:
        return Miss(f"batch dimensions must agree, got {a.type!r} and {b.type!r}")
    sizes = (*left[-2:], right[-1])
    if any(isinstance(d, str) for d in (*left[1:], *right[1:], *sizes)):
        return Miss("only the first batch dimension of a matmul may be symbolic")
    m, k, n = (int(d) for d in sizes)
    g = geometry.Matmul(left[:-2], m, k, n)
    dot = _pair_dot(anchor, geometry.Linear((m,), k, n), machine)
    if dot is None:
        return Miss(f"no instruction multiplies {a.tensor.dtype.value} by {b.tensor.dtype.value}")
    out = epilogue.site.body[-1].tensor.dtype.value
    zeros = (anchor.op.za, anchor.op.zb) if isinstance(anchor.op, IntMatmul) else (0, 0)

    def build() -> Any:
        return template(
            g, dot, a_dtype=a.tensor.dtype.value, b_dtype=b.tensor.dtype.value, out_dtype=out,
            za=zeros[0], zb=zeros[1], epilogue=epilogue, operands=epilogue.operands,
        )  # fmt: skip

    operands = [a, b, *epilogue.leaves]
    return Launch(("matmul", g, dot.name, epilogue.key), build, operands, dot=dot)


def _pair_dot(anchor: Node, g: geometry.Linear, machine: Machine) -> Dot | None:
    """The first instruction on two activations; codes must fit it, moved where it moves them."""
    templates, dtype = machine.templates, anchor.tensor.dtype.value
    isa = [d for d in machine.isa if templates.takes(g, d)]
    if not isinstance(anchor.op, IntMatmul):
        return next((d for d in isa if d.a_dtype == d.b_dtype == dtype), None)
    limits = [i.tensor.dtype.limits for i in anchor.inputs]
    fitting = [d for d in isa if d.a_dtype == d.b_dtype == templates.codes]
    return next((d for d in fitting if all(moved(d, x) is not None for x in limits)), None)


