"""Regions that set a mode (no_grad, autocast): their operations keep the places they come from.

torch.export puts such a region into a module of its own, whose nodes know their places. Taking the
program apart inlines it, and then the place of each of its nodes is a line of generated code,
`sort = torch.ops.aten.sort.default(erfinv)`, which still begins with the name of the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

Places = Mapping[str, Mapping[str, Any]]  # name of a node -> what says where it is from

PLACE = ("stack_trace", "nn_module_stack")
GENERATED = re.compile(r'File "<eval_with_key>[^\n]*\n\s*(\w+)[^\n]*\Z')


def places_of(root: fx.GraphModule) -> Places:
    """The places of all nodes of all regions, by name; the export gives each node its own."""
    found: dict[str, Mapping[str, Any]] = {}
    for node in _inside(root):
        known = {key: node.meta[key] for key in PLACE if node.meta.get(key)}
        if "stack_trace" in known:
            found.setdefault(node.name, known)
    return found


def _inside(root: fx.GraphModule) -> Iterator[fx.Node]:
    for module in root.modules():
        if isinstance(module, fx.GraphModule) and module is not root:
            yield from module.graph.nodes


def put_back(root: fx.GraphModule, places: Places) -> None:
    """Nodes that come from generated code get the place of the node that the code was made of."""
    for node in root.graph.nodes:
        line = GENERATED.search((node.meta.get("stack_trace") or "").rstrip())
        node.meta.update(places.get(line[1], {}) if line else {})
