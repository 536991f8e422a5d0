"""Trees: how a module nests its arguments and results, as text, read back without torch.

A tree is JSON: `{"tensor": k}` is input (or output) number k of the graph, `{"value": v}` a
Python constant, `{"tuple": [...]}`, `{"list": [...]}` and `{"dict": [[key, tree], ...]}` the
containers (a key that is a list here is a tuple), and
`{"class": "package.module:Name", "fields": [[name, tree], ...]}` a dataclass, namedtuple or
similar.
The tree of arguments is always a tuple of the positional ones' tuple and the keyword ones' dict.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class TreeError(ValueError):
    """Arguments that are not nested as the model's example inputs were."""


def unflatten(text: str, tensors: Sequence[Any]) -> Any:
    """The module's own result: containers as traced, `tensors[k]` in place of tensor k.

    A class becomes itself where its module is loaded, else a dict of its fields.
    """
    return _build(json.loads(text), tensors)


def flatten(text: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
    """The graph's inputs, in order, out of a call's arguments.

    Raises TreeError when the nesting differs from the traced one, or a Python constant does.
    """
    kwargs = dict(kwargs or {})
    positional, keyword = (_children(tree) for _, tree in _children(json.loads(text)))
    names = [str(key) for key, _ in keyword]
    if len(args) != len(positional) or set(kwargs) != set(names):
        raise TreeError(
            f"expected {_arguments(len(positional), names)}, as the model was traced with, "
            f"got {_arguments(len(args), list(kwargs))}"
        )
    found: dict[int, Any] = {}
    for key, child in positional:
        _walk(child, args[key], f"argument {key}", found)
    for key, child in keyword:
        _walk(child, kwargs[key], f"argument {key}", found)
    return [found[k] for k in sorted(found)]


def _arguments(count: int, names: Sequence[str]) -> str:
    by_name = f" and {', '.join(names)} by keyword" if names else ""
    return f"{count} positional argument{'s' * (count != 1)}{by_name}"


def _build(tree: Mapping[str, Any], tensors: Sequence[Any]) -> Any:
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "value" in tree:
        return tree["value"]
    for kind, make in (("tuple", tuple), ("list", list)):
        if kind in tree:
            return make([_build(t, tensors) for t in tree[kind]])
    if "dict" in tree:
        return {_key(key): _build(t, tensors) for key, t in tree["dict"]}
    fields = {name: _build(t, tensors) for name, t in tree["fields"]}
    cls = _class(tree["class"])
    named = all(isinstance(name, str) for name in fields)
    return cls(**fields) if isinstance(cls, type) and named else fields


def _class(path: str) -> Any:
    """The class, if its module is loaded: reading a tree imports nothing."""
    module, _, name = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _walk(tree: Mapping[str, Any], value: Any, path: str, found: dict[int, Any]) -> None:
    if "tensor" in tree:
        found[tree["tensor"]] = value
        return
    if "value" in tree:
        if value != tree["value"]:
            raise TreeError(
                f"{path}: the model was traced for the constant {tree['value']!r}, got {value!r}; "
                "trace it again for another value"
            )
        return
    for key, child in _children(tree):
        _walk(child, _part(value, key, path), f"{path}[{key!r}]", found)
    given = len(value) if isinstance(value, Sequence | Mapping) else len(_children(tree))
    if given != len(_children(tree)):
        raise TreeError(f"{path}: expected {len(_children(tree))} items, got {given}")


def _children(tree: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    for kind in ("tuple", "list"):
        if kind in tree:
            return list(enumerate(tree[kind]))
    return [(_key(key), child) for key, child in tree.get("dict", tree.get("fields", []))]


def _key(key: Any) -> Any:
    """JSON has no tuples, and a list is no key."""
    return tuple(map(_key, key)) if isinstance(key, list) else key


def _part(value: Any, key: Any, path: str) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        pass
    if isinstance(key, str) and hasattr(value, key):
        return getattr(value, key)
    got = type(value).__name__
    if isinstance(value, Mapping) and value:
        got += f" of {', '.join(map(str, value))}"
    elif isinstance(value, list | tuple):
        got += f" of {len(value)}"
    raise TreeError(f"{path}: expected an item {key!r}, got {got}")
