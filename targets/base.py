"""A target as a frozen value: facts for the passes, kernels for lowering, a dict for TVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from qcompiler.graph import Graph, Node
from qcompiler.op import Float as FloatRule
from qcompiler.op import Op, kind_of
from qcompiler.ops import (
    ALL,
    Add,
    Arange,
    Attention,
    AvgPool2d,
    BatchNorm,
    Const,
    Conv2d,
    DynamicQuantize,
    Full,
    Get,
    Input,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Linear,
    Matmul,
    Mul,
    Packing,
    Region,
    Reshape,
    Tuple,
    Unpack,
)  # fmt: skip
from qcompiler.target import Sums
from qcompiler.target import Times as LayerTimes
from qcompiler.types import DType, Sym, TensorType, Type

from . import costs, database
from .database import Times
from .kernels import anchors, cumsum, elementwise, gather, movement, products, rows, window
from .kernels.algebra import Primitives
from .kernels.dot import Dot
from .kernels.launch import Answer, Kernel, Launch, Machine, Miss, Site, Templates
from .kernels.weights import moved, takes_codes

# What a template takes goes to it; the plain loops of `products` get the rest.
FAMILIES = (anchors, products, elementwise, rows, window, movement, gather, cumsum)

REFUSALS: Mapping[type[Op], str] = {
    Attention: "attention is decomposed before it is lowered",
    BatchNorm: "batch norm is folded before it is lowered",
}
"""What no machine has a kernel for, and why."""

STRUCTURAL: tuple[type[Op], ...] = (Input, Const, Tuple, Get, Reshape)
"""Ops that need no kernel: arguments, weights, tuples and views."""

INTEGER_FORMS: Mapping[type[Op], type[Op]] = {
    Conv2d: IntConv2d, Linear: IntLinear, Matmul: IntMatmul, AvgPool2d: IntSumPool2d, Add: IntAdd,
    Mul: IntMul,
}  # fmt: skip
"""What float ops compute as on codes; other float ops become a Lookup or keep their class."""


FORMLESS = ("clamp", "prelu", "max_pool2d", "functions of one tensor (tables)", "movement")
"""What computes on codes without an op of its own: within a requantize, by a table, as it is."""

INTERNAL: tuple[type[Op], ...] = (DynamicQuantize, Unpack, Region, Arange, Full)
"""Ops that no model has, or that compute nothing."""


class Emulator(Protocol):
    """A machine in software."""

    def missing(self) -> str | None:
        """Why it cannot be emulated here; None when it can."""

    def begin(
        self, artifact: Path, say: Callable[[str], None]
    ) -> Callable[[Sequence[Any], bool], Any] | None:
        """What calls the artifact, elsewhere: (arrays, whether to tap) -> outputs, taps. None:
        from now on this process can load it by itself. say: told of each step of a long set-up."""


@dataclass(frozen=True, eq=False)
class Target:
    """One machine that graphs are built for; implements qcompiler.target.Target.

    tvm: the target as TVM wants it. isa: its dot instructions, the fastest first. primitives: how
    scalar arithmetic is written so that it stays exact. features: CPU flags the code needs, by
    their names in /proc/cpuinfo. support: why ops have no kernel here. kernels: the first that
    takes a node wins. packings: how a node's weights are laid out. emulator: what runs its code on
    other machines. templates: how products are computed. times: what was measured, see database.
    """

    name: str
    tvm: Mapping[str, Any]
    isa: tuple[Dot, ...]
    primitives: Primitives
    features: tuple[str, ...]
    support: Mapping[type[Op], str]
    kernels: tuple[Kernel, ...]
    packings: Callable[[Node, Machine], Packing | None]
    emulator: Emulator | None = None
    templates: Templates = anchors.CPU
    times: Times = field(default_factory=dict)

    def with_times(self, times: Times) -> Target:
        """The same machine, of which more is measured."""
        return replace(self, times={**self.times, **times})

    @property
    def device(self) -> str:
        """What runs the kernels, by TVM's name: `cpu`, or the kind of a GPU."""
        kind = str(self.tvm["kind"])
        return "cpu" if kind == "llvm" else kind

    @property
    def architecture(self) -> str:
        """Of a GPU, as nvcc names it: `sm_80`; empty for a CPU."""
        return str(self.tvm.get("arch", ""))

    @property
    def triple(self) -> str:
        """The machine that the library itself runs on, as LLVM names it."""
        return str(self.tvm.get("host", self.tvm)["mtriple"])

    @property
    def integer_ops(self) -> tuple[str, ...]:
        """What has an integer form with a kernel here, by its name in a dump."""
        forms = (op for op, form in INTEGER_FORMS.items() if not {op, form} & set(self.support))
        return (*map(kind_of, forms), *FORMLESS)

    @property
    def float_ops(self) -> tuple[str, ...]:
        """What has a kernel here, and no integer form."""
        given = (*STRUCTURAL, *self.support, *INTERNAL)
        return tuple(
            kind_of(op) for op in ALL if op not in given and isinstance(op.quant, FloatRule)
        )

    def answer(self, node: Node) -> Launch | Miss:
        """The kernel for a node, or why there is none."""
        problem = unsupported_dims(node)
        if problem:
            return Miss(problem)
        misses: list[str] = []
        site = Site.of(node)
        for kernel in self.kernels:
            result: Answer = kernel(site, self)
            if isinstance(result, Launch):
                return result
            if isinstance(result, Miss):
                misses.append(result.reason)
        if not misses:
            misses = [self.support.get(type(b.op), "no kernel exists") for b in site.body]
        return Miss("; ".join(dict.fromkeys(misses)))

    def refuses(self, node: Node) -> str | None:
        """Why the node cannot be lowered here; None when it can."""
        if isinstance(node.op, STRUCTURAL):
            return unsupported_dims(node)
        result = self.answer(node)
        return result.reason if isinstance(result, Miss) else None

    def refuses_integer(self, node: Node) -> str | None:
        """Why the integer form of a float node has no kernel here; None when it has."""
        form = INTEGER_FORMS.get(type(node.op))
        return self.support.get(form) if form else None

    def sums(self, low: int, high: int) -> tuple[Sums, ...]:
        """How the instructions for codes in [low, high] and int8 weights add, fastest first."""
        added = [(dot, moved(dot, (low, high))) for dot in self.isa if takes_codes(dot)]
        return tuple(Sums(d.sums, low + m, high + m) for d, m in added if m is not None)

    def tile(self, product: str) -> tuple[int, int] | None:
        """The rows and vectors of the fastest tile measured for a product; None: none was, or its
        template has none."""
        row = self.times.get(product)
        return database.fastest(row) if row and database.WHOLE not in row else None

    def least(self, what: str) -> float | None:
        """Microseconds of a product by that tile, or of what has none; None: nobody measured it."""
        row = self.times.get(what)
        return row["x".join(map(str, database.fastest(row)))] if row else None

    def microseconds(
        self, node: Node, choices: Sequence[Sums | None], codes: DType
    ) -> LayerTimes | None:
        """How long a layer takes with each of these sums, or in float32; None: nothing is known."""
        return costs.microseconds(node, choices, codes, self) if self.device == "cpu" else None

    def quantizing(self, node: Node) -> float:
        """Microseconds of making codes of the node's value in a kernel of its own."""
        return costs.conversion(node, database.QUANTIZE, self)

    def dequantizing(self, node: Node) -> float:
        """Microseconds of making float32 of the codes of the node's value."""
        return costs.conversion(node, database.DEQUANTIZE, self)

    def packing(self, node: Node) -> Packing | None:
        """How the kernel that takes this matmul or convolution reads its weights."""
        return None if unsupported_dims(node) else self.packings(node, self)


def parts(t: Type) -> tuple[TensorType, ...]:
    return (t,) if isinstance(t, TensorType) else t.items


def unsupported_dims(node: Node) -> str | None:
    """Only the first dimension may be symbolic, and only one symbol may occur."""
    for t in _types(node):
        if 0 in t.shape:
            return f"an empty tensor, {t!r}, has no kernel"
        problem = _misplaced(t)
        if problem:
            return problem
    return None


def misplaced_symbol(node: Node) -> str | None:
    """What is wrong with the symbolic dimensions of a node and its operands; None if nothing."""
    return next((p for t in _types(node) if (p := _misplaced(t))), None)


def _types(node: Node) -> list[TensorType]:
    return [t for whole in (*(i.type for i in node.inputs), node.type) for t in parts(whole)]


def _misplaced(t: TensorType) -> str | None:
    if any(isinstance(d, Sym) for d in t.shape[1:]):
        return f"only the first dimension may be symbolic, got {t!r}"
    if t.shape and isinstance(t.shape[0], Sym) and len(t.shape[0].expr.free_symbols) > 1:
        return f"a dimension may depend on one symbol, got {t!r}"
    return None


class InputsError(ValueError):
    """The model's inputs have shapes that no target builds."""


def require_buildable(graph: Graph) -> None:
    """Raises InputsError naming the first input with a shape that could never be lowered.

    In one line and before any work: every node that reads such an input would be refused.
    """
    for node in graph.parameters:
        reason = unsupported_dims(node)
        if reason:
            raise InputsError(f"input %{node.name}: {reason}; {_cure(node)}")


def _cure(node: Node) -> str:
    if 0 in node.tensor.shape:
        return "trace the model with an example that has elements"
    return "trace it with a fixed size there (no Dim in dynamic_shapes) and pad to that"
