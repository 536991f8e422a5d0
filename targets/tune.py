"""Tune: the time of some tiles of every product of a graph, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import tvm

from qcompiler.graph import Graph, Node
from qcompiler.machine import features as host_features
from qcompiler.ops import Const
from qcompiler.timing import in_long_turns
from qcompiler.types import DType, Sym, TensorType

from .base import Target, parts
from .database import Times
from .kernels.anchors import Product, product_of
from .kernels.launch import Launch
from .kernels.plan import candidates

if TYPE_CHECKING:
    import torch

TILES = 6
"""Tiles of a product that are measured, the best by the estimate."""
ROUNDS = 5
LARGEST = 1000
"""Magnitude of integers that stand for other values than codes: sums of residual branches."""


class TuneError(ValueError):
    """This machine cannot run what is to be measured."""


def tune(graph: Graph, target: Target, show: Callable[[str, int, int], None]) -> Times:
    """Microseconds per product and tile, of one call with the epilogue that the product has first
    in the graph. graph: FUSED, with weights not packed yet. show: told (what, done, total).

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
    products = _products(graph, target)
    times: dict[str, dict[str, float]] = {}
    for done, (name, (product, node)) in enumerate(products.items()):
        show("tune", done, len(products))
        tiles = candidates(product.g, product.dot, product.in_dtype, TILES)
        if len(tiles) > 1:
            times[name] = _measured(name, node, tiles, target)
    return times


def _products(graph: Graph, target: Target) -> dict[str, tuple[Product, Node]]:
    """The distinct products of known sizes, each with the first node that computes it."""
    found: dict[str, tuple[Product, Node]] = {}
    for node in graph.nodes():
        product = None if _symbolic(node) else product_of(node, target)
        if product is not None:
            found.setdefault(product.name, (product, node))
    return found


def _symbolic(node: Node) -> bool:
    types = (t for n in (node, *node.inputs) for t in parts(n.type))
    return any(isinstance(d, Sym) for t in types for d in t.shape)


def _measured(
    name: str, node: Node, tiles: list[tuple[int, int]], target: Target
) -> dict[str, float]:
    """The least time of each tile: what else the machine does can only add to it."""
    texts = [f"{rows}x{vectors}" for rows, vectors in tiles]
    launches = [_launch(node, replace(target, times={name: {text: 1.0}})) for text in texts]
    functions = {f"tile{k}": launch.build() for k, launch in enumerate(launches)}
    renamed = {n: f.with_attr("global_symbol", n) for n, f in functions.items()}
    library = tvm.compile(tvm.IRModule(renamed), target=tvm.target.Target(dict(target.tvm)))
    values: dict[Node, torch.Tensor] = {}
    calls = {}
    for kernel, text, launch in zip(functions, texts, launches, strict=True):
        operands = [_value(operand, values) for operand in launch.operands]
        arrays = [tvm.runtime.from_dlpack(v) for v in (*operands, _empty(node.tensor))]
        calls[text] = partial(library[kernel], *arrays)
    times = in_long_turns(calls, ROUNDS)
    return {text: round(times[text].least * 1e3, 2) for text in texts}


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
