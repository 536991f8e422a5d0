"""Tune: times of a graph's products by every instruction for them, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import tvm

from qcompiler.graph import Graph, Node
from qcompiler.machine import features as host_features
from qcompiler.ops import Const, Conv2d, Dequantize, Input, Linear, Quantize, const
from qcompiler.timing import in_long_turns
from qcompiler.types import DType, Sym, TensorType

from .base import Target, parts
from .database import CONVERTED, DEQUANTIZE, QUANTIZE, WHOLE, Times
from .kernels.anchors import WEIGHTED, Product, product_of
from .kernels.launch import Launch, Site
from .kernels.plan import candidates
from .kernels.weights import takes_codes

if TYPE_CHECKING:
    import torch

TILES = 3
"""Tiles of a product that are measured, the best by the estimate."""
ROUNDS = 5
LARGEST = 1000
"""Magnitude of integers that stand for other values than codes: sums of residual branches."""


class TuneError(ValueError):
    """This machine cannot run what is to be measured."""


@dataclass(frozen=True)
class Variant:
    """What is measured under a name of the database: a node, by each tile its kernel may have, on
    a machine without other instructions."""

    name: str
    tiles: tuple[str, ...]
    node: Node
    target: Target

    @staticmethod
    def of(product: Product, node: Node, target: Target) -> Variant:
        found = candidates(product.g, product.dot, product.in_dtype, TILES)
        return Variant(product.name, tuple(f"{r}x{v}" for r, v in found) or (WHOLE,), node, target)


def tune(graph: Graph, target: Target, show: Callable[[str, int, int], None]) -> Times:
    """Microseconds per product and tile, of one call with the epilogue that the product has first
    in the graph. Of a product of codes, all instructions are measured that could compute it with
    other weights, and that for float32, in turns: so they can be compared. graph: FUSED, with
    weights not packed yet. show: told (what, done, total).

    Raises TuneError.
    """
    if target.device != "cpu":
        raise TuneError(f"tune measures products of CPUs, not those of {target.name}")
    lacking = [f for f in target.features if f not in host_features()]
    if lacking:
        raise TuneError(
            f"tune measures on this machine, which lacks {', '.join(lacking)} of {target.name}; "
            "tune on one that has them, and copy the database"
        )
    measured = [_conversions(target), *_layers(graph, target)]
    times: dict[str, dict[str, float]] = {}
    for done, variants in enumerate(measured):
        show("tune", done, len(measured))
        times.update(_measured(variants))
    return times


def _layers(graph: Graph, target: Target) -> list[list[Variant]]:
    """The distinct products of known sizes, each with its variants."""
    found: dict[str, list[Variant]] = {}
    for node in graph.nodes():
        product = None if _symbolic(node) else product_of(node, target)
        if product is None:
            continue
        key = f"{product.g} of {product.in_dtype}"
        if key not in found:
            found[key] = list(_variants(node, product, target))
    return list(found.values())


def _variants(node: Node, product: Product, target: Target) -> Iterator[Variant]:
    bare = replace(target, times={})
    light = _light(node)
    if light is None:
        yield Variant.of(product, node, bare)
        return
    for dot in filter(takes_codes, target.isa):
        alone = replace(bare, isa=(dot,))
        made = product_of(light, alone)
        if made is not None:
            yield Variant.of(made, light, alone)
    plain = _in_float(node)
    made = product_of(plain, bare)
    if made is not None:
        yield Variant.of(made, plain, bare)


def _conversions(target: Target) -> list[Variant]:
    """Both ways between float32 and codes, each in a kernel of its own."""
    t = TensorType((1, CONVERTED), DType.FLOAT32)
    scale, zero = const(0.5), const(3)
    codes = Quantize(DType.UINT8, *DType.UINT8.limits)(Input(t)(name="x"), scale, zero)
    held = Input(codes.tensor)(name="q")
    nodes = {QUANTIZE: codes, DEQUANTIZE: Dequantize()(held, scale, zero)}
    return [Variant(name, (WHOLE,), node, target) for name, node in nodes.items()]


def _anchor(node: Node) -> Node:
    return next(b for b in Site.of(node).body if isinstance(b.op, WEIGHTED))


def _light(node: Node) -> Node | None:
    """The node with weights so small that any sum of their products fits; None where its weights
    are no codes."""
    import torch

    weight = _anchor(node).inputs[1]
    if not isinstance(weight.op, Const) or weight.op.value.dtype is not torch.int8:
        return None
    small = replace(weight.op, value=weight.op.value.sign())(name=weight.name)
    return node.with_inputs([small if i is weight else i for i in node.inputs])


def _in_float(node: Node) -> Node:
    """The layer of a node of codes as it is computed in float32, with a bias."""
    import torch

    anchor = _anchor(node)
    x, weight = (i.tensor for i in anchor.inputs[:2])
    float_x = Input(TensorType(x.shape, DType.FLOAT32))(name="x")
    ones = [const(torch.ones(shape)) for shape in (_sizes(weight), _sizes(weight)[:1])]
    op = anchor.op
    if not isinstance(op, Conv2d):
        return Linear()(float_x, *ones)
    plain = Conv2d(op.stride, op.padding, op.dilation, op.groups, op.channels_last)
    return plain(float_x, *ones)


def _symbolic(node: Node) -> bool:
    types = (t for n in (node, *node.inputs) for t in parts(n.type))
    return any(isinstance(d, Sym) for t in types for d in t.shape)


def _measured(variants: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """The least time of each tile: what else the machine does can only add to it."""
    launches: dict[tuple[Variant, str], Launch] = {}
    for v in variants:
        for tile in v.tiles:
            times = {v.name: {tile: 1.0}}
            launches[v, tile] = _launch(v.node, replace(v.target, times=times))
    names = {key: f"k{k}" for k, key in enumerate(launches)}
    functions = {n: launches[key].build().with_attr("global_symbol", n) for key, n in names.items()}
    machine = tvm.target.Target(dict(variants[0].target.tvm))
    library = tvm.compile(tvm.IRModule(functions), target=machine)
    values: dict[Node, torch.Tensor] = {}
    calls = {}
    for key, launch in launches.items():
        operands = [_value(operand, values) for operand in launch.operands]
        result = _empty(key[0].node.tensor)
        arrays = [tvm.runtime.from_dlpack(v) for v in (*operands, result)]
        calls[names[key]] = partial(library[names[key]], *arrays)
    spent = in_long_turns(calls, ROUNDS)
    least = {key: round(spent[name].least * 1e3, 2) for key, name in names.items()}
    return {v.name: {tile: least[v, tile] for tile in v.tiles} for v in variants}


def _launch(node: Node, target: Target) -> Launch:
    answer = target.answer(node)
    assert isinstance(answer, Launch)  # it is for the tile of the estimate
    return answer


def _value(operand: Node | torch.Tensor, known: dict[Node, torch.Tensor]) -> torch.Tensor:
    """The operand, or something in its place; the same for all tiles."""
    if not isinstance(operand, Node):
        return operand.detach().contiguous()
    if isinstance(operand.op, Const):
        return operand.op.value.detach().contiguous()
    return known.setdefault(operand, _random(operand.tensor))


def _sizes(t: TensorType) -> list[int]:
    return [int(d) for d in t.shape if not isinstance(d, Sym)]


def _empty(t: TensorType) -> torch.Tensor:
    import torch

    return torch.empty(_sizes(t), dtype=t.dtype.torch)


def _random(t: TensorType) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    if t.dtype.is_float:
        return torch.randn(_sizes(t), generator=generator).to(t.dtype.torch)
    truth = t.dtype is DType.BOOL
    limits = (0, 1) if truth else t.dtype.limits
    low, high = (t.quant.qmin, t.quant.qmax) if t.quant is not None else limits
    low, high = max(low, -LARGEST), min(high, LARGEST)
    return torch.randint(low, high + 1, _sizes(t), generator=generator).to(t.dtype.torch)
