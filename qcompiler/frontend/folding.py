"""Folding at import: a call whose operands are all constant is made at once, by PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Value, folds
from qcompiler.frontend.errors import Absent
from qcompiler.graph import Node
from qcompiler.types import Sym

aten = torch.ops.aten

SAME_VALUE = frozenset({
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default,
    aten.detach_.default, aten.lift_fresh_copy.default, aten.lift_fresh.default,
    aten.positive.default, aten.resolve_conj.default, aten.resolve_neg.default,
})  # fmt: skip
"""Ops that give their operand."""

VIEWS = frozenset({aten.expand.default, aten.broadcast_to.default, aten.expand_as.default})
"""Ops whose result needs no memory, however large it is."""

LAYOUT = frozenset({
    aten.t.default, aten.transpose.int, aten.permute.default, aten.view.default,
    aten.reshape.default, aten.squeeze.dim, aten.unsqueeze.default, aten._to_copy.default,
})  # fmt: skip
"""Ops after which a weight is still the weight, and keeps its name."""


def folded(b: Builder, target: Any, args: Sequence[Any]) -> Value | None:
    """The call's result as constants, or None when it must be an operation of the graph."""
    if not isinstance(target, torch._ops.OpOverload) or target in SAME_VALUE:
        return None
    operands = [a for a in flat(args) if isinstance(a, Node)]
    values = [b.known[i] for i in operands if i in b.known]
    if len(values) < len(operands) or _random(target) or not _complete(args):
        return None
    for expected in b.expected:
        if expected is None or not expected.static:
            return None
        if target not in VIEWS and not folds(expected.shape, values):
            return None
    with torch.no_grad():
        result = _made(target, args, b.known)
    like = operands if target in LAYOUT else ()
    if isinstance(result, list | tuple):
        return tuple(b.value(r, like=like) for r in result)
    return b.value(result, like=like)


def _made(target: torch._ops.OpOverload, args: Sequence[Any], known: Mapping[Node, Any]) -> Any:
    """The call itself; `args` is in the schema's order, keyword-only arguments included."""
    position, named = [], {}
    for argument, value in zip(target._schema.arguments, args, strict=True):
        if argument.kwarg_only:
            named[argument.name] = _real(value, known)
        else:
            position.append(_real(value, known))
    return target(*position, **named)


def _real(argument: Any, known: Mapping[Node, torch.Tensor]) -> Any:
    if isinstance(argument, list | tuple):
        return [_real(a, known) for a in argument]
    return known[argument] if isinstance(argument, Node) else argument


def flat(args: Iterable[Any]) -> list[Any]:
    return [x for a in args for x in (flat(a) if isinstance(a, list | tuple) else [a])]


def _complete(args: Iterable[Any]) -> bool:
    """Whether no argument is a symbolic size or a value that could not be made."""
    return not any(isinstance(a, Sym | Absent) for a in flat(args))


def _random(target: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags
