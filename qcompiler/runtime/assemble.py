"""A bundle from what the compiler made, and the graph's constants back from a bundle."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qcompiler.runtime.bundle import (
    CONSTANTS,
    GRAPH,
    KERNELS,
    LIBRARY,
    REPORT,
    Bundle,
    numpy_dtype,
)  # fmt: skip
from qcompiler.runtime.manifest import Entry, Manifest, Spec, Stored
from qcompiler.runtime.pages import together

if TYPE_CHECKING:
    import torch

    from qcompiler.graph import Graph, Node
    from qcompiler.types import Sym

INDEX_MAX = 2**31 - 1 - 1024
"""Elements of a tensor on a device: its threads, up to 1024 past the last, have int32 indices."""


def bundle_of(
    library: Any, fused: Graph, integer: Graph, source: Graph | None, calibration: str | None
) -> Bundle:
    """See CompiledModel.of. Weights are copied: it keeps nothing of the graphs."""
    from safetensors.torch import save

    from qcompiler.report import describe
    from qcompiler.text import constants_of

    initial = [(n.op.digest, n.op.eval()) for n in fused.initial]  # type: ignore[attr-defined]
    stored = {digest: tensor for digest, tensor in (*library.weights, *initial)}
    rest = {k: v for k, v in constants_of(fused).items() if k not in stored}
    hashes = {
        "model": text_hash(source) if source else None,
        "calibration": calibration,
        "graph": text_hash(integer),
        **({"kernel database": library.database} if library.database else {}),
    }
    manifest = Manifest(
        target=library.target,
        features=tuple(library.features),
        recipe=fused.recipe,
        entries={"main": _entry(fused, library, [d for d, _ in initial])},
        tensors={digest: _described(tensor) for digest, tensor in stored.items()},
        hashes=hashes,
        versions=_versions(),
        device=library.device,
    )
    report = describe(integer, source, library.target)
    done = _work(fused, library.instructions)
    members = {
        GRAPH: str(fused).encode(),
        REPORT: replace(report, instructions=done).to_json().encode(),
        CONSTANTS: save({k: v.clone() for k, v in rest.items()}),
        LIBRARY: library.code,
        **({KERNELS: library.kernels} if library.kernels else {}),
    }
    return Bundle(manifest, members, together({k: _bytes(v) for k, v in stored.items()}))


def _work(fused: Graph, instructions: Mapping[str, str]) -> Mapping[str, float]:
    """Multiply-adds by the instruction that does them. instructions: by the names of nodes."""
    from qcompiler.ops import Region
    from qcompiler.report.survey import macs

    found: dict[str, float] = {}
    for node in fused.nodes():
        name = instructions.get(node.name)
        if name is not None:
            body = node.op.body(node.inputs) if isinstance(node.op, Region) else [node]
            found[name] = found.get(name, 0.0) + sum(map(macs, body))
    return found


def text_hash(graph: Graph) -> str:
    """SHA-256 of the graph's text, which has its constants by hash."""
    return hashlib.sha256(str(graph).encode()).hexdigest()


def constants(bundle: Bundle) -> dict[str, torch.Tensor]:
    """What the graph's text names by hash: the weights, in place, and the rest."""
    import torch
    from safetensors.torch import load

    found: dict[str, torch.Tensor] = dict(load(bytes(bundle.members[CONSTANTS])))
    for digest, stored in bundle.manifest.tensors.items():
        flat = torch.from_numpy(bundle.tensors[digest])
        dtype: torch.dtype = getattr(torch, stored.dtype)
        found[digest] = flat.view(dtype).reshape(stored.shape)
    return found


def _entry(graph: Graph, library: Any, initial: list[str]) -> Entry:
    return Entry(
        inputs=_specs(graph.inputs),
        outputs=_distinct(_specs(graph.outputs)),
        state=_specs(before for before, _ in graph.state),
        initial=tuple(initial),
        weights=tuple(digest for digest, _ in library.weights),
        symbols=_symbols(graph, library.device),
        trees=graph.trees,
        faults=tuple(library.faults),
    )


def _specs(nodes: Iterable[Node]) -> tuple[Spec, ...]:
    return tuple(Spec(n.name, n.tensor.dtype.value, _shape(n)) for n in nodes)


def _distinct(specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
    """A value given out twice gets a second name: results are stored by name."""
    taken: set[str] = set()
    found: list[Spec] = []
    for spec in specs:
        names = (spec.name, *(f"{spec.name}_{k}" for k in range(2, len(specs) + 2)))
        name = next(n for n in names if n not in taken)
        taken.add(name)
        found.append(replace(spec, name=name))
    return tuple(found)


def _shape(node: Node) -> tuple[int | str, ...]:
    return tuple(d if isinstance(d, int) else repr(d) for d in node.tensor.shape)


def _symbols(graph: Graph, device: str) -> dict[str, tuple[int, int | None]]:
    dims = [d for n in graph.parameters for d in n.tensor.shape if not isinstance(d, int)]
    bounds = {repr(d): (d.min, d.max) for d in dims if d.expr.is_Symbol}
    if device == "cpu":
        return bounds
    rows = _largest_rows(graph)
    caps = {name: _cap(name, rows) for name in bounds}
    return {
        name: (low, min(caps[name], caps[name] if high is None else high))
        for name, (low, high) in bounds.items()
    }


def _largest_rows(graph: Graph) -> dict[Sym, int]:
    """Of each symbolic first dimension, the most elements that one index of it has anywhere."""
    from qcompiler.ops import Region

    nodes = graph.nodes()
    inside = [b for n in nodes if isinstance(n.op, Region) for b in n.op.body(n.inputs)]
    types = [n.type for n in (*nodes, *inside)]
    tensors: list[Any] = [t for whole in types for t in getattr(whole, "items", (whole,))]
    found: dict[Sym, int] = {}
    for t in tensors:
        if t.shape and not isinstance(t.shape[0], int):
            row = math.prod(d for d in t.shape[1:] if isinstance(d, int))
            found[t.shape[0]] = max(row, found.get(t.shape[0], 1))
    return found


def _cap(name: str, rows: Mapping[Sym, int]) -> int:
    """The largest value of a symbol with which no tensor has more than INDEX_MAX elements."""
    return min(
        bisect_right(range(INDEX_MAX), INDEX_MAX // row, key=lambda n: dim.at({name: n})) - 1
        for dim, row in rows.items()
        if name in map(str, dim.expr.free_symbols)
    )


def _described(tensor: torch.Tensor) -> Stored:
    dtype = str(tensor.dtype).removeprefix("torch.")
    numpy_dtype(dtype)
    return Stored(dtype, tuple(tensor.shape), 0, tensor.nbytes)


def _bytes(tensor: torch.Tensor) -> Any:
    """The tensor's bytes, in place where they are contiguous."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    from qcompiler import __version__

    names = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "torch": "torch"}
    return {"qcompiler": __version__, **{k: of(v) for k, v in names.items()}}
