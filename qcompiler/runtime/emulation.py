"""Emulated devices for artifacts, where TVM's compiler and torch need not be."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

CUDA = "qcompiler.targets.emulation.cuda"


def running() -> bool:
    """Whether this process has an emulated CUDA device."""
    return CUDA in sys.modules and bool(sys.modules[CUDA].started())


def of(device: str) -> ModuleType | None:
    """The emulator of a kind of device, by TVM's name; None where it is none of this process."""
    emulators = {"cuda": cuda}
    return emulators[device]() if device in emulators else None


def cuda() -> ModuleType:
    """The CUDA emulator, without `qcompiler.targets` around it: that needs TVM's compiler.

    `prepare()` it before anything imports TVM, which takes the real driver where there is one.
    """
    if CUDA in sys.modules:
        return sys.modules[CUDA]
    if "qcompiler.targets" in sys.modules:
        return importlib.import_module(CUDA)
    folder = Path(__file__).parent.parent / "targets" / "emulation" / "cuda"
    spec = importlib.util.spec_from_file_location(
        CUDA, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is missing from this installation")
    module = importlib.util.module_from_spec(spec)
    sys.modules[CUDA] = module
    spec.loader.exec_module(module)
    return module
