"""The rewrite driver: rules applied bottom-up until none fires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

from qcompiler.context import Context
from qcompiler.graph import EMPTY, Graph, Node
from qcompiler.types import TensorType

MAX_SWEEPS = 100  # a rule set that still fires after this many sweeps does not terminate
MAX_GROWTH = 20  # times the nodes of the graph, plus 1000: more than that is no rewrite


@dataclass(frozen=True)
class Miss:
    """A rule that almost matched says why it did not."""

    reason: str


Rule = Callable[[Node, "Sweep"], Union[Node, Miss, None]]  # noqa: UP007


class RewriteError(ValueError):
    """A rule changed the type of the value it rewrote, or the rules do not terminate."""


@dataclass(frozen=True)
class Sweep:
    """What a rule may know beside the node: the context, and who else uses a node."""

    ctx: Context
    uses: dict[Node, int] = field(default_factory=dict)

    def only_use(self, node: Node) -> bool:
        """Whether the node feeds one operand of one user and is no output itself."""
        return self.uses.get(node, 1) == 1


def rewrite(graph: Graph, rules: Sequence[Rule], ctx: Context) -> Graph:
    """Apply the rules to every node, inputs first, until a sweep changes nothing.

    The root of a rewrite computes the same value, so it keeps the name and note of the node it
    replaces. Raises RewriteError when a rule changes a type or the rules do not terminate.
    """
    limit = MAX_GROWTH * len(graph.nodes()) + 1000
    for _ in range(MAX_SWEEPS):
        swept = _sweep(graph, rules, ctx)
        if swept is graph:
            return named(graph)
        if len(swept.nodes()) > limit:
            break
        graph = swept
    names = ", ".join(rule.__name__ for rule in rules)
    raise RewriteError(f"rules still fire after {MAX_SWEEPS} sweeps or {limit} nodes: {names}")


def _sweep(graph: Graph, rules: Sequence[Rule], ctx: Context) -> Graph:
    users = graph.users()
    uses = {node: len(users[node]) for node in users}
    for node in (*graph.results, *graph.initial):
        uses[node] += 1
    new: dict[Node, Node] = {}
    sweep = Sweep(ctx, {})
    changed = False
    for node in users:
        current = node.with_inputs([new[i] for i in node.inputs])
        result = _apply(current, rules, sweep)
        changed |= result is not node
        new[node] = result
        sweep.uses[result] = sweep.uses.get(result, 0) + uses[node]
    return graph.rebuilt(new) if changed else graph


def _apply(node: Node, rules: Sequence[Rule], sweep: Sweep) -> Node:
    """The node after the first rule that fires; the next sweep sees the result again."""
    for rule in rules:
        result = rule(node, sweep)
        if isinstance(result, Miss):
            sweep.ctx.emit("missed", rule, node, result.reason)
        elif result is not None and result is not node:
            _same_type(rule, node, result)
            sweep.ctx.emit("applied", rule, node, result)
            return adopt(result, node)
    return node


def _same_type(rule: Rule, before: Node, after: Node) -> None:
    (a, b) = (before.type, after.type)
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        (a, b) = (replace(a, quant=None), replace(b, quant=None))
    if a != b:
        text = f"rule {rule.__name__} at {before!r}: expected {a!r}, got {b!r}"
        raise RewriteError(f"{text}; a rule must keep the type of the value")


def adopt(root: Node, source: Node) -> Node:
    """Name the new nodes of a rewrite after the node they replace; its root takes its note."""
    if root.name:
        return root
    new: dict[Node, Node] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = [i for i in node.inputs if not i.name and i not in new]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        if node not in new:
            new[node] = _adopted(node, node is root, source, [new.get(i, i) for i in node.inputs])
    return new[root]


def _adopted(node: Node, is_root: bool, source: Node, inputs: Sequence[Node]) -> Node:
    name = source.name if is_root else f"{source.name}.{node.op.kind}"
    note = node.note
    if note is EMPTY:
        note = source.note if is_root else replace(EMPTY, origin=source.note.origin)
    return replace(node, inputs=tuple(inputs), name=name, note=note)


def named(graph: Graph) -> Graph:
    """Every node with a name of its own: a clash or a missing one gets a counter."""
    taken: set[str] = set()
    fresh: dict[str, int] = {}
    fixed = {id(n) for n in graph.parameters}
    taken.update(n.name for n in graph.parameters)
    new: dict[Node, Node] = {}
    for node in graph.nodes():
        base = node.name or node.op.kind
        name = base
        while name in taken and id(node) not in fixed:
            fresh[base] = fresh.get(base, 1) + 1
            name = f"{base}_{fresh[base]}"
        taken.add(name)
        inputs = tuple(new[i] for i in node.inputs)
        same = name == node.name and all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        new[node] = node if same else replace(node, name=name, inputs=inputs)
    return graph.rebuilt(new) if any(new[n] is not n for n in new) else graph


def equation(rule: Any) -> str:
    """The first line of a rule's docstring."""
    text: str = rule.__doc__ or rule.__name__
    return text.strip().splitlines()[0]
