"""Does the compiled program compute what its graph says? Checked kernel by kernel.

Each kernel's result is compared with the reference interpreter on the operands the program
itself had (taps), so an error is found where it arises, and a code that a float product rounds
the other way cannot hide it or be blamed on what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qcompiler.graph import Graph, Node
from qcompiler.interpret import bind_inputs, bind_symbols, run
from qcompiler.observers import TOLERANCE, follows_float_anchor, has_float_anchor
from qcompiler.ops import Const, Get, Input, Reshape, Tuple, Unpack, bound_op
from qcompiler.runtime.model import CompiledModel
from qcompiler.runtime.samples import random_inputs
from qcompiler.runtime.signature import check

if TYPE_CHECKING:
    import torch

VIEWS = (Input, Const, Tuple, Get, Reshape, Unpack)
"""Ops that no kernel computes: arguments, weights, tuples and other views of the same bytes."""


@dataclass(frozen=True)
class Comparison:
    """One value of the program against the interpreter's.

    count: its elements; differing: how many differ; error: the largest difference; magnitude: the
    largest reference value. exact: whether every bit must agree; else the error may be 1e-4 of
    the magnitude, or one code.
    """

    name: str
    op: str
    count: int
    differing: int
    error: float
    magnitude: float
    exact: bool
    integer: bool = False

    @property
    def limit(self) -> float:
        if self.exact:
            return 0.0
        return max(TOLERANCE * self.magnitude, 1.0 if self.integer else 0.0)

    @property
    def holds(self) -> bool:
        return self.differing == 0 or self.error <= self.limit

    def __str__(self) -> str:
        if self.exact:
            expected = "expected none"
        else:
            expected = f"largest error {self.error:.3g}, limit {self.limit:.3g}"
        return f"%{self.name} ({self.op}): {self.differing} of {self.count} differ, {expected}"


@dataclass(frozen=True)
class Verdict:
    """kernels: every kernel on the program's own operands. outputs: the results end to end; they
    count where they must be exact (after a float product they are shown, kernels decide)."""

    kernels: tuple[Comparison, ...]
    outputs: tuple[Comparison, ...]

    @property
    def failures(self) -> tuple[Comparison, ...]:
        whole = [c for c in self.outputs if c.exact or not self.kernels]
        return tuple(c for c in (*self.kernels, *whole) if not c.holds)

    @property
    def holds(self) -> bool:
        return not self.failures


class Call(Protocol):
    """What a call gives, as numpy arrays: see model.Tapped."""

    @property
    def outputs(self) -> Sequence[Any]: ...

    @property
    def taps(self) -> Sequence[Sequence[Any]]: ...


def verify(
    model: CompiledModel,
    inputs: Sequence[Any] | None = None,
    seed: int = 0,
    tapped: Callable[[Sequence[Any]], Call] | None = None,
) -> Verdict:
    """Run the program and the interpreter, both from the initial state, and compare. Needs torch.

    inputs: one tensor or array per input; random ones unless given (ids within their tables,
    symbolic dimensions small). tapped: how the program is called, on numpy arrays, where not
    here. Raises InputError for inputs that do not fit.
    """
    import torch

    graph = model.graph
    given = random_inputs(graph, seed) if inputs is None else [*map(torch.as_tensor, inputs)]
    check(model.manifest.main, given)
    env = bind_inputs(graph, given)
    symbols = bind_symbols(graph, env)
    call = (tapped or model.tapped)([g.numpy() for g in given])
    taps = [[torch.from_numpy(t) for t in kernel] for kernel in call.taps]
    results = [torch.from_numpy(r) for r in call.outputs]
    with torch.no_grad():
        kernels = _kernels(graph, taps, env, symbols)
        # Where every kernel gave the interpreter's bits, its values are the interpreter's.
        same = bool(kernels) and all(c.differing == 0 for c in kernels)
        expected = [env[n] for n in graph.results] if same else run(graph, given)
        outputs = [
            compare(node, got, wanted, not follows_float_anchor(node))
            for node, got, wanted in zip(graph.results, results, expected, strict=True)
        ]
    return Verdict(tuple(kernels), tuple(outputs))


def _kernels(
    graph: Graph, taps: Sequence[list[torch.Tensor]], env: dict[Node, Any],
    symbols: dict[str, int],
) -> list[Comparison]:  # fmt: skip
    """The kernels in the order they ran, which is that of the graph's nodes.

    A library with another number of kernels than the graph has nodes cannot be tapped: none.
    """
    nodes = graph.nodes()
    if len(taps) != sum(not isinstance(n.op, VIEWS) for n in nodes):
        return []
    rest = iter(taps)
    found: list[Comparison] = []
    for node in nodes:
        if isinstance(node.op, Input):
            continue
        op = bound_op(node.op, symbols) if symbols else node.op
        value = op.eval(*(env[i] for i in node.inputs))
        if not isinstance(node.op, VIEWS):
            wanted = value if isinstance(value, tuple) else (value,)
            got = next(rest)[-len(wanted) :]
            exact = not anchored(node)
            found += [compare(node, g, w, exact) for g, w in zip(got, wanted, strict=True)]
            value = tuple(got) if isinstance(value, tuple) else got[0]
        env[node] = value
    return found


def compare(node: Node, got: torch.Tensor, wanted: torch.Tensor, exact: bool) -> Comparison:
    """NaN equals NaN. A wrong shape or dtype differs everywhere."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        count = max(wanted.numel(), 1)
        return Comparison(node.name, node.op.kind, count, count, float("inf"), 0.0, True)
    differs = (got != wanted) & ~((got != got) & (wanted != wanted))
    a, b = got.double(), wanted.double()
    error = float((a - b)[differs].abs().nan_to_num(nan=float("inf")).max()) if differs.any() else 0
    magnitude = float(b.abs().max()) if b.numel() else 0.0
    return Comparison(
        node.name, node.op.kind, wanted.numel(), int(differs.sum()), error, magnitude, exact,
        not wanted.dtype.is_floating_point,
    )  # fmt: skip


def anchored(node: Node) -> bool:
    """Whether the node computes a float matmul or convolution, the only ops with a tolerance."""
    return has_float_anchor(Graph((), (Node(node.op, (), node.type),)))


