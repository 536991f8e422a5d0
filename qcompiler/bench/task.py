"""A task: one module on given inputs, as a built-in work or the user's SOURCE has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from qcompiler import data
from qcompiler.bench.works import RECIPES, Work, family_of
from qcompiler.graph import Graph
from qcompiler.peers import Family, Job


@dataclass(frozen=True, eq=False)
class Task:
    """args, kwargs: what programs are measured and compared on. calibration: gives the items.

    options: of qc.trace. judged: whether calibration and inputs are such that the results of
    quantized programs mean something.
    """

    name: str
    module: Any
    args: tuple[Any, ...]
    calibration: Callable[[], Iterable[Any]]
    family: Family
    judged: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Our recipes that make sense for it."""
        return RECIPES[self.family]

    @property
    def callable(self) -> Callable[..., Any]:
        """The module as PyTorch calls it."""
        exported = hasattr(self.module, "graph_signature")
        made: Callable[..., Any] = self.module.module() if exported else self.module
        return made

    def job(self, graph: Graph, threads: int, folder: Path) -> Job:
        """The same for a peer: flat positional tensors. graph: of the module, at any level."""
        flat, spec = tree_flatten((self.args, dict(self.kwargs)))
        tensors = tuple(v for v in flat if isinstance(v, torch.Tensor))
        module = self.callable
        assert isinstance(module, torch.nn.Module)
        if self.kwargs or tensors != self.args:
            module = Positional(module, flat, spec).eval()
        pieces = tuple(data.pieces(self.calibration(), graph))
        return Job(self.name, module, tensors, pieces, self.family, threads, folder)


class Positional(torch.nn.Module):
    """A module called with the tensors of its nested arguments, one after the other."""

    def __init__(self, module: torch.nn.Module, flat: list[Any], spec: Any) -> None:
        super().__init__()
        self.module, self.flat, self.spec = module, flat, spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        values = [next(rest) if isinstance(v, torch.Tensor) else v for v in self.flat]
        args, kwargs = tree_unflatten(values, self.spec)
        return self.module(*args, **kwargs)


def of_work(work: Work, batch: int) -> Task:
    """Raises ImportError when a package that holds the model is absent."""
    return Task(
        work.name, work.module(), work.held_out(batch), lambda: work.calibration(batch),
        work.family,
    )  # fmt: skip


def of_source(
    name: str, module: Any, inputs: Any, options: Mapping[str, Any],
    calibration: Callable[[], Iterable[Any]] | None,
) -> Task:  # fmt: skip
    """inputs: positional, as a tuple, or by name, as a dict. Without calibration data these
    inputs are the one item: times are right, results are not."""
    kwargs = dict(options.get("kwargs") or {})
    item: Any = inputs
    if isinstance(inputs, dict):
        inputs, kwargs, item = (), inputs, dict(inputs)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return Task(
        name, module, args, calibration or (lambda: [item]), family_of(module),
        calibration is not None, kwargs, {k: v for k, v in options.items() if k != "kwargs"},
    )  # fmt: skip
