"""The importer: walks an exported program, row by row, and gives a graph or a list of problems."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from qcompiler.frontend.builder import Builder, Value
from qcompiler.frontend.dims import Axes, Dims, named_symbols, same
from qcompiler.frontend.errors import Absent, Refusal, TraceError, first_line
from qcompiler.frontend.folding import folded
from qcompiler.frontend.naming import Sites, clean, module_of, named_uniquely, origin_of
from qcompiler.frontend.signature import Signature, input_tree, output_tree, signature_of
from qcompiler.frontend.table import CONTROL_FLOW, TABLE, VANISH
from qcompiler.graph import Graph, Node
from qcompiler.op import OpError
from qcompiler.ops import Const, Input
from qcompiler.types import DType, TensorType, TupleType


@dataclass(frozen=True)
class Problem:
    """An operation that cannot be imported: where it stands, and why."""

    op: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}{self.place}: {self.reason}"


@dataclass(frozen=True)
class Outcome:
    """A graph, or the problems in its way; `unknown` are the ops without a row."""

    graph: Graph | None
    problems: tuple[Problem, ...] = ()
    unknown: tuple[Any, ...] = ()


def import_program(program: ExportedProgram, axes: Sequence[Axes]) -> Outcome:
    """axes: for each tensor among the user's inputs, what the user said of its axes."""
    return Importer(program, axes).run()


class Importer:
    """The state of one walk."""

    def __init__(self, program: ExportedProgram, axes: Sequence[Axes]) -> None:
        self.program = program
        self.signature: Signature = signature_of(program)
        self.nodes = list(program.graph.nodes)
        shapes = [n.meta["val"].shape for n in self._user_inputs()]
        padded = [*axes, *({} for _ in shapes)][: len(shapes)]
        self.dims = Dims(named_symbols(shapes, padded, program.range_constraints))
        self.b = Builder(self.dims)
        self.sites = Sites(self.nodes)
        self.values: dict[fx.Node, Value] = {}
        self.problems: list[Problem] = []
        self.unknown: dict[Any, None] = {}
        self._weights: dict[tuple[Any, ...], Node] = {}

    def _user_inputs(self) -> list[fx.Node]:
        by_name = {n.name: n for n in self.nodes if n.op == "placeholder"}
        return [by_name[i] for i in self.signature.inputs if isinstance(i, str)]

    def run(self) -> Outcome:
        inputs = [self.input(n, clean(n.name)) for n in self._user_inputs()]
        states, initial = self.states()
        for node in self.nodes:
            if node not in self.values and node.op != "output":
                self.values[node] = self.value_of(node)
        by_name = {n.name: n for n in self.nodes}
        outputs = [by_name[o] for o in self.signature.outputs if isinstance(o, str)]
        results = [by_name[o] for o in self.signature.states.values()]
        made = {n: self.offered(n) for n in (*outputs, *results)}
        if self.problems:
            return Outcome(None, tuple(dict.fromkeys(self.problems)), tuple(self.unknown))
        trees = (input_tree(self.program, self.signature),
                 output_tree(self.program, self.signature))  # fmt: skip
        graph = Graph(
            tuple(inputs),
            tuple(made[n] for n in outputs),
            tuple((s, made[r]) for s, r in zip(states, results, strict=True)),
            trees=trees,
            initial=tuple(initial),
        )
        return Outcome(named_uniquely(graph))

    def input(self, node: fx.Node, name: str) -> Node:
        try:
            type_ = self.type_of(node.meta["val"])
        except Refusal as refused:
            raise TraceError(f"input {name!r} cannot be traced: {refused}") from None
        assert type_ is not None
        made = Input(type_)(name=name)
        self.values[node] = made
        return made

    def states(self) -> tuple[list[Node], list[Node]]:
        """The buffers that a call updates: inputs of the graph, with their first values."""
        by_name = {n.name: n for n in self.nodes if n.op == "placeholder"}
        inputs, initial = [], []
        for placeholder in self.signature.states:
            name, tensor = self.signature.weights[placeholder]
            inputs.append(self.input(by_name[placeholder], clean(name)))
            first = Const(tensor.detach().clone())
            initial.append(first(name=f"{clean(name)}.initial"))
        return inputs, initial

    def type_of(self, value: Any) -> TensorType | None:
        """The type PyTorch gives a value; None when it is not a tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        try:
            return TensorType(self.dims.shape(value.shape), DType.of(value.dtype))
        except TypeError as error:
            raise Refusal(str(error)) from None

    def value_of(self, node: fx.Node) -> Value:
        """The value of one node of the program; a problem is noted and gives Absent."""
        if node.op == "placeholder":
            return self.weight(node)
        if node.op == "get_attr":
            return self.attribute(str(node.target))
        if node.target in VANISH:
            return None
        absent = self.absent_operand(node)
        if absent is not None:
            return self.absent(node, absent)
        try:
            return self.call(node)
        except (Refusal, OpError) as refused:
            return self.problem(node, str(refused))
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise TraceError(f"cannot trace {shown(node.target)}{place(node)}: {reason}") from error

    def weight(self, node: fx.Node) -> Value:
        """A parameter, buffer or constant; equal storage is one Const."""
        if node.name not in self.signature.weights or not node.users:
            return None
        name, tensor = self.signature.weights[node.name]
        return self.constant(name, tensor)

    def constant(self, name: str, tensor: torch.Tensor) -> Node:
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or key not in self._weights:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
            made = Const(copy)(name=clean(name))
            self.b.known[made] = copy
            self._weights[key] = made
        return self._weights[key]

    def attribute(self, target: str) -> Value:
        value: Any = self.program.graph_module
        for part in target.split("."):
            value = getattr(value, part)
        return self.constant(target, value) if isinstance(value, torch.Tensor) else value

    def absent_operand(self, node: fx.Node) -> Absent | None:
        found = (self.values.get(i) for i in node.all_input_nodes)
        return next((v for v in found if isinstance(v, Absent)), None)

    def absent(self, node: fx.Node, cause: Absent) -> Absent:
        """A call on a value that could not be made; its own op may be unknown as well."""
        size = isinstance(node.meta.get("val"), SIZES)
        if isinstance(node.target, torch._ops.OpOverload) and node.target not in TABLE and not size:
            self.unknown[node.target] = None
            return self.problem(node, "the op is unknown")
        if cause.reported or node.target is operator.getitem:
            return cause
        return self.problem(node, f"it needs {cause.reason}")

    def problem(self, node: fx.Node, reason: str) -> Absent:
        source = node.args[0] if node.target is operator.getitem else node
        source = source if isinstance(source, fx.Node) else node
        target = source.args[1] if source.target is with_effects else source.target
        self.problems.append(Problem(shown(target), place(node), reason))
        return Absent(reason, reported=True)

    def offered(self, node: fx.Node) -> Any:
        """A value the graph returns."""
        value = self.values[node]
        if isinstance(value, Absent) and not value.reported:
            self.problem(node, f"the model returns {value.reason}")
        elif not isinstance(value, Node | Absent):
            self.problem(node, "the model returns a value that is not a tensor")
        return value

    def call(self, node: fx.Node) -> Value:
        val = node.meta.get("val")
        if node.target is operator.getitem:
            return self.operand(node.args[0])[node.args[1]]
        if node.target is with_effects:
            return self.effect(node)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.inlined(node)
        if isinstance(val, torch.SymInt | int) and not isinstance(val, bool):
            return self.dims.dim(val)
        if isinstance(val, SIZES):
            return Absent(READ.get(node.target, f"{shown(node.target)} of symbolic sizes"))
        args = bound(node, self.operand)
        vals = val if isinstance(val, list | tuple) else [val]
        self.b.begin(self.sites.of(node), [self.type_of(v) for v in vals])
        constant = folded(self.b, node.target, args)
        if constant is not None:
            return constant
        if any(t is not None and t.dtype in HALF for t in self.b.expected):
            raise Refusal("a half-precision result; call module.float() before tracing")
        handler = TABLE.get(node.target)
        if handler is None:
            self.unknown[node.target] = None
            return self.problem(node, "the op is unknown")
        return self.checked(node, handler(self.b, *args))

    def operand(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            return [self.operand(a) for a in argument]
        return argument

    def checked(self, node: fx.Node, value: Value) -> Value:
        """The row's result under its name; its type must be the one PyTorch found."""
        results = value if isinstance(value, tuple) else (value,)
        for got, want in zip(results, self.b.expected, strict=False):
            if isinstance(got, Node) and want is not None and not agrees(got.type, want):
                raise Refusal(f"it was imported as {got.type!r}, but PyTorch gives {want!r}")
        return self.b.finish(value) if isinstance(value, Node) else value

    def effect(self, node: fx.Node) -> Value:
        """(token, *results) of `with_effects(token, op, ...)`: nothing, if the op is a check."""
        if node.args[1] in VANISH:
            return (None, None)
        return self.problem(node, "an op with an effect beside its result has no place in a graph")

    def inlined(self, node: fx.Node) -> Value:
        """The body of a higher-order op that only sets a mode; control flow is refused."""
        args = [self.operand(a) for a in node.args]
        at = next((k for k, a in enumerate(args) if isinstance(a, fx.GraphModule)), None)
        if at is None or getattr(node.target, "__name__", "") in CONTROL_FLOW:
            raise Refusal("control flow that depends on the data; use torch.where")
        nodes = list(args[at].graph.nodes)
        places = [n for n in nodes if n.op == "placeholder"]
        self.values.update(zip(places, args[at + 1 :], strict=True))
        for child in nodes:
            if child.op == "output":
                result = self.operand(child.args[0])
                return tuple(result) if isinstance(result, list) else result
            if child not in self.values:
                self.values[child] = self.value_of(child)
        raise Refusal("a body without a result")


READ: dict[Any, str] = dict.fromkeys(
    (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default),
    ".item(), which makes a Python number of a tensor; compute with the tensor itself",
)
with_effects = torch.ops.higher_order.with_effects
SIZES = (torch.SymInt, torch.SymBool, torch.SymFloat)
HALF = (DType.FLOAT16, DType.BFLOAT16)


def shown(target: Any) -> str:
    """`aten.add.Tensor`; the plain name of a Python function."""
    overload = isinstance(target, torch._ops.OpOverload)
    return str(target) if overload else getattr(target, "__name__", str(target))


def place(node: fx.Node) -> str:
    """` at 'layer1.0', net.py:12`, as far as the export knows it."""
    path, _ = module_of(node)
    line = origin_of(node).removeprefix(path).strip()
    parts = [p for p in (repr(path) if path else "", line) if p]
    return f" at {', '.join(parts)}" if parts else ""


def agrees(got: Any, want: TensorType) -> bool:
    if isinstance(got, TupleType) or got.dtype is not want.dtype or got.rank != want.rank:
        return False
    return all(map(same, got.shape, want.shape))


def bound(node: fx.Node, operand: Any) -> list[Any]:
    """All arguments in the schema's order, with their defaults."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return [operand(a) for a in node.args]
    values = []
    for k, argument in enumerate(target._schema.arguments):
        if k < len(node.args) and not argument.kwarg_only:
            values.append(operand(node.args[k]))
        elif argument.name in node.kwargs:
            values.append(operand(node.kwargs[argument.name]))
        else:
            values.append(argument.default_value)
    return values
