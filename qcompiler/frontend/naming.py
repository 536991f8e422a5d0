"""Names and origins of nodes: readable, unique, and the same on every machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import fx

from qcompiler.graph import Graph, Node

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
SHORT = {
    "_to_copy": "to",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "scaled_dot_product_attention": "attention",
    "_unsafe_view": "view",
    "__and__": "and",
    "__or__": "or",
}
"""Names that read better than PyTorch's internal ones."""


@dataclass(frozen=True)
class Site:
    """Where a call stands: the base of its nodes' names, and its origin."""

    name: str
    origin: str


def clean(name: str) -> str:
    """The name with every character that a dump cannot hold replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name) or "x"


def op_name(target: object) -> str:
    """`add` of `aten.add.Tensor`."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    return SHORT.get(name, name.strip("_"))


class Sites:
    """Names each call after its module: `layer1.0.conv1`, `layer1.0.add`."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self.calls = Counter(_call_key(n) for n in nodes if _counts(n))

    def of(self, node: fx.Node) -> Site:
        path, leaf = module_of(node)
        alone = leaf and self.calls[_call_key(node)] == 1
        parts = [p for p in (path, "" if alone else op_name(node.target)) if p]
        return Site(clean(".".join(parts)), origin_of(node))


def module_of(node: fx.Node) -> tuple[str, bool]:
    """Path of the innermost module of a call, and whether that is one of torch.nn's own."""
    stack = [v for v in (node.meta.get("nn_module_stack") or {}).values() if "." in str(v[1])]
    if not stack:
        return "", False
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return re.sub(r"@\d+", "", str(path)), kind.startswith("torch.nn.modules.")


def _call_key(node: fx.Node) -> str:
    """One call of one module; the second call of the same module has another key."""
    return str(next(reversed(list(node.meta.get("nn_module_stack") or {"": 0}))))


def _counts(node: fx.Node) -> bool:
    name = op_name(node.target)
    silent = name.startswith(("assert", "sym_", "getitem", "clone", "detach", "alias"))
    return node.op == "call_function" and not silent


def origin_of(node: fx.Node) -> str:
    """`layer1.0.conv1 resnet.py:92`: the module path and the user's innermost source line."""
    path, _ = module_of(node)
    frames = [(m["file"], m["line"]) for m in FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [f for f in frames if Path(f[0]).is_absolute()]
    own = [f for f in frames if not Path(f[0]).is_relative_to(TORCH)]
    where = [f"{Path(file).name}:{line}" for file, line in (own or frames)[-1:]]
    return " ".join([p for p in (path, *where) if p])


TORCH = Path(torch.__file__).parent


def named_uniquely(graph: Graph) -> Graph:
    """The graph with `_1`, `_2`... added to names that occur more than once."""
    inputs = [n.name for n in graph.parameters]
    taken: set[str] = set()
    seen: Counter[str] = Counter()
    reserved = set(inputs)
    new: dict[Node, Node] = {}
    parameters = set(graph.parameters)
    for node in graph.nodes():
        name = node.name
        fixed = node in parameters and name not in taken
        while not fixed and (name in taken or name in reserved):
            seen[node.name] += 1
            name = f"{node.name}_{seen[node.name]}"
        taken.add(name)
        new[node] = replace(node, inputs=tuple(new[i] for i in node.inputs), name=name)
    return graph.rebuilt(new)
