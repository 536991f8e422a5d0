"""SOURCE and DATA: what the command line names, as Python values."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.exits import Refused

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
    ".npz with one array per input, sample i is a[i]; or package.module:function yielding items"
)


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
    found = _function(source, "SOURCE")()
    parts = found if isinstance(found, tuple) else (found,)
    if len(parts) not in (2, 3) or not isinstance((*parts, {})[2], Mapping):
        got = type(found).__name__
        raise Refused(f"{source}: expected it to return (module, example_inputs), got {got}")
    module, inputs = parts[:2]
    return Model(module, inputs, parts[2] if len(parts) == 3 else {})


def graph_of(source: str) -> Graph | None:
    """The graph of a .qir text; None for any other SOURCE."""
    if not source.endswith(".qir"):
        return None
    if not Path(source).is_file():
        raise click.BadParameter(f"no file {source!r}", param_hint="'SOURCE'")
    from qcompiler.text import load

    return load(source)


def _exported(path: str) -> Model:
    if not Path(path).is_file():
        raise click.BadParameter(f"no file {path!r}", param_hint="'SOURCE'")
    import torch

    try:
        program = torch.export.load(path)
    except Exception as e:  # of many kinds: it is a zip that torch takes apart
        reason = str(e).strip().splitlines()[:1]
        raise Refused(f"{path}: torch.export.load cannot read it: {' '.join(reason)}") from e
    args, kwargs = program.example_inputs or ((), {})
    return Model(program, args, {"kwargs": kwargs} if kwargs else {})


def _function(text: str, what: str) -> Any:
    module, _, name = text.partition(":")
    if not module or not name:
        raise click.BadParameter(
            f"expected a file or package.module:function, got {text!r}", param_hint=f"'{what}'"
        )
    # As `python -m` does; commands that take no SOURCE import nothing from the current folder.
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not (module == e.name or module.startswith(f"{e.name}.")):
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
    if text.endswith(".npz"):
        return Samples(arrays_of(text, "--calibration"))
    items = _function(text, "--calibration")
    found: Iterable[Any] = items() if callable(items) else items
    return found


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
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, KeyError) as e:
        raise Refused(f"{path}: expected an .npz file of plain arrays: {e}") from None


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
