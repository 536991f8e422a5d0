"""trace: a PyTorch module becomes a FLOAT graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from qcompiler.frontend.errors import TraceError, first_line
from qcompiler.frontend.export import exported, quiet
from qcompiler.frontend.importer import Outcome, import_program
from qcompiler.graph import Graph

DECOMPOSITION_ROUNDS = 8
"""Rounds. A decomposition may give ops that need one themselves; none of PyTorch's nests deeper."""


def trace(
    module: torch.nn.Module | ExportedProgram,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Graph:
    """Trace a model into a graph at level FLOAT.

    module: an nn.Module or fx.GraphModule in eval mode, or an ExportedProgram (which needs no
    example inputs). example_inputs: a tensor, a tuple of positional arguments, or a mapping of
    keyword arguments; kwargs: further keyword arguments. dynamic_shapes: as for torch.export; a
    named `torch.export.Dim` keeps its name and bounds; Dim.AUTO and Dim.DYNAMIC allow 1 as well.

    The graph's inputs are the tensors among the arguments, flattened, in order. A Python number,
    string or None among them is part of the model: another value needs another trace. Buffers
    that the model updates become the graph's state. Weights are copied, and stored once when
    shared. Raises TraceError.
    """
    program, axes = exported(module, example_inputs, kwargs, dynamic_shapes)
    for _ in range(DECOMPOSITION_ROUNDS):
        outcome = import_program(program, axes)
        if outcome.graph is not None:
            return outcome.graph
        table = decompositions(outcome.unknown)
        if not table:
            break
        program = decomposed(program, table)
    raise TraceError(report(outcome))


def decompositions(unknown: Iterable[Any]) -> dict[Any, Any]:
    """PyTorch's own rules for exactly these ops."""
    known = torch.export.default_decompositions()
    return {op: known[op] for op in unknown if op in known}


def decomposed(program: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
    try:
        with quiet():
            result: ExportedProgram = program.run_decompositions(table)
            return result
    except Exception as error:
        names = ", ".join(sorted(map(str, table)))
        raise TraceError(f"the ops {names} are unknown, and PyTorch fails to take them apart: "
                         f"{first_line(error)}") from error  # fmt: skip


CURE = "; replace it in the model with ops that are known"


def report(outcome: Outcome) -> str:
    """All problems, one a line, under one that says what to do."""
    lines = [str(p) for p in outcome.problems]
    if len(lines) == 1:
        return f"cannot trace {lines[0]}{CURE if outcome.unknown else ''}"
    head = f"cannot trace {len(lines)} operations; replace them in the model:"
    return "\n  ".join([head, *lines])
