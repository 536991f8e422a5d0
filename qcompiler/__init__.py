"""qcompiler: PyTorch models in, fast and exact integer programs out."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qcompiler.errors import TORCH, MissingTorch

__version__ = "0.1.0"

# Public name -> the module that defines it; imported when first asked for.
_LAZY = {
    "trace": "qcompiler.frontend",
    "quantize": "qcompiler.api",
    "calibrate": "qcompiler.api",
    "tune": "qcompiler.api",
    "front": "qcompiler.api",
    "explain": "qcompiler.api",
    "build": "qcompiler.api",
    "compile": "qcompiler.api",
    "load": "qcompiler.runtime",
    "CompiledModel": "qcompiler.runtime",
    "InputError": "qcompiler.errors",
    "ArtifactError": "qcompiler.runtime.errors",
    "MachineError": "qcompiler.runtime.errors",
    "interpret": "qcompiler.interpret",
    "parse": "qcompiler.parse",
    "save_graph": "qcompiler.text",
    "load_graph": "qcompiler.text",
    "constants_of": "qcompiler.text",
    "Recipe": "qcompiler.recipe",
    "Statistics": "qcompiler.statistics",
    "Graph": "qcompiler.graph",
    "Level": "qcompiler.graph",
    "Node": "qcompiler.graph",
    "Note": "qcompiler.graph",
    "Context": "qcompiler.context",
    "Miss": "qcompiler.rewrite",
    "Sweep": "qcompiler.rewrite",
    "rewrite": "qcompiler.rewrite",
    "Pass": "qcompiler.pipeline",
    "Pipeline": "qcompiler.pipeline",
    "graph_pass": "qcompiler.pipeline",
    "rewrites": "qcompiler.pipeline",
    "const": "qcompiler.ops",
}

__all__ = [
    "ArtifactError",
    "CompiledModel",
    "Context",
    "Graph",
    "InputError",
    "Level",
    "MachineError",
    "Miss",
    "Node",
    "Note",
    "Pass",
    "Pipeline",
    "Recipe",
    "Statistics",
    "Sweep",
    "__version__",
    "build",
    "calibrate",
    "compile",
    "const",
    "constants_of",
    "explain",
    "front",
    "graph_pass",
    "interpret",
    "load",
    "load_graph",
    "parse",
    "quantize",
    "rewrite",
    "rewrites",
    "save_graph",
    "targets",
    "trace",
    "tune",
]

if TYPE_CHECKING:
    from qcompiler import targets
    from qcompiler.api import build, calibrate, compile, explain, front, quantize, tune
    from qcompiler.context import Context
    from qcompiler.errors import InputError
    from qcompiler.frontend import trace
    from qcompiler.graph import Graph, Level, Node, Note
    from qcompiler.interpret import interpret
    from qcompiler.ops import const
    from qcompiler.parse import parse
    from qcompiler.pipeline import Pass, Pipeline, graph_pass, rewrites
    from qcompiler.recipe import Recipe
    from qcompiler.rewrite import Miss, Sweep, rewrite
    from qcompiler.runtime import CompiledModel, load
    from qcompiler.runtime.errors import ArtifactError, MachineError
    from qcompiler.statistics import Statistics
    from qcompiler.text import constants_of
    from qcompiler.text import load as load_graph
    from qcompiler.text import save as save_graph


class _Package(ModuleType):
    """Importing a submodule named as a public function (interpret, parse) must not hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LAZY or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "targets":  # a package that is also called: qc.targets() gives the names
        return importlib.import_module("qcompiler.targets")
    if name not in _LAZY:
        raise AttributeError(f"module 'qcompiler' has no attribute {name!r}")
    source = {"save_graph": "save", "load_graph": "load"}.get(name, name)
    try:
        return getattr(importlib.import_module(_LAZY[name]), source)
    except ModuleNotFoundError as e:
        if e.name in TORCH:
            raise MissingTorch(f"qcompiler.{name}") from None
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
