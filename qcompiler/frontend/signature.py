"""The export signature: which placeholder is a weight, a state or an input, and the trees."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)  # fmt: skip

from qcompiler.frontend.errors import TraceError

LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of an exported program, by placeholder and node name.

    weights: placeholder -> (qualified name, tensor). states: placeholder -> output node of the
    buffers a call updates. inputs, outputs: the user's leaves in order; a str is a placeholder or
    node name, anything else is wrapped in `Constant`.
    """

    weights: dict[str, tuple[str, torch.Tensor]]
    states: dict[str, str]
    inputs: tuple[str | Constant, ...]
    outputs: tuple[str | Constant, ...]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A leaf that is a plain Python value."""

    value: Any


def signature_of(program: ExportedProgram) -> Signature:
    """Raises TraceError for what no graph can express: updated inputs, custom objects.

    Tokens, which keep ops with effects in order, are left out: such ops have no row and are refused
    one by one.
    """
    specs = program.graph_signature
    targets = {s.target: s.arg.name for s in specs.input_specs if s.kind is InputKind.BUFFER}
    weights = {
        s.arg.name: (str(s.target), _tensor(program, s))
        for s in specs.input_specs
        if s.kind in LIFTED
    }
    states: dict[str, str] = {}
    outputs: list[str | Constant] = []
    for out in specs.output_specs:
        if out.kind is OutputKind.BUFFER_MUTATION:
            states[targets[out.target]] = out.arg.name
        elif out.kind is OutputKind.USER_OUTPUT:
            outputs.append(_leaf(out))
        elif out.kind is not OutputKind.TOKEN:
            raise TraceError(_unsupported(out))
    ours = [s for s in specs.input_specs if s.kind not in (*LIFTED, InputKind.TOKEN)]
    inputs = tuple(map(_leaf, ours))
    return Signature(weights, states, inputs, tuple(outputs))


def _unsupported(out: OutputSpec) -> str:
    if out.kind is OutputKind.USER_INPUT_MUTATION:
        return (
            f"the model writes into its input {out.target!r}; a compiled model leaves its inputs "
            "alone: clone the input first, or return the new value"
        )
    kind = out.kind.name.lower().replace("_", " ")
    return f"the exported program has an output of the kind {kind!r}, which is not supported"


def _leaf(spec: InputSpec | OutputSpec) -> str | Constant:
    if isinstance(spec.arg, ConstantArgument):
        return Constant(spec.arg.value)
    if isinstance(spec.arg, TensorArgument):
        return spec.arg.name
    kind = type(spec.arg).__name__.removesuffix("Argument")
    raise TraceError(
        f"{spec.arg.name!r} is an input or output of the kind {kind}; tensors and Python constants "
        "are supported"
    )


def _tensor(program: ExportedProgram, spec: InputSpec) -> torch.Tensor:
    name = str(spec.target)
    for table in (program.state_dict, program.constants):
        if name in table and isinstance(table[name], torch.Tensor):
            tensor: torch.Tensor = table[name]
            return tensor
    raise TraceError(f"the exported program names {name!r} but holds no such tensor")


def input_tree(program: ExportedProgram, signature: Signature) -> str:
    return _tree(program.call_spec.in_spec, signature.inputs)


def output_tree(program: ExportedProgram, signature: Signature) -> str:
    return _tree(program.call_spec.out_spec, signature.outputs)


def _tree(spec: pytree.TreeSpec, leaves: tuple[str | Constant, ...]) -> str:
    """The tree as text (see trees.py); every tensor leaf has its own number."""
    count = iter(range(len(leaves)))
    shown: list[dict[str, Any]] = [
        {"value": leaf.value} if isinstance(leaf, Constant) else {"tensor": next(count)}
        for leaf in leaves
    ]
    tree = _describe(spec, iter(shown))
    return json.dumps(tree, separators=(",", ":"), default=repr)


def _describe(spec: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    if spec.is_leaf():
        return next(leaves)
    children = [_describe(child, leaves) for child in spec.children()]
    kind = spec.type
    if kind in (tuple, list):
        return {kind.__name__: children}
    pairs = [[_key(k), c] for k, c in zip(_keys(spec), children, strict=True)]
    if isinstance(kind, type) and issubclass(kind, dict) and kind.__module__ in PLAIN:
        return {"dict": pairs}
    owner = spec.context if kind is pytree.namedtuple else kind  # type: ignore[attr-defined]
    return {"class": f"{owner.__module__}:{owner.__qualname__}", "fields": pairs}


PLAIN = ("builtins", "collections")


def _key(key: Any) -> Any:
    """The key as JSON holds it; a tuple becomes a list."""
    if key is None or type(key) in (bool, int, float, str):
        return key
    if isinstance(key, tuple):
        return [_key(k) for k in key]
    raise TraceError(
        f"an argument or a result is a dict with the key {key!r}; keys may be strings, numbers, "
        "None and tuples of them: use one of these in the model"
    )


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    """Keys of a dict, fields of a namedtuple or dataclass; numbers where the class tells none."""
    context, count = spec.context, spec.num_children
    if isinstance(context, type) and hasattr(context, "_fields"):
        return list(context._fields)
    nested = isinstance(context, list | tuple) and bool(context)
    nested = nested and isinstance(context[-1], list)
    if nested and isinstance(context[0], list | tuple) and len(context[0]) == count:
        context = context[0]
    elif nested and len(context[-1]) == count:
        context = context[-1]
    keys = list(context) if isinstance(context, list | tuple) else []
    return keys if len(keys) == count else list(range(count))


def register_dataclasses(value: Any) -> None:
    """Tell torch how to take apart the dataclasses in a value, for this process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        if cls not in pytree.SUPPORTED_NODES:
            name = f"{cls.__module__}.{cls.__qualname__}"
            torch.export.register_dataclass(cls, serialized_type_name=name)
        parts: Any = [getattr(value, f.name) for f in dataclasses.fields(value)]
    else:
        parts = value.values() if isinstance(value, dict) else value
    if isinstance(parts, list | tuple) or isinstance(value, dict):
        for part in parts:
            register_dataclasses(part)


Hook = Callable[[torch.nn.Module, Any, Any], None]


def on_result(_: torch.nn.Module, __: Any, result: Any) -> None:
    """A forward hook: the result's dataclasses are known before torch takes it apart."""
    register_dataclasses(result)
