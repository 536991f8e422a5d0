"""Calibration data: items as a user has them, cut into pieces of the traced batch size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qcompiler.arrays import device_problem, layout_problem
from qcompiler.errors import InputError
from qcompiler.graph import Graph, Node
from qcompiler.interpret import bind_symbols, check_input
from qcompiler.ops import settled
from qcompiler.stats import UNBOUNDED
from qcompiler.types import Dim, Sym, TensorType, bind

if TYPE_CHECKING:
    import torch

    Piece = tuple[torch.Tensor, ...]

PAIR_HINT = (
    "if the items are (image, label) pairs, as a DataLoader yields them, pass the inputs only: "
    "[x for x, _ in loader]"
)


READABLE = ("cpu", "cuda")  # devices that tensors are copied from


class DataError(ValueError):
    """Calibration data that is missing, does not fit the model's inputs, or is not finite."""


def cut_items(data: Iterable[Any] | None, graph: Graph) -> Iterator[list[Piece]]:
    """The pieces of one item after the other; a piece is one tensor per graph input.

    An item is a tensor, a tuple or list (positional, nested as the module's arguments are) or a
    mapping (by input name), of torch or numpy arrays. It is cut along axis 0 into pieces of the
    traced batch size, 1 where that is symbolic; an input that has just its traced size goes with
    every piece. No more than one item is held. Raises DataError naming item, input and cure.
    """
    empty = True
    for number, item in enumerate(items_of(data, graph)):
        empty = False
        values = _values(item, graph, f"calibration item {number}")
        yield list(_cut(values, graph, f"calibration item {number}"))
    if empty:
        raise DataError(
            "calibration data is empty: expected at least one item; an iterator that was used "
            "before is empty, too"
        )


def pieces(data: Iterable[Any] | None, graph: Graph) -> Iterator[Piece]:
    """All pieces of all items, in order; see `cut_items`."""
    for item in cut_items(data, graph):
        yield from item


def items_of(data: Iterable[Any] | None, graph: Graph) -> Iterable[Any]:
    """A bare mapping, or a bare tensor of the first input's rank, is taken as the one item."""
    if data is None:
        return ()
    if isinstance(data, Mapping):
        return (data,)
    rank = getattr(data, "ndim", None)
    if rank is not None and graph.inputs and rank == graph.inputs[0].tensor.rank:
        return (data,)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise DataError(
            f"calibration data: expected an iterable of tensors, tuples or mappings, "
            f"got {type(data).__name__}"
        )
    return data


def _values(item: Any, graph: Graph, where: str) -> list[torch.Tensor]:
    """One tensor per graph input, checked for kind and finite values."""
    inputs = graph.inputs
    leaves = _by_name(item, inputs, where) if isinstance(item, Mapping) else _leaves(item)
    if len(leaves) != len(inputs):
        takes = ", ".join(map(_declared, inputs)) or "nothing"
        raise DataError(
            f"{where}: expected {_plural(len(inputs), 'input')} ({takes}), "
            f"got {_plural(len(leaves), 'value')}; {PAIR_HINT}"
        )
    return [_checked(v, node, where) for v, node in zip(leaves, inputs, strict=True)]


def _leaves(item: Any) -> list[Any]:
    """Positional values; nested arguments are flattened in the order of the module's own."""
    if not isinstance(item, tuple | list):
        return [item]
    return [leaf for part in item for leaf in _leaves(part)]


def _by_name(item: Mapping[str, Any], inputs: tuple[Node, ...], where: str) -> list[Any]:
    names = [node.name for node in inputs]
    unknown = [key for key in item if key not in names]
    missing = [name for name in names if name not in item]
    if unknown or missing:
        problem = f"unknown input {unknown[0]!r}" if unknown else f"no input {missing[0]!r}"
        raise DataError(f"{where}: {problem}; the model's inputs are {', '.join(names)}")
    return [item[name] for name in names]


def _checked(value: Any, node: Node, where: str) -> torch.Tensor:
    import numpy as np
    import torch

    if isinstance(value, np.ndarray | np.generic):
        try:
            value = torch.from_numpy(np.array(value))
        except TypeError:
            got = f"an array of {value.dtype}"
            raise DataError(
                f"{where}, input {_declared(node)}: expected an array of numbers, got {got}"
            ) from None
    if not isinstance(value, torch.Tensor):
        got = type(value).__name__
        raise DataError(f"{where}, input {_declared(node)}: expected a tensor or array, got {got}")
    problem = device_problem(value, READABLE) or layout_problem(value)
    if problem:
        raise DataError(f"{where}, input {_declared(node)}: {problem}")
    found: torch.Tensor = value.detach().cpu()
    if found.is_floating_point() and not bool(found.isfinite().all()):
        what = "NaN" if bool(found.isnan().any()) else "inf"
        raise DataError(
            f"{where}, input {_declared(node)}: expected finite values, got {what}; "
            f"drop the item or repair it"
        )
    # Large negative values are how masks are written; ranges leave them out.
    if found.is_floating_point() and bool((found >= UNBOUNDED).any()):
        raise DataError(
            f"{where}, input {_declared(node)}: expected values below 2^100, got "
            f"{float(found.max()):.3g}; scale the inputs"
        )
    return found


def _cut(values: list[torch.Tensor], graph: Graph, where: str) -> Iterator[Piece]:
    sizes = _piece_sizes(graph)
    counts = [
        _count(value, node, size, where)
        for value, node, size in zip(values, graph.inputs, sizes, strict=True)
    ]
    count = max(counts, default=1)
    for found, node in zip(counts, graph.inputs, strict=True):
        if found not in (1, count):
            raise DataError(
                f"{where}, input {_declared(node)}: expected {count} pieces along axis 0 as the "
                f"other inputs have, got {found}"
            )
    for k in range(count):
        piece = tuple(
            settled(value if found == 1 else value[k * size : (k + 1) * size])
            for value, found, size in zip(values, counts, sizes, strict=True)
        )
        yield _fitting(piece, graph, where)


def _count(value: torch.Tensor, node: Node, size: int, where: str) -> int:
    """How many pieces of `size` the value makes."""
    declared = node.tensor
    if value.ndim != declared.rank or declared.rank == 0:
        _fits(node, value, where)
        return 1
    found = value.shape[0]
    if found == 0 or found % size:
        raise DataError(
            f"{where}, input {_declared(node)}: axis 0 has {found}, expected a multiple of "
            f"{_multiple(declared.shape[0], size)}"
        )
    return found // size


def _multiple(dim: Dim, size: int) -> str:
    """What a piece holds, and what to do about an item that has no whole number of pieces."""
    drop = "drop the rest (DataLoader: drop_last=True)"
    if isinstance(dim, int):
        return f"the traced batch size {size}; {drop} or trace with a symbolic batch"
    cure = f"put {size} samples in an item" if size > 1 else "leave empty items out"
    return (
        f"{size}, the least {dim!r} that the model was traced for; {cure}, {drop}, or trace with "
        "a smaller min in its torch.export.Dim"
    )


def _piece_sizes(graph: Graph) -> list[int]:
    """The size of axis 0 that each input has in a piece; symbols of axis 0 take their least."""
    symbols: dict[str, int] = {}
    for node in graph.inputs:
        for dim in node.tensor.shape[:1]:
            if isinstance(dim, Sym) and dim.expr.is_Symbol:
                symbols[str(dim.expr)] = max(symbols.get(str(dim.expr), 1), dim.min)
    return [_size(node.tensor, symbols) for node in graph.inputs]


def _size(declared: TensorType, symbols: dict[str, int]) -> int:
    dim: Dim = declared.shape[0] if declared.rank else 1
    if isinstance(dim, Sym) and not {str(s) for s in dim.expr.free_symbols} <= set(symbols):
        return max(dim.min, 1)
    return bind(dim, symbols)


def _fitting(piece: Piece, graph: Graph, where: str) -> Piece:
    for node, value in zip(graph.inputs, piece, strict=True):
        _fits(node, value, where)
    try:
        bind_symbols(graph, dict(_bound(graph, piece)))
    except InputError as e:
        raise DataError(f"{where}: {e}") from e
    return piece


def _bound(graph: Graph, piece: Piece) -> Iterator[tuple[Node, torch.Tensor]]:
    yield from zip(graph.inputs, piece, strict=True)
    for (node, _), first in zip(graph.state, graph.initial, strict=True):
        yield node, first.op.eval()


def _fits(node: Node, value: torch.Tensor, where: str) -> None:
    try:
        check_input(node, value)
    except InputError as e:
        raise DataError(f"{where}: {e}; {_cure(node, value)}") from e


def _cure(node: Node, value: torch.Tensor) -> str:
    declared = node.tensor
    if value.ndim == declared.rank - 1:
        return "an item has a batch axis: use x[None]"
    if value.dtype != declared.dtype.torch:
        return f"convert it with .to(torch.{declared.dtype.value}); {PAIR_HINT}"
    return "calibrate on inputs shaped as those that were traced"


def _declared(node: Node) -> str:
    return f"%{node.name}: {node.tensor!r}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
