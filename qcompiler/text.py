"""The text form: printing a graph. One node a line, the same graph always the same text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.atomic import CANNOT, probe, replacing
from qcompiler.graph import Graph, Node, Note
from qcompiler.op import Op
from qcompiler.ops import Const, Input, Region, Step
from qcompiler.types import DIGEST_OVER, DType, QParams, Sym, TensorType, TupleType

if TYPE_CHECKING:
    import torch

INLINE_CONST = 4  # constants of at most this many elements are printed in full


def print_graph(graph: Graph) -> str:
    """The graph as text. Constants print as hashes; `constants_of` gives their values."""
    head = f"graph @{graph.level.name.lower()}"
    for key, value in (("target", graph.target), ("recipe", graph.recipe)):
        head += f" {key}={value}" if value else ""
    symbols = _symbols(graph)
    head += f" where {', '.join(symbols)}" if symbols else ""
    lines = [f"{head} {{", *(f"  {_line(n)}" for n in graph.nodes())]
    for (before, after), first in zip(graph.state, graph.initial, strict=True):
        lines.append(f"  state %{before.name} = %{after.name} from %{first.name}")
    if any(graph.trees):
        lines.append(f"  trees {graph.trees!r}")
    lines.append(f"  inputs {_names(graph.inputs)}")
    lines.append(f"  return {_names(graph.outputs)}")
    return "\n".join([*lines, "}"]) + "\n"


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(f"%{n.name}" for n in nodes) or "nothing"


def _symbols(graph: Graph) -> list[str]:
    found: dict[str, Sym] = {}
    for node in graph.parameters:
        for dim in node.tensor.shape:
            if isinstance(dim, Sym) and dim.expr.is_Symbol:
                found.setdefault(str(dim), dim)
    return [f"{name} in {d.min}..{d.max or ''}" for name, d in sorted(found.items())]


def _line(node: Node) -> str:
    args = ", ".join([f"%{i.name}" for i in node.inputs] + _attributes(node.op))
    text = f"%{node.name} = {node.op.kind}({args}) : {show_type(node.type)}"
    note = show_note(node.note)
    return f"{text}  # {note}" if note else text


def show_type(type_: Any) -> str:
    if not isinstance(type_, TensorType):
        return f"({', '.join(show_type(t) for t in type_.items)})"
    quant = f" {show_params(type_.quant)}" if type_.quant else ""
    return f"{type_!r}{quant}"


def show_params(q: QParams) -> str:
    """`q(scale, zero point, qmin, qmax)`, with `#digest` for many scales.

    An accumulator's bounds are those of int32 and are not written.
    """
    if len(q.scale) > DIGEST_OVER:
        scale = f"'#{q.digest}'"
    else:
        scale = literal(q.scale[0] if q.per_tensor else q.scale, short=True)
    rest = f", axis={q.axis}" if q.axis is not None else ""
    rest += f", group={q.group}" if q.group is not None else ""
    bounds = "" if (q.qmin, q.qmax) == DType.INT32.limits else f", {q.qmin}, {q.qmax}"
    return f"q({scale}, {q.zero_point}{bounds}{rest})"


def show_note(note: Note) -> str:
    parts = [f"stats='{note.stats.digest}'"] if note.stats else []
    parts += [f"scheme={literal(note.scheme)}"] if note.scheme else []
    parts += [f"precision={literal(note.precision)}"] if note.precision else []
    parts += [f"reason={note.reason!r}"] if note.reason else []
    parts += [f"origin={note.origin!r}"] if note.origin else []
    return ", ".join(parts)


def _attributes(op: Op) -> list[str]:
    if isinstance(op, Input):
        return []
    if isinstance(op, Const):
        return [_const(op)]
    return [
        f"{f.name}={literal(getattr(op, f.name))}"
        for f in dataclasses.fields(op)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING or getattr(op, f.name) != f.default
    ]


FLOAT32_BYTES = 4


def _const(op: Const) -> str:
    if op.value.numel() > INLINE_CONST or op.quant_params is not None:
        return f"'#{op.digest}'"
    return literal(op.value.tolist(), short=op.value.element_size() <= FLOAT32_BYTES)


def literal(value: Any, short: bool = False) -> str:
    """An attribute as text that parse.py reads back to an equal value.

    short: write a number that float32 holds exactly as float32's own shortest text; for
    places where the reader knows to expect float32 (scales, constants).
    """
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return short_float(value) if short else repr(value)
    if isinstance(value, QParams):
        return show_params(value)
    if isinstance(value, Step):
        args = ", ".join([str(a) for a in value.args] + _attributes(value.op))
        return f"{value.op.kind}({args})"
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(v, short) for v in value)
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({inner}{comma})" if isinstance(value, tuple) else f"[{inner}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, Sym | type):
        return _record(value)
    return repr(value)


def _record(value: Any) -> str:
    """A plain frozen dataclass (Window, Packing, Scheme) as `name(field=value, ...)`."""
    changed = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default]
    inner = ", ".join(f"{f.name}={literal(getattr(value, f.name))}" for f in changed)
    return f"{type(value).__name__.lower()}({inner})"


def short_float(value: float) -> str:
    """The shortest text that float32 reads back, for a value float32 holds; else repr."""
    import numpy as np

    if not math.isfinite(value) or float(np.float32(value)) != value:
        return repr(value)
    return repr(float(str(np.float32(value))))


def constants_of(graph: Graph) -> dict[str, torch.Tensor]:
    """What the text names by hash: constants, long lists of scales, statistics."""
    import torch

    table: dict[str, torch.Tensor] = {}
    for node in graph.nodes():
        if isinstance(node.op, Const) and "#" in _const(node.op):
            table[node.op.digest] = node.op.value.contiguous()
        for q in _params_in(node):
            if len(q.scale) > DIGEST_OVER:
                table[q.digest] = torch.tensor(q.scale, dtype=torch.float64)
        if node.note.stats is not None:
            for key, value in node.note.stats.to_tensors().items():
                table[f"{node.note.stats.digest}.{key}"] = value
    return table


def _params_in(node: Node) -> Iterable[QParams]:
    types = node.type.items if isinstance(node.type, TupleType) else (node.type,)
    yield from (t.quant for t in types if t.quant)
    ops = [s.op for s in node.op.steps] if isinstance(node.op, Region) else [node.op]
    for op in ops:
        yield from (v for v in vars(op).values() if isinstance(v, QParams))
    if node.note.scheme is not None and node.note.scheme.params is not None:
        yield node.note.scheme.params


def save(graph: Graph, path: Path | str, store: Path | None = None) -> None:
    """Write `path`, and its constants by hash into `store` (default: `<name>.constants/`).

    The folder of `path` must exist. Either all is written or nothing; constants that are there
    already are kept. Raises OSError naming `path`.
    """
    path = Path(path)
    text, table = str(graph), constants_of(graph)
    probe(path)
    with _all_or_nothing(path) as made:
        _save_constants(table, store or path.with_suffix(".constants"), made)
        with replacing(path) as file:
            file.write(text.encode())


@contextmanager
def _all_or_nothing(path: Path) -> Iterator[list[Path]]:
    """A list for what is made: removed, the last first, when the block fails."""
    made: list[Path] = []
    try:
        yield made
    except BaseException as e:
        for one in reversed(made):
            with suppress(OSError):
                one.rmdir() if one.is_dir() else one.unlink()
        if isinstance(e, OSError) and e.filename != str(path):
            reason = (e.strerror or str(e)).removeprefix(f"{CANNOT}: ")
            reason = f"{CANNOT}: its constants, {e.filename}: {reason}"
            raise OSError(e.errno, reason, str(path)) from None
        raise


def _save_constants(table: Mapping[str, torch.Tensor], folder: Path, made: list[Path]) -> None:
    from safetensors.torch import save as encoded

    if not folder.is_dir():
        folder.mkdir()
        made.append(folder)
    for key, value in table.items():
        file = folder / f"{key}.safetensors"
        if not file.exists():
            content = encoded({"value": value.clone()})
            with replacing(file) as out:
                out.write(content)
            made.append(file)


def load(path: Path | str, store: Path | None = None) -> Graph:
    """Read a graph that `save` wrote.

    Raises ParseError naming the file, and the line that is wrong or the constant that is missing;
    ValueError naming a file that holds no text.
    """
    from qcompiler.parse import ParseError, parse

    path = Path(path)
    own = path.with_suffix(".constants")
    folders = (store, own, path.parent / "constants")
    folder = next((f for f in folders if f is not None and f.is_dir()), None)
    text = read_text(path)
    try:
        return parse(text, Store(folder or path.parent, folder or own))
    except ParseError as e:
        raise ParseError(f"{path}: {e}") from e


def read_text(path: Path) -> str:
    """Raises ValueError naming a file that holds no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected the text of a graph (.qir), got other data") from None


class Store(dict[str, Any]):
    """Constants by hash, read from a folder when asked for: any hash may be in it.

    expected: the folder that a message names.
    """

    def __init__(self, folder: Path, expected: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.expected = expected or folder

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and re.fullmatch(r"[0-9a-f]+(\.\w+)?", key) is not None

    def __missing__(self, key: str) -> torch.Tensor:
        """Raises ParseError naming the file that is not there or damaged."""
        from safetensors.torch import load_file

        from qcompiler.parse import ParseError

        file = self.folder / f"{key}.safetensors"
        if not file.is_file():
            missing = self.expected / file.name
            raise ParseError(f"constant {key}: no file {missing}; it was written with the text")
        try:
            value: torch.Tensor = load_file(file)["value"]
        except Exception as e:  # of kinds that only safetensors knows
            raise ParseError(f"constant {key}: {file} is damaged: {e}") from None
        self[key] = value
        return value

    def keys(self) -> Any:
        return {f.name.removesuffix(".safetensors") for f in self.folder.glob("*.safetensors")}
