"""The graph: an immutable DAG of nodes with one output each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from qcompiler.types import DType, Scheme, TensorType, TupleType, Type

if TYPE_CHECKING:
    from qcompiler.op import Op
    from qcompiler.stats import Stats


class Level(IntEnum):
    """What a graph may hold; see verify.py for the spec of each level."""

    FLOAT = 0
    CALIBRATED = 1
    PLANNED = 2
    QDQ = 3
    INTEGER = 4
    FUSED = 5


@dataclass(frozen=True)
class Note:
    """What is known about a node beside its type.

    stats and scheme are about its value; precision is the dtype it is to compute in, once
    assigned, and reason says in words why that is float.
    """

    stats: Stats | None = None
    scheme: Scheme | None = None
    precision: DType | None = None
    reason: str = ""
    origin: str = ""


EMPTY = Note()


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One operation applied to other nodes. Identity is the object, never its contents."""

    op: Op
    inputs: tuple[Node, ...]
    type: Type
    name: str = ""
    note: Note = field(default=EMPTY)

    __match_args__ = ("op", "inputs")

    def __repr__(self) -> str:
        args = ", ".join(f"%{i.name}" for i in self.inputs)
        return f"%{self.name} = {self.op!r}({args}) : {self.type!r}"

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: object) -> Node:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Through a graph, whose table is flat: what is deep must not recurse."""
        return _only_output, (Graph((), (self,)),)

    @property
    def tensor(self) -> TensorType:
        """The type of a node that has a single result."""
        if isinstance(self.type, TupleType):
            raise TypeError(f"%{self.name} ({self.op.kind}) has several results; use Get")
        return self.type

    def with_note(self, **changes: Any) -> Node:
        return replace(self, note=replace(self.note, **changes))

    def with_inputs(self, inputs: Sequence[Node]) -> Node:
        """The same operation on other inputs; its type is inferred again."""
        inputs = tuple(inputs)
        if len(inputs) == len(self.inputs) and all(map(_is, inputs, self.inputs)):
            return self
        return replace(self, inputs=inputs, type=self.op.type_of(inputs))


def _only_output(graph: Graph) -> Node:
    return graph.outputs[0]


def _is(a: object, b: object) -> bool:
    return a is b


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A function from inputs to outputs.

    state: pairs (input, output) of buffers that a call updates, donated at run time; these
    inputs and outputs are not among `inputs` and `outputs`, they come after them in a call.
    in_tree, out_tree: the module's own signature (pytree specs as text), kept for call_tree.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    state: tuple[tuple[Node, Node], ...] = ()
    level: Level = Level.FLOAT
    target: str = ""
    recipe: str = ""
    trees: tuple[str, str] = ("", "")
    initial: tuple[Node, ...] = ()  # Const nodes: the state's values before the first call

    def __str__(self) -> str:
        from qcompiler.text import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        count = len(self.nodes())
        return f"<Graph @{self.level.name.lower()}: {len(self.inputs)} inputs, {count} nodes>"

    @property
    def parameters(self) -> tuple[Node, ...]:
        """All inputs of a call: the user's, then the state's."""
        return self.inputs + tuple(i for i, _ in self.state)

    @property
    def results(self) -> tuple[Node, ...]:
        """All outputs of a call: the user's, then the updated state's."""
        return self.outputs + tuple(o for _, o in self.state)

    def nodes(self) -> list[Node]:
        """Every node once, inputs before users; the same graph gives the same order."""
        return toposort((*self.parameters, *self.results, *self.initial))

    def users(self) -> dict[Node, list[Node]]:
        """The users of each node, in topological order; a user appears once per operand."""
        table: dict[Node, list[Node]] = {node: [] for node in self.nodes()}
        for node in table:
            for i in node.inputs:
                table[i].append(node)
        return table

    def rebuilt(self, new: Mapping[Node, Node], **changes: Any) -> Graph:
        """The graph with each root node replaced by its counterpart in `new`."""

        def of(node: Node) -> Node:
            return new.get(node, node)

        fields: dict[str, Any] = {
            "inputs": tuple(map(of, self.inputs)),
            "outputs": tuple(map(of, self.outputs)),
            "state": tuple((of(i), of(o)) for i, o in self.state),
            "initial": tuple(map(of, self.initial)),
        }
        return replace(self, **(fields | changes))

    def map(self, change: Callable[[Node], Node], **changes: Any) -> Graph:
        """Rebuild bottom-up: `change` gets each node with its inputs already changed."""
        new: dict[Node, Node] = {}
        for node in self.nodes():
            new[node] = change(node.with_inputs([new[i] for i in node.inputs]))
        return self.rebuilt(new, **changes)

    def noted(self, notes: Mapping[Node, Note]) -> Graph:
        """The same graph with another note on some nodes."""
        new: dict[Node, Node] = {}
        for node in self.nodes():
            inputs = tuple(new[i] for i in node.inputs)
            note = notes.get(node, node.note)
            same = note is node.note and all(map(_is, inputs, node.inputs))
            new[node] = node if same else replace(node, inputs=inputs, note=note)
        return self.rebuilt(new)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy as a flat table: deep graphs must not recurse."""
        nodes = self.nodes()
        index = {node: k for k, node in enumerate(nodes)}
        rows = [(n.op, [index[i] for i in n.inputs], n.type, n.name, n.note) for n in nodes]
        roots = {
            "inputs": [index[n] for n in self.inputs],
            "outputs": [index[n] for n in self.outputs],
            "state": [(index[i], index[o]) for i, o in self.state],
            "initial": [index[n] for n in self.initial],
        }
        rest = (self.level, self.target, self.recipe, self.trees)
        return {"rows": rows, "roots": roots, "rest": rest}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        nodes: list[Node] = []
        for op, inputs, type_, name, note in saved["rows"]:
            nodes.append(Node(op, tuple(nodes[i] for i in inputs), type_, name, note))
        roots = saved["roots"]
        fields = {
            "inputs": tuple(nodes[k] for k in roots["inputs"]),
            "outputs": tuple(nodes[k] for k in roots["outputs"]),
            "state": tuple((nodes[i], nodes[o]) for i, o in roots["state"]),
            "initial": tuple(nodes[k] for k in roots["initial"]),
        }
        names = ("level", "target", "recipe", "trees")
        for name, value in (fields | dict(zip(names, saved["rest"], strict=True))).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Program:
    """Graphs that share constants, by entry name; most models have one, "main"."""

    graphs: Mapping[str, Graph]

    @property
    def main(self) -> Graph:
        return self.graphs["main"]


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Depth-first post-order without recursion; operands in order, so it is deterministic."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in roots:
        if root in done:
            continue
        stack: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.inputs))]
        done.add(root)
        while stack:
            node, rest = stack[-1]
            fresh = next((i for i in rest if i not in done), None)
            if fresh is None:
                order.append(node)
                stack.pop()
            else:
                done.add(fresh)
                stack.append((fresh, iter(fresh.inputs)))
    return order


def reachable(outputs: Iterable[Node]) -> set[Node]:
    return set(toposort(outputs))
