"""The runtime: artifacts saved, loaded and run. Loading and running need no torch."""

from qcompiler.errors import InputError
from qcompiler.runtime.engine import RunError
from qcompiler.runtime.errors import ArtifactError, MachineError
from qcompiler.runtime.model import CompiledModel, load

__all__ = ["ArtifactError", "CompiledModel", "InputError", "MachineError", "RunError", "load"]
