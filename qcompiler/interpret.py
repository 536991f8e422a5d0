"""The reference interpreter: the oracle for every pass and every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qcompiler.errors import InputError
from qcompiler.graph import Graph, Node
from qcompiler.ops import Const, Input, bound_op
from qcompiler.types import Sym, TensorType

if TYPE_CHECKING:
    import torch


def interpret(
    graph: Graph,
    *inputs: torch.Tensor,
    state: Sequence[torch.Tensor] | None = None,
    see: Callable[[Node, Any], None] | None = None,
) -> Any:
    """Evaluate the graph at any level.

    inputs: one tensor per graph input. state: values for the graph's state inputs (the initial
    ones unless given). see: called with every node and its value, in order.
    Returns a tensor, or a tuple when there are several outputs; with `state` given, the pair
    (outputs, new state). Raises InputError when a value does not fit its declaration.
    """
    values = run(graph, inputs, state, see)
    outputs = tuple(values[: len(graph.outputs)])
    result = outputs[0] if len(outputs) == 1 else outputs
    return result if state is None else (result, tuple(values[len(graph.outputs) :]))


def run(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    state: Sequence[torch.Tensor] | None = None,
    see: Callable[[Node, Any], None] | None = None,
    keep: Mapping[Node, torch.Tensor] | None = None,
    change: Callable[[Node, Any], Any] | None = None,
) -> list[Any]:
    """The values of `graph.results`. `keep` overrides the values of some nodes (taps); `change`
    gives the value to go on with for that of every other node."""
    env = bind_inputs(graph, inputs, state)
    symbols = bind_symbols(graph, env)
    order = graph.nodes()
    last = _last_uses(graph, order)
    for position, node in enumerate(order):
        if keep is not None and node in keep:
            env[node] = keep[node]
        elif not isinstance(node.op, Input):
            env[node] = _eval(node, env, symbols)
        if change is not None and (keep is None or node not in keep):
            env[node] = change(node, env[node])
        if see is not None:
            see(node, env[node])
        for dead in last.get(position, ()):
            del env[dead]
    return [env[node] for node in graph.results]


def constant_values(graph: Graph) -> dict[Node, Any]:
    """For `keep` of many runs: the values of what is computed from constants alone, coded weights
    say, and that something else reads; None for what is only on the way there."""
    users = graph.users()
    found: dict[Node, Any] = {}
    for node in users:
        fixed = all(isinstance(i.op, Const) or i in found for i in node.inputs)
        if node.inputs and fixed and isinstance(node.type, TensorType) and node.type.static:
            values = (i.op.value if isinstance(i.op, Const) else found[i] for i in node.inputs)
            found[node] = node.op.eval(*values)
    results = set(graph.results)
    inner = {n for n in found if n not in results and all(u in found for u in users[n])}
    return {node: None if node in inner else value for node, value in found.items()}


def _eval(node: Node, env: Mapping[Node, Any], symbols: dict[str, int]) -> Any:
    op = bound_op(node.op, symbols) if symbols else node.op
    try:
        return op.eval(*(env[i] for i in node.inputs))
    except IndexError as e:
        raise IndexError(f"%{node.name} = {e}{_origin(node)}") from e
    except (RuntimeError, TypeError) as e:
        got = ", ".join(f"{i.type!r}" for i in node.inputs)
        raise RuntimeError(f"%{node.name} = {op.kind}({got}){_origin(node)}: {e}") from e


def _origin(node: Node) -> str:
    return f" ({node.note.origin})" if node.note.origin else ""


def _last_uses(graph: Graph, order: list[Node]) -> dict[int, list[Node]]:
    """Which values are not needed after each position."""
    last = {node: k for k, node in enumerate(order)}
    for k, node in enumerate(order):
        for i in node.inputs:
            last[i] = k
    for node in graph.results:
        last.pop(node, None)
    table: dict[int, list[Node]] = {}
    for node, k in last.items():
        table.setdefault(k, []).append(node)
    return table


def bind_inputs(
    graph: Graph, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None
) -> dict[Node, Any]:
    """The values of the graph's parameters, checked against their declarations."""
    if len(inputs) != len(graph.inputs):
        takes = ", ".join(f"%{n.name}: {n.tensor!r}" for n in graph.inputs) or "none"
        count = f"{len(graph.inputs)} input{'s' * (len(graph.inputs) != 1)}"
        raise InputError(f"expected {count} ({takes}), got {len(inputs)}")
    if state is None:
        state = [n.op.value for n in graph.initial if isinstance(n.op, Const)]
    if len(state) != len(graph.state):
        raise InputError(f"expected {len(graph.state)} state values, got {len(state)}")
    env: dict[Node, Any] = {}
    for node, value in zip(graph.parameters, (*inputs, *state), strict=True):
        check_input(node, value)
        env[node] = value
    return env


def check_input(node: Node, value: Any) -> None:
    """Raises InputError when kind, rank, a fixed dimension or the dtype differs."""
    import torch

    declared: TensorType = node.tensor
    if not isinstance(value, torch.Tensor):
        got = f"{type(value).__module__}.{type(value).__name__}"
        raise InputError(f"input %{node.name}: expected a torch tensor {declared!r}, got {got}")
    shape, dtype = tuple(value.shape), value.dtype
    fits = len(shape) == declared.rank and all(
        isinstance(d, Sym) or d == s for d, s in zip(declared.shape, shape, strict=True)
    )
    if not fits or dtype != declared.dtype.torch:
        got = f"{str(dtype).removeprefix('torch.')}{list(shape)}".replace(" ", "")
        raise InputError(f"input %{node.name}: expected {declared!r}, got {got}")


def bind_symbols(graph: Graph, env: Mapping[Node, Any]) -> dict[str, int]:
    """The value of each named dimension, from the inputs' actual shapes."""
    symbols: dict[str, int] = {}
    for node in graph.parameters:
        for dim, size in zip(node.tensor.shape, env[node].shape, strict=True):
            if not isinstance(dim, Sym):
                continue
            if dim.expr.is_Symbol and symbols.setdefault(str(dim.expr), size) != size:
                known = symbols[str(dim.expr)]
                raise InputError(f"input %{node.name}: {dim!r} is {known} and {size} at once")
            if size < dim.min or (dim.max is not None and size > dim.max):
                limits = f"{dim.min}..{dim.max or ''}"
                raise InputError(f"input %{node.name}: expected {dim!r} in {limits}, got {size}")
    return symbols
