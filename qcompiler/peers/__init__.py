"""Other runtimes that `qcompiler bench` measures beside ours, each at its best honest setting.

One file per peer. Nothing of a peer is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from qcompiler.peers.mode import Family, Job, Mode, Precision, Program, Skipped, first_line

__all__ = [
    "EXTRA", "PEERS", "Family", "Job", "MissingPeer", "Mode", "Precision", "Program", "Skipped",
    "first_line",     "methods", "modes", "require",
]  # fmt: skip

EXTRA = "pip install 'qcompiler[peers]'"

PEERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "onnxruntime": ("onnxruntime", "onnx", "onnx_ir"),
        "openvino": ("openvino", "nncf", "onnx"),
        "torch": ("torch",),
    }
)
"""A peer, whose file has its name -> the packages it needs, as they are imported."""


class MissingPeer(ImportError):
    """A package that a peer needs is not installed."""


def require(peer: str) -> None:
    """ValueError for a name that is no peer's, MissingPeer when a package it needs is absent."""
    if peer not in PEERS:
        raise ValueError(f"there is no peer {peer!r}; choose of {', '.join(PEERS)}")
    absent = [package for package in PEERS[peer] if not _installed(package)]
    if absent:
        raise MissingPeer(f"peer {peer!r} needs {', '.join(absent)}: {EXTRA}")


def modes(peer: str) -> tuple[Mode, ...]:
    """The settings in which a peer is measured. Raises as `require` does."""
    require(peer)
    found: tuple[Mode, ...] = import_module(f"qcompiler.peers.{peer}").MODES
    return found


def methods(peer: str) -> tuple[Mode, ...]:
    """The ways in which a peer quantizes with calibration data; none for a peer that does not.
    Raises as `require` does."""
    require(peer)
    found: tuple[Mode, ...] = getattr(import_module(f"qcompiler.peers.{peer}"), "METHODS", ())
    return found


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False
