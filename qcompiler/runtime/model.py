"""A compiled model: called like a function, saved as one file."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import machine
from qcompiler.errors import require_torch
from qcompiler.runtime.bundle import GRAPH, REPORT, Bundle, read
from qcompiler.runtime.engine import Engine, to_numpy, view
from qcompiler.runtime.manifest import Manifest
from qcompiler.runtime.signature import check, kinds

if TYPE_CHECKING:
    from qcompiler.graph import Graph
    from qcompiler.report import Report
    from qcompiler.runtime.verify import Verdict


class CompiledModel:
    """A program for one machine, with its weights.

    May be called from several threads at once and gives the same bits; a model with state does
    one call after the other. threads: how many TVM uses for a call (None: the physical cores
    this process may use), at any count the same bits; 1 is best where many callers share them.
    """

    def __init__(
        self, bundle: Bundle, graph: Graph | None = None, threads: int | None = None
    ) -> None:
        self.bundle = bundle
        self.threads = threads
        self._graph = graph
        self._engine: Engine | None = None
        self._state: tuple[Any, ...] | None = None
        self._fits: Any = None
        self._lock = threading.RLock()

    @staticmethod
    def of(
        library: Any, fused: Graph, integer: Graph,
        source: Graph | None = None, calibration: str | None = None,
    ) -> CompiledModel:  # fmt: skip
        """The model of a built library (targets.build.Library) and the graph lowered to it.

        integer: the graph that was fused, for the report; source: the FLOAT graph it comes from,
        where known. calibration: a hash of the data, where known.
        """
        from qcompiler.runtime.assemble import bundle_of

        return CompiledModel(bundle_of(library, fused, integer, source, calibration))

    # ------------------------------------------------------------------------------ calls

    def __call__(self, *inputs: Any) -> Any:
        """One array per input: torch tensors in, torch tensors out; else numpy in, numpy out.

        Returns one result bare, several as a tuple. Raises InputError for inputs that do not
        fit, IndexError for ids outside their table, MachineError on a machine that cannot run it.
        """
        outputs = self._run(inputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def call_tree(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the traced module is, with its own nesting of arguments and results."""
        from qcompiler.frontend.trees import flatten, unflatten

        before, after = self.manifest.main.trees
        if not before:
            raise ValueError("the model was built from a graph without the module's trees")
        return unflatten(after, self._run(flatten(before, args, kwargs)))

    def called(self, inputs: Sequence[Any]) -> Tapped:
        """A call as numpy arrays, without taps."""
        return Tapped(tuple(map(_as_numpy, self._run(inputs))))

    def tapped(self, inputs: Sequence[Any]) -> Tapped:
        """A call from the initial state, and the tensors of each of its kernels.

        The model's own state stays as it is; the new one is among the outputs, behind them.
        """
        engine, _ = self._ready()
        taps: list[tuple[Any, ...]] = []

        def tap(name: str, tensors: Sequence[Any]) -> None:
            taps.append(tuple(_to_numpy(t, shared=True) for t in tensors))

        outputs, after = engine.run(inputs, self._initial(), _to_numpy, self.threads, tap)
        state = [_to_numpy(engine.host(s), shared=True) for s in after]
        return Tapped((*outputs, *state), tuple(taps))

    def _run(self, inputs: Sequence[Any]) -> list[Any]:
        values = [np.asarray(v) if isinstance(v, np.generic) else v for v in inputs]
        self._check(values)
        make = _to_torch if any(map(_is_torch, values)) else _to_numpy
        if not self.manifest.main.state:
            engine, _ = self._ready()
            return engine.run(values, (), make, self.threads)[0]
        with self._lock:
            engine, state = self._ready()
            outputs, after = engine.run(values, state, make, self.threads)
            self._state = tuple(after)
            return outputs

    def _check(self, values: Sequence[Any]) -> None:
        """Raises InputError for values that do not fit."""
        found = kinds(values)
        if found is None or found != self._fits:
            check(self.manifest.main, values)
            self._fits = found

    def _ready(self) -> tuple[Engine, tuple[Any, ...]]:
        """The library, opened at the first call, and the state's present values."""
        if self._engine is None or self._state is None:
            with self._lock:
                self._engine = self._engine or Engine.of(self.bundle)
                self._state = self._state or self._initial()
        return self._engine, self._state

    def _initial(self) -> tuple[Any, ...]:
        stored = self.manifest.tensors
        return tuple(
            view(self.bundle.tensors[d], stored[d].shape, stored[d].dtype)
            for d in self.manifest.main.initial
        )

    def reset_state(self) -> None:
        """The buffers that calls update get their first values again."""
        with self._lock:
            self._state = None

    def verify(self, inputs: Sequence[Any] | None = None) -> Verdict:
        """Compare every kernel with the interpreter; see runtime/verify.py. Needs torch."""
        require_torch("CompiledModel.verify")
        from qcompiler.runtime.verify import verify

        return verify(self, inputs)

    # ------------------------------------------------------------------------------ facts

    @property
    def threads(self) -> int:
        """TVM's threads for a call, at most the logical CPUs this process may use."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        problem = machine.threads_problem(count) if count is not None else None
        if problem:
            raise ValueError(f"threads: {problem}; None stands for the physical cores")
        self._threads = count or machine.cores()

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def report(self) -> Report:
        """What was done: precision per layer, what stayed float and why, sizes, quality."""
        from qcompiler.report import Report

        return Report.from_json(self.bundle.text(REPORT))

    def with_report(self, report: Report) -> CompiledModel:
        """The same program with another report, e.g. one that has measured times."""
        members = {**self.bundle.members, REPORT: report.to_json().encode()}
        made = CompiledModel(replace(self.bundle, members=members), self._graph, self.threads)
        made._engine = self._engine
        return made

    @property
    def text(self) -> str:
        """The final graph, as text."""
        return self.bundle.text(GRAPH)

    @property
    def graph(self) -> Graph:
        """The final graph: level FUSED, for this target. Needs torch."""
        require_torch("CompiledModel.graph")
        if self._graph is None:
            from qcompiler.runtime.assemble import constants

            self._graph = _parse(self.text, constants(self.bundle))
        return self._graph

    def __repr__(self) -> str:
        entry, m = self.manifest.main, self.manifest
        takes = ", ".join(f"{s.name}: {s!r}" for s in entry.inputs)
        gives = ", ".join(map(repr, entry.outputs))
        return f"<CompiledModel {m.recipe} for {m.target}: ({takes}) -> ({gives})>"

    # ------------------------------------------------------------------------------ files

    def save(self, path: Path | str) -> None:
        """Write the artifact, atomically. Raises OSError naming the path."""
        self.bundle.save(path)


@dataclass(frozen=True)
class Tapped:
    """A call as numpy arrays. taps: per kernel, in the order they ran, its operands and results."""

    outputs: tuple[Any, ...]
    taps: tuple[tuple[Any, ...], ...] = ()


def load(path: Path | str, threads: int | None = None) -> CompiledModel:
    """A saved model, ready to run: needs numpy and apache-tvm only.

    An artifact holds native code: load those you trust. Raises ArtifactError for a file that is
    none, is damaged or of another version, MachineError (an ArtifactError) on a machine that
    cannot run it, OSError when the file cannot be read.
    """
    model = CompiledModel(read(path), threads=threads)
    model._ready()
    return model


def _parse(text: str, constants: Mapping[str, Any]) -> Graph:
    from qcompiler.parse import parse

    return parse(text, constants)


def _is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" or hasattr(value, "data_ptr")


def _as_numpy(value: Any) -> Any:
    return value.numpy() if _is_torch(value) else value


def _to_numpy(tensor: Any, shared: bool = False) -> Any:
    array = to_numpy(tensor)
    return array.copy() if shared or not array.flags.writeable else array


def _to_torch(tensor: Any, shared: bool) -> Any:
    from torch.utils.dlpack import from_dlpack

    found = from_dlpack(tensor)
    return found.clone() if shared else found
