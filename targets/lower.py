"""A FUSED graph to a TVM module: kernels once each, called by a Relax function `main`."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sympy
import tvm
from tvm import relax, tirx

from qcompiler.graph import Graph, Level, Node
from qcompiler.ops import Const, Get, Input, Reshape, Tuple
from qcompiler.types import Dim, Sym, TensorType, Type

from .base import STRUCTURAL, Target, misplaced_symbol, parts, unsupported_dims
from .kernels.launch import Launch, Miss

if TYPE_CHECKING:
    import torch


_one_builder = threading.Lock()
"""relax.BlockBuilder keeps all builders, of whatever thread, on one stack."""


class LowerError(ValueError):
    """The graph cannot be lowered for this target."""


@dataclass(frozen=True)
class Lowered:
    """`main(*inputs, *state, *weights) -> (*outputs, *new state, *faults)`.

    weights: (digest, tensor) in the order of the parameters; they live outside the library.
    faults: a message for each result that is an int32 [1] of a failed check, where not 0.
    instructions: by the name of a node, that of its product.
    """

    mod: tvm.IRModule
    weights: tuple[tuple[str, torch.Tensor], ...]
    faults: tuple[str, ...] = ()
    instructions: Mapping[str, str] = field(default_factory=dict)


def lower(graph: Graph, target: Target) -> Lowered:
    """The graph as kernels of the target. Raises LowerError naming every node without one."""
    if graph.level is not Level.FUSED:
        raise LowerError(f"lower needs a FUSED graph, got {graph.level.name}; run fuse first")
    if graph.target != target.name:
        raise LowerError(f"the graph was fused for {graph.target!r}, not for {target.name!r}")
    nodes = graph.nodes()
    launches = _launches(nodes, target)
    with _one_builder:
        made = _Module(graph, launches, target).built(nodes)
    return replace(made, instructions={n.name: str(a.dot) for n, a in launches.items() if a.dot})


def _launches(nodes: list[Node], target: Target) -> dict[Node, Launch]:
    found: dict[Node, Launch] = {}
    problems: dict[Node, str] = {}
    for node in nodes:
        if isinstance(node.op, STRUCTURAL):
            reason = unsupported_dims(node)
            if reason:
                problems[node] = reason
            continue
        with _naming(node, target):
            answer = target.answer(node)
        if isinstance(answer, Miss):
            problems[node] = answer.reason
        else:
            found[node] = answer
    if problems:
        raise LowerError(_refusal(problems, target))
    return found


@contextmanager
def _naming(node: Node, target: Target) -> Iterator[None]:
    """Whatever goes wrong in here, a defect of a kernel too, is an error that names the node."""
    try:
        yield
    except LowerError:
        raise
    except Exception as e:
        reason = f"{type(e).__name__}: {first_line(e)}"
        raise LowerError(
            f"{target.name} cannot write the kernel of {_problem(node, reason)}; this is a defect "
            "of qcompiler: change the model there, and report it"
        ) from e


def first_line(error: Exception) -> str:
    return next((x.strip() for x in str(error).splitlines() if x.strip()), "no message")


def _refusal(problems: Mapping[Node, str], target: Target) -> str:
    """What readers of a shape that no kernel takes add to it is nothing new.

    Nor are more nodes with a symbol where none may be: one cure, a fixed size, is for all of them.
    """
    symbolic = [n for n in problems if misplaced_symbol(n)]
    causes = [
        _problem(node, reason)
        for node, reason in problems.items()
        if node not in symbolic
        and not (unsupported_dims(node) and any(i in problems for i in node.inputs))
    ]
    if symbolic:
        cure = "trace with fixed sizes (a fixed batch: no dynamic_shapes)"
        causes.insert(0, f"{_problem(symbolic[0], problems[symbolic[0]])}; {cure}")
    if len(causes) == 1:
        return f"{target.name} has no kernel for {causes[0]}{'' if symbolic else CURE}"
    head = f"{target.name} has no kernel for {len(causes)} nodes; change the model there:"
    return "\n  ".join([head, *causes])


CURE = "; change the model there"


def _problem(node: Node, reason: str) -> str:
    operands = ", ".join(repr(i.type) for i in node.inputs)
    origin = f" ({node.note.origin})" if node.note.origin else ""
    return f"%{node.name} = {node.op.kind}({operands}) : {node.type!r}{origin}: {reason}"


@dataclass
class _Module:
    """The module while it is being written."""

    graph: Graph
    launches: dict[Node, Launch]
    target: Target
    builder: Any = field(default_factory=relax.BlockBuilder)
    by_key: dict[Hashable, Any] = field(default_factory=dict)
    symbols: dict[str, Any] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    weights: dict[str, tuple[torch.Tensor, Any]] = field(default_factory=dict)
    faults: list[tuple[str, Any]] = field(default_factory=list)

    def built(self, nodes: list[Node]) -> Lowered:
        for node in self.graph.parameters:
            self.values[node] = relax.Var(_name(node), self.type(node.type))
        self._declare_weights(nodes)
        functions = {node: self._function(node, launch) for node, launch in self.launches.items()}
        inputs = [self.values[n] for n in self.graph.parameters]
        params = [*inputs, *(var for _, var in self.weights.values())]
        with self.builder.function("main", params, {"num_input": len(inputs)}):
            with self.builder.dataflow():
                for node in nodes:
                    self._emit(node, functions)
                results = [self._value(n) for n in self.graph.results]
                results += [flag for _, flag in self.faults]
                output = self.builder.emit_output(relax.Tuple(results))
            self.builder.emit_func_output(output)
        table = tuple((digest, tensor) for digest, (tensor, _) in self.weights.items())
        return Lowered(self.builder.get(), table, tuple(message for message, _ in self.faults))

    def _declare_weights(self, nodes: list[Node]) -> None:
        """Parameters must be known before the body is written."""
        for node in nodes:
            operands = self.launches[node].operands if node in self.launches else node.inputs
            for operand in operands:
                self._declare(operand)
        for node in self.graph.results:
            self._declare(node)

    def _declare(self, value: Node | torch.Tensor) -> None:
        const = _const(value)
        if const is None or const.digest in self.weights:
            return
        var = relax.Var(f"w{len(self.weights)}", self.type(const.infer()))
        self.weights[const.digest] = (const.value.detach().contiguous(), var)

    def _value(self, value: Node | torch.Tensor) -> Any:
        const = _const(value)
        if const is not None:
            return self.weights[const.digest][1]
        assert isinstance(value, Node)
        return self.values[value]

    def _emit(self, node: Node, functions: dict[Node, Any]) -> None:
        match node.op:
            case Input() | Const():
                return
            case Reshape():
                shape = [self.dim(d) for d in node.tensor.shape]
                call = relax.op.reshape(self._value(node.inputs[0]), shape)
            case Tuple():
                call = relax.Tuple([self._value(i) for i in node.inputs])
            case Get(index=index):
                call = relax.TupleGetItem(self._value(node.inputs[0]), index)
            case _:
                call = self._call(node, functions[node])
        self.values[node] = self.builder.emit(call, _name(node))

    def _call(self, node: Node, function: Any) -> Any:
        launch = self.launches[node]
        operands = [self._value(o) for o in launch.operands]
        types = [self.type(t) for t in parts(node.type)]
        if launch.fault is None:
            return relax.call_tir(function, operands, types)
        flag = relax.TensorType([1], "int32")
        both = self.builder.emit(relax.call_tir(function, operands, [flag, *types]))
        self.faults.append((launch.fault, self.builder.emit(relax.TupleGetItem(both, 0))))
        return relax.TupleGetItem(both, 1)

    def _function(self, node: Node, launch: Launch) -> Any:
        """The global of the launch's function; the builder keeps equal functions once."""
        if launch.key not in self.by_key:
            with _naming(node, self.target):
                made = launch.build()
            kind = str(made.attrs["global_symbol"])
            function = made.without_attr("global_symbol")
            self.by_key[launch.key] = self.builder.add_func(function, kind)
        return self.by_key[launch.key]

    def type(self, t: Type) -> Any:
        if isinstance(t, TensorType):
            return relax.TensorType([self.dim(d) for d in t.shape], t.dtype.value)
        return relax.TupleType([self.type(i) for i in t.items])

    def dim(self, dim: Dim) -> Any:
        return self._expr(dim.expr) if isinstance(dim, Sym) else dim

    def _expr(self, expr: sympy.Expr) -> Any:
        """A polynomial in the symbol, as TIR."""
        if expr.is_Symbol:
            return self.symbols.setdefault(str(expr), tirx.Var(str(expr), "int64"))
        if expr.is_Integer:
            return tirx.IntImm("int64", int(expr))
        if not (expr.is_Add or expr.is_Mul):
            raise LowerError(f"the dimension {expr} is no sum or product of its symbol and numbers")
        first, *rest = map(self._expr, expr.args)
        for term in rest:
            first = first + term if expr.is_Add else first * term
        return first


def _const(value: Node | torch.Tensor) -> Const | None:
    if not isinstance(value, Node):
        return Const(value)
    return value.op if isinstance(value.op, Const) else None


def _name(node: Node) -> str:
    return "".join(c if c.isalnum() else "_" for c in node.name) or "v"
