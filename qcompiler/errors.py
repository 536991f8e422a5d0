"""Errors that are raised on paths that must not import torch."""

from __future__ import annotations

import sys
from importlib.util import find_spec

TORCH = ("torch", "sympy")
"""What the extra qcompiler[torch] brings."""


class InputError(ValueError):
    """The values given do not fit the graph's inputs."""


class MissingTorch(ImportError):
    """Everything but load and run needs PyTorch."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs PyTorch: pip install 'qcompiler[torch]'")


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported."""
    return all(map(_installed, TORCH))


def require_torch(what: str) -> None:
    """Raises MissingTorch saying that `what` needs it."""
    if not has_torch():
        raise MissingTorch(what)


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


class EmulationError(RuntimeError):
    """Something cannot be emulated, or a kernel did what its machine leaves undefined."""
