"""SOURCE and DATA: what the command line names, as Python values."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.exits import Refused
from qcompiler.errors import TORCH

if TYPE_CHECKING:
    import numpy.typing as npt

    from qcompiler.graph import Graph

    Arrays = dict[str, npt.NDArray[Any]]

SOURCE_HELP = (
    "SOURCE is a .pt2 file or package.module:function, which returns (module, example_inputs) "
    "or (module, example_inputs, options of qc.trace)."
)
GRAPH_HELP = "A .qir text works too: FLOAT is quantized first, INTEGER is built as it is."
DATA_HELP = (
    ".npz with one array per input, sample i is a[i]; package.module:function yielding items; or "
    "what `qcompiler calibrate` wrote"
)


NPY = b"\x93NUMPY"  # how a file of one array begins
_KINDS = {"SOURCE": "a .pt2 file, a .qir text", "--calibration": "an .npz file"}


@dataclass(frozen=True)
class Model:
    """What a SOURCE gives: a module or an exported program, and how to trace it."""

    module: Any
    inputs: Any
    options: Mapping[str, Any]


def model_of(source: str) -> Model:
    """Raises click.BadParameter for what is no SOURCE, Refused for what it should not return."""
    if source.endswith(".pt2"):
        return _exported(source)
    function = _function(source, "SOURCE")
    with _said_by(source):
        found = function()
    parts = found if isinstance(found, tuple) else (found,)
    if len(parts) not in (2, 3) or not isinstance((*parts, {})[2], Mapping):
        got = type(found).__name__
        raise Refused(f"{source}: expected it to return (module, example_inputs), got {got}")
    module, inputs = parts[:2]
    return Model(module, inputs, parts[2] if len(parts) == 3 else {})


@contextmanager
def _said_by(source: str) -> Iterator[None]:
    """What the user's own code raises is told as its own."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ModuleNotFoundError) and e.name in TORCH:
            raise
        hint = "" if isinstance(e, ModuleNotFoundError) else " (set QC_DEBUG=1 for the traceback)"
        raise Refused(f"{source}: {type(e).__name__}: {e}{hint}") from e


def graph_of(source: str) -> Graph | None:
    """The graph of a .qir text; None for any other SOURCE."""
    if not source.endswith(".qir"):
        return None
    if not Path(source).is_file():
        raise click.BadParameter(f"no file {source!r}", param_hint="'SOURCE'")
    from qcompiler.text import load

    return load(source)


def traced(source: str) -> Graph:
    """The graph that a .qir text holds, or that a module is traced to."""
    from qcompiler.frontend import trace

    graph = graph_of(source)
    if graph is not None:
        return graph
    model = model_of(source)
    return trace(model.module, model.inputs, **model.options)



def _exported(path: str) -> Model:
    if not Path(path).is_file():
        raise click.BadParameter(f"no file {path!r}", param_hint="'SOURCE'")
    if not zipfile.is_zipfile(path):
        raise Refused(f"{path}: torch.export.load cannot read it: it is no zip, or was cut off")
    import torch

    from qcompiler.frontend.export import quiet

    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as e:  # of many kinds: it is a zip that torch takes apart
        reason = " ".join(str(e).strip().splitlines()[:1])
        reason = "it holds no exported program" if "warnings above" in reason else reason
        raise Refused(f"{path}: torch.export.load cannot read it: {reason}") from e
    args, kwargs = program.example_inputs or ((), {})
    return Model(program, args, {"kwargs": kwargs} if kwargs else {})


def _function(text: str, what: str) -> Any:
    module, _, name = text.partition(":")
    if not module or not name:
        raise click.BadParameter(
            f"expected {_KINDS[what]} or package.module:function, got {text!r}",
            param_hint=f"'{what}'",
        )
    # As `python -m` does; commands that take no SOURCE import nothing from the current folder.
    sys.path.insert(0, os.getcwd())
    try:
        with _said_by(module):
            found: Any = importlib.import_module(module)
    except Refused as e:
        absent = e.__cause__.name if isinstance(e.__cause__, ModuleNotFoundError) else None
        if absent is None or not (module == absent or module.startswith(f"{absent}.")):
            raise
        raise click.BadParameter(f"no module {module!r}", param_hint=f"'{what}'") from None
    for part in name.split("."):
        if not hasattr(found, part):
            text = f"module {module!r} has no {name!r}"
            raise click.BadParameter(text, param_hint=f"'{what}'")
        found = getattr(found, part)
    return found


def data_of(text: str | None) -> Iterable[Any] | None:
    """Calibration items. A DATA file is read whole; a function's items one after the other."""
    if text is None:
        return None
    if text.endswith(".safetensors"):
        from qcompiler.statistics import Statistics

        return Statistics.load(text)
    if text.endswith(".npz") or Path(text).is_file():
        return Samples(arrays_of(text, "--calibration"))
    items = _function(text, "--calibration")
    with _said_by(text):
        found: Any = items() if callable(items) else items
    if isinstance(found, Mapping) or hasattr(found, "ndim") or not isinstance(found, Iterable):
        return found  # type: ignore[no-any-return]
    return SizedItems(text, found) if isinstance(found, Sized) else Items(text, found)


@dataclass(frozen=True)
class Items:
    """What a function yields; an error in it says where it comes from."""

    source: str
    values: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        with _said_by(self.source):
            rest = iter(self.values)
        while True:
            with _said_by(self.source):
                one = list(islice(rest, 1))
            if not one:
                return
            yield one[0]


@dataclass(frozen=True)
class SizedItems(Items):
    """The same of a list or a DataLoader, whose length is known."""

    values: Any

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Samples:
    """Arrays cut along their first axis: sample i of input a is a[i]."""

    arrays: Mapping[str, Any]

    def __post_init__(self) -> None:
        sizes = {name: a.shape[0] if a.ndim else None for name, a in self.arrays.items()}
        if not sizes or None in sizes.values() or len(set(sizes.values())) > 1:
            raise Refused(
                "calibration data: expected arrays with the same number of samples in their "
                f"first axis, got {sizes or 'none'}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __iter__(self) -> Iterator[Any]:
        names = list(self.arrays)
        unnamed = names == [f"arr_{k}" for k in range(len(names))]
        for i in range(len(self)):
            values = [self.arrays[name][i] for name in names]
            yield tuple(values) if unnamed else dict(zip(names, values, strict=True))


def arrays_of(path: str, what: str) -> Arrays:
    """The arrays of an .npz file. No pickled objects are read."""
    import numpy as np

    if not Path(path).is_file():
        raise click.BadParameter(f"no file {path!r}", param_hint=f"'{what}'")
    expected = f"{path}: expected an .npz file of plain arrays, as np.savez(path, x=array) writes"
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as start:
            one = start.read(len(NPY)) == NPY
        raise Refused(f"{expected}, got {'an .npy file of one array' if one else 'other data'}")
    name = ""
    found: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                found[name] = file[name]
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, KeyError, zlib.error):
        raise Refused(f"{expected}; {name!r} in it is damaged or holds objects") from None
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise Refused(f"{expected}; {name!r} in it is no array")
    return found


def by_name(arrays: Arrays, names: Sequence[str], path: str) -> list[Any]:
    """The arrays in the order of the inputs: by name, or by position as `np.savez(f, a, b)`."""
    if set(arrays) == {f"arr_{k}" for k in range(len(names))}:
        return [arrays[f"arr_{k}"] for k in range(len(names))]
    wrong = sorted(set(arrays) ^ set(names))
    if wrong:
        what = "no array" if wrong[0] in names else "unknown array"
        raise Refused(f"{path}: {what} {wrong[0]!r}; the inputs are {', '.join(names) or 'none'}")
    return [arrays[name] for name in names]


def allowed_threads(_ctx: click.Context, _param: click.Parameter, count: int | None) -> int | None:
    """A callback of --threads. Raises click.BadParameter."""
    from qcompiler.machine import threads_problem

    problem = threads_problem(count) if count is not None else None
    if problem:
        raise click.BadParameter(problem)
    return count


def require_writable(*paths: str | None) -> None:
    """Say before the work that its results cannot be written.

    Raises click.UsageError for no name and for one name twice, OSError naming the path.
    """
    from qcompiler.atomic import probe

    given = [path for path in paths if path is not None]
    if "" in given:
        raise click.UsageError("expected the name of a file to write, got ''")
    places = {os.path.realpath(path) for path in given}
    if len(places) < len(given):
        raise click.UsageError(f"{' and '.join(given)} are one file; give each its own")
    for path in given:
        probe(Path(path))
